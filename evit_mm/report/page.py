"""The page: what runs and their analyses say, as one HTML file that needs nothing else."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache, cached_property
from itertools import chain, zip_longest
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from .. import __version__
from ..errors import ConfigError
from ..evaluation.statistics import FIGURES
from ..evaluation.tide import KINDS
from ..utils.provenance import commit
from . import charts
from .analysis import (
    Analysis,
    both_ends,
    class_changes,
    config_changes,
    cost_changes,
    figure_changes,
    image_changes,
)
from .comparison import Comparison
from .detections import Detections
from .pictures import MAX_IMAGES, Card, Thumbnails, choose, make_card, mistakes_of
from .runs import Run, flattened

MAX_BYTES = 5_000_000
MARGIN = 60_000  # what thumbnails and notes take beside their bytes
MAX_RUNS = 8
MAX_CLASSES = 100  # bars; the table has all
MAX_CHANGES = 60  # entries of a config
MAX_CLASS_CHANGES, MAX_IMAGE_CHANGES = 12, 6  # that became better, and worse
MAX_TEXT = 30_000  # characters of a config
MEANINGS = {
    'classification': 'found, but given the wrong class',
    'localisation': 'right class, but the box fits too badly (IoU 0.1 to 0.5)',
    'both': 'wrong class and a badly fitting box',
    'duplicate': 'an object that a surer detection has found already',
    'background': 'there is no object',
    'missed': 'an object that nothing found, not even badly',
    'all false detections': 'as if every false detection went',
    'all unfound objects': 'as if no unfound object were counted',
}
HOW = {
    'loss': 'Training loss, mean of the last iterations: it should fall and level off.',
    'lr': 'Learning rate: warm-up and steps as the config asks for.',
    'parts': 'The parts of the loss: the one that stays high is what the detector finds hard.',
    'ap': 'AP on the validation set at each evaluation: still rising at the end means that longer '
    'training would pay.',
}
LOGGED_AP = {'bbox_mAP': 'AP', 'bbox_mAP_50': 'AP50', 'bbox_mAP_75': 'AP75'}


@dataclass
class Shown:
    """A run and what the page shows of it.

    Attributes:
        run: What its work dir says.
        place: Its place on the page.
        detections: What it finds, None where that is not known.
        analysis: What there is to say of these.
        num_confused: Classes in its confusion matrix.
        cards: Its worst images.
    """

    run: Run
    place: int
    detections: Detections | None = None
    analysis: Analysis | None = None
    num_confused: int = 0
    cards: list[Card] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    @property
    def colour(self) -> str:
        """The run's colour in the charts."""
        return charts.COLOURS[self.place]

    @property
    def headlines(self) -> list[tuple[str, float]]:
        """The figures that come first."""
        if self.analysis is not None:
            names = [name for name, _ in FIGURES[:3]]
            return list(zip(names, self.analysis.figures.twelve, strict=False))
        return [('AP as logged', self.run.best[1] if self.run.best else float('nan'))]

    @property
    def key_facts(self) -> list[tuple[str, str]]:
        """What to know at once."""
        facts, rows = self.run.facts(), []
        if self.run.best:
            step, value = self.run.best
            rows.append(('best evaluation', f'AP {value:.3f} after epoch {step}'))
        if self.detections is not None:
            truth = self.detections.truth
            counted = f'{len(truth.image_ids)} images, {truth.objects.sum()} objects'
            rows += [('shown checkpoint', self.detections.checkpoint), ('validated on', counted)]
        names = ('state', 'training time', 'peak memory', 'seed')
        return [*rows, *((name, facts[name]) for name in names)]

    @cached_property
    def config_text(self) -> str:
        """The config, cut where it is very long."""
        text = self.run.config.pretty_text
        return text if len(text) <= MAX_TEXT else f'{text[:MAX_TEXT]}\n... (cut)'

    @property
    def filters(self) -> dict[str, list[tuple[int, str]]]:
        """What the worst images can be filtered by: values and names of the choices."""
        kinds, labels = (
            sorted({pair[i] for card in self.cards for pair in card.mistakes}) for i in (0, 1)
        )
        classes = self.detections.truth.classes if self.detections else ()
        return {
            'label': [(label, classes[label]) for label in labels],
            'kind': [(kind, KINDS[kind]) for kind in kinds],
        }


def render(
    runs: Sequence[Shown], compare: bool = False, comparison: Comparison | None = None
) -> str:
    """Make the page, with as many pictures as its size allows.

    Args:
        runs: What is shown, in order.
        compare: Say what changed from the first run to the second.
        comparison: The backbones' table.

    Returns:
        HTML of less than 5 MB.

    Raises:
        ConfigError: There is too much for one page.
    """
    content = _content(runs, compare, comparison)
    limit = MAX_IMAGES // len(runs)
    while limit:
        for run in content['analysed']:
            run.cards = _worst_images(run.analysis, limit)
        room = MAX_BYTES - MARGIN - len(_fill(content, Thumbnails(0)).encode())
        if room > 0:
            return _fill(content, Thumbnails(room))
        limit //= 2
    raise ConfigError('there is too much for a page of 5 MB; give fewer trainings')


def _content(runs: Sequence[Shown], compare: bool, comparison: Comparison | None) -> dict[str, Any]:
    """Return what the template takes, but for the pictures."""
    analysed = [run for run in runs if run.analysis is not None]
    specs = _training_charts(runs)
    facts = [run.run.facts() for run in runs]
    content: dict[str, Any] = {
        'runs': runs,
        'analysed': analysed,
        'training': list(specs),
        'how': HOW,
        'figure_names': FIGURES,
        'facts': [(name, [fact[name] for fact in facts]) for name in facts[0]],
        'compare': _changes(*runs) if compare else None,
        'comparison': comparison,
        'charts': specs,
    }
    if analysed:
        found = [run.analysis for run in analysed]
        rows, half = _class_rows(found), MAX_CLASSES // 2
        drawn = rows if len(rows) <= MAX_CLASSES else rows[:half] + rows[-half:]
        specs.update(_overview_charts({run.name: run.analysis for run in analysed}, drawn))
        content.update(
            class_rows=rows, num_drawn=len(drawn), best=_best(found), error_rows=_error_rows(found)
        )
    for run in analysed:
        specs[f'pr-{run.place}'] = charts.precision_recall(
            run.analysis.figures,
            run.analysis.truth.classes,
            run.analysis.truth.objects,
            charts.MAX_CURVES // len(analysed),
        )
        specs[f'confusion-{run.place}'], run.num_confused = charts.confusion_matrix(
            run.analysis.confusion, run.analysis.truth.classes
        )
    if comparison is not None:
        specs['latency'] = charts.comparison_scatter(
            comparison.rows, 'latency', 'latency of the detector, ms'
        )
        specs['flops'] = charts.comparison_scatter(
            comparison.rows, 'flops', 'FLOPs (multiply-adds), G'
        )
    return content


def _training_charts(runs: Sequence[Shown]) -> dict[str, charts.Spec]:
    """Return the curves of the training; of a single run also those of its loss's parts."""
    ap = {shown.name: shown.run.ap for shown in runs}
    parts = {}
    if len(runs) == 1:
        steps, evaluations = runs[0].run.steps, runs[0].run.evaluations
        parts = {k.removeprefix('loss_'): v for k, v in steps.items() if k.startswith('loss_')}
        logged = {key.rpartition('/')[2]: values for key, values in evaluations.items()}
        ap = {name: logged.get(key, []) for key, name in LOGGED_AP.items()}
    specs = {}
    for name, series, x, y in (
        ('loss', {run.name: run.run.steps.get('loss') for run in runs}, 'iteration', 'loss'),
        ('lr', {run.name: run.run.steps.get('lr') for run in runs}, 'iteration', 'learning rate'),
        ('parts', parts if len(parts) > 1 else {}, 'iteration', 'loss'),
        ('ap', ap, 'epoch', 'AP on the validation set'),
    ):
        known = {key: values for key, values in series.items() if values}
        if known:
            specs[name] = charts.curve(known, x, y, points=name == 'ap')
    return specs


def _overview_charts(
    found: Mapping[str, Analysis], class_rows: Sequence[Mapping[str, Any]]
) -> dict[str, charts.Spec]:
    """Return what is drawn of all runs together."""
    names = charts.unique_names([row['name'] for row in class_rows])
    classes = {
        run: [
            {'class': name, 'AP': row['values'][place][0], 'AP50': row['values'][place][1]}
            for name, row in zip(names, class_rows, strict=True)
        ]
        for place, run in enumerate(found)
    }
    costs = {
        run: [
            {'error': k, 'lost': round(100 * c, 2)}
            for k, c in zip(KINDS, a.errors.cost, strict=True)
        ]
        for run, a in found.items()
    }
    sizes = {run: _range_rows(a.figures.by_size) for run, a in found.items()}
    ratios = {run: _range_rows(a.figures.by_ratio) for run, a in found.items()}
    return {
        'classes': charts.bars(classes, 'class', 'AP', '.3f'),
        'costs': charts.bars(costs, 'error', 'lost', '.1f', 'AP50 points lost'),
        'sizes': charts.bars(sizes, 'range', 'AP', '.3f'),
        'ratios': charts.bars(ratios, 'range', 'AP', '.3f'),
        'calibration': charts.reliability({run: a.calibration for run, a in found.items()}),
    }


def _range_rows(ranges: Sequence[tuple[str, float, int]]) -> list[dict[str, Any]]:
    return [{'range': name, 'AP': ap, 'objects': number} for name, ap, number in ranges if number]


def _class_rows(found: Sequence[Analysis]) -> list[dict[str, Any]]:
    """Return AP and AP50 of each class in each run, by falling AP of the first."""
    absent = (float('nan'), float('nan'))
    values = [
        dict(zip(a.truth.classes, zip(a.figures.ap, a.figures.ap50, strict=True), strict=True))
        for a in found
    ]
    objects = dict(zip(found[0].truth.classes, found[0].truth.objects, strict=True))
    rows = [
        {
            'name': name,
            'objects': objects.get(name, 0),
            'values': [of_run.get(name, absent) for of_run in values],
        }
        for name in dict.fromkeys(name for of_run in values for name in of_run)
    ]
    return sorted(rows, key=lambda row: -np.nan_to_num(row['values'][0][0], nan=-1.0))


def _error_rows(found: Sequence[Analysis]) -> list[dict[str, Any]]:
    """Return points lost and number of each kind of error in each run."""
    columns = []
    for errors in (analysis.errors for analysis in found):
        lost = 100 * np.array([*errors.cost, errors.false_positives, errors.false_negatives])
        numbers = [*errors.counts, sum(errors.counts[:-1]), '']
        columns.append(list(zip(lost, numbers, strict=True)))
    return [
        {'name': name, 'meaning': meaning, 'values': values}
        for (name, meaning), *values in zip(MEANINGS.items(), *columns, strict=True)
    ]


def _best(found: Sequence[Analysis]) -> list[float]:
    """Return the largest of each of COCO's figures where there are several runs, else NaN."""
    columns = np.nan_to_num([a.figures.twelve for a in found], nan=-1.0).max(0)
    return (columns if len(found) > 1 else np.full_like(columns, np.nan)).tolist()


def _changes(before: Shown, after: Shown) -> dict[str, Any]:
    """Return what differs between two runs."""
    config = config_changes(*(flattened(shown.run.config.to_dict()) for shown in (before, after)))
    content: dict[str, Any] = {
        'config': config[:MAX_CHANGES],
        'config_left': len(config[MAX_CHANGES:]),
    }
    if before.analysis is None or after.analysis is None:
        return content
    both = (before.analysis, after.analysis)
    worse, better = both_ends(class_changes(*both), MAX_CLASS_CHANGES)
    content.update(
        figures=figure_changes(*both),
        costs=cost_changes(*both),
        worse=worse,
        better=better,
        score=[analysis.working_score for analysis in both],
        worse_images=[],
        better_images=[],
    )
    if before.detections.truth_key == after.detections.truth_key:
        mistakes = [mistakes_of(analysis) for analysis in both]
        less, more = both_ends(image_changes(*both), MAX_IMAGE_CHANGES)
        for name, changes in (('worse_images', more), ('better_images', less)):
            content[name] = [
                [make_card(change.name, *pair) for pair in zip(both, mistakes, strict=True)]
                for change in changes
            ]
    return content


def _worst_images(found: Analysis, limit: int) -> list[Card]:
    mistakes = mistakes_of(found)
    images = choose(found.image_cost, mistakes, limit)
    return [make_card(image, found, mistakes) for image in images]


def _fill(content: Mapping[str, Any], thumbnails: Thumbnails) -> str:
    """Fill in the template; whatever comes from data is escaped."""
    compare = content['compare'] or {}
    changed = [*compare.get('worse_images', ()), *compare.get('better_images', ())]
    turns = zip_longest(*(run.cards for run in content['runs']))
    # of all runs the worst first, so that each has some
    for card in filter(None, chain(*changed, *turns)):
        card.thumbnail = thumbnails.add(card.path)
    return _template().render(
        content,
        library=Markup(_library()),
        thumbnails=thumbnails,
        nonce=secrets.token_urlsafe(16),
        version=__version__,
        commit=commit(),
        made=datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('evit_mm.report'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['short'] = short
    return environment.get_template('report.html.j2')


def short(text: str, length: int = 80) -> str:
    """Return a text, cut in its middle where it is long."""
    half = length // 2
    return text if len(text) <= length else f'{text[: half - 1]}…{text[-half:]}'


@cache
def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    return vl_convert.javascript_bundle()
