"""The page: what runs and their analyses say, as one HTML file that needs nothing else."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache, cached_property
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from .. import __version__
from ..errors import ConfigError
from ..evaluation.statistics import FIGURES, RATIO_NAMES, SIDE_NAMES
from ..evaluation.tide import KINDS, Errors
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
from .pictures import MAX_IMAGES, Box, Card, Thumbnails, choose, make_card, mistakes_of
from .runs import Run, flattened

MAX_BYTES = 5_000_000
MARGIN = 60_000  # what thumbnails and notes take beside their bytes
MAX_RUNS = 8
MAX_CLASSES = 100  # bars; the table has all
MAX_CHANGES = 60  # entries of a config
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
TITLES = {'loss': 'loss', 'lr': 'learning rate'}
HOW = {
    'loss': 'Training loss, mean of the last iterations: it should fall and level off.',
    'lr': 'Learning rate: warm-up and steps as the config asks for.',
    'parts': 'The parts of the loss: the one that stays high is what the detector finds hard.',
    'AP': 'AP on the validation set at each evaluation: still rising at the end means that longer '
    'training would pay.',
}


@dataclass
class Shown:
    """A run and what the page shows of it."""

    run: Run
    place: int
    analysis: Analysis | None
    checkpoint: str = ''
    truth_key: str = ''
    cards: list[Card] = field(default_factory=list)
    labels: list[tuple[int, str]] = field(default_factory=list)
    kinds: list[tuple[int, str]] = field(default_factory=list)
    confusion_how: str = ''
    changed: Sequence[Card] = ()

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    @property
    def notes(self) -> list[str]:
        """Sentences on what is missing."""
        return self.run.notes

    @property
    def colour(self) -> str:
        """The run's colour in the charts."""
        return charts.COLOURS[self.place % len(charts.COLOURS)]

    @property
    def headlines(self) -> list[tuple[str, float]]:
        """The figures that come first."""
        if self.analysis is not None:
            values = self.analysis.figures.twelve
            return [(name, values[i]) for i, (name, _) in enumerate(FIGURES[:3])]
        return [('AP as logged', self.run.best[1] if self.run.best else float('nan'))]

    @property
    def key_facts(self) -> list[tuple[str, str]]:
        """What to know at once."""
        facts, rows = self.run.facts(), []
        if self.run.best:
            step, value = self.run.best
            rows.append(('best evaluation', f'AP {value:.3f} after epoch {step}'))
        if self.analysis is not None:
            truth = self.analysis.truth
            counted = f'{len(truth.image_ids)} images, {truth.objects.sum()} objects'
            rows += [('shown checkpoint', self.checkpoint), ('validated on', counted)]
        names = ('state', 'training time', 'peak memory', 'seed')
        return [*rows, *((name, facts[name]) for name in names)]

    @cached_property
    def config_text(self) -> str:
        """The config, cut where it is very long."""
        text = self.run.config.pretty_text
        return text if len(text) <= MAX_TEXT else f'{text[:MAX_TEXT]}\n... (cut)'


def render(
    runs: Sequence[Shown],
    compare: bool = False,
    comparison: tuple[list[dict[str, Any]], str] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Make the page, with as many pictures as its size allows.

    Args:
        runs: What is shown, in order.
        compare: Say what changed from the first run to the second.
        comparison: What :func:`~evit_mm.report.comparison.read_table` returns.
        notes: Sentences on what is missing.

    Returns:
        HTML of less than 5 MB.

    Raises:
        ConfigError: There is too much for one page.
    """
    content = _content(runs, compare, comparison)
    limit = MAX_IMAGES // len(runs)
    while limit:
        for run in runs:
            _choose_images(run, limit)
        if compare:
            content['compare'].update(_changed_images(runs[0], runs[1]))
        bare = _fill(content, Thumbnails(0), notes)
        room = MAX_BYTES - MARGIN - len(bare.encode())
        if room > 0:
            thumbnails = Thumbnails(room)
            _add_thumbnails(runs, thumbnails)
            return _fill(content, thumbnails, [*notes, *_unreadable(thumbnails)])
        limit //= 2
    raise ConfigError('there is too much for a page of 5 MB; give fewer trainings')


def _content(
    runs: Sequence[Shown], compare: bool, comparison: tuple[list[dict[str, Any]], str] | None
) -> dict[str, Any]:
    """Return what the template takes, but for the pictures."""
    analysed = [run for run in runs if run.analysis is not None]
    specs: dict[str, Any] = {}
    content: dict[str, Any] = {
        'title': f'Training report: {", ".join(run.name for run in runs)}',
        'subtitle': _subtitle(runs),
        'runs': runs,
        'analysed': analysed,
        'charts': specs,
        'training': _training(runs, specs),
        'figure_names': FIGURES,
        'facts': _facts(runs),
        'compare': _changes(runs[0], runs[1]) if compare else None,
    }
    if analysed:
        _add_overviews(analysed, specs, content)
        for run in analysed:
            _add_details(run, specs, charts.MAX_CURVES // len(analysed))
    if comparison:
        content['comparison'] = _comparison(*comparison, specs)
    content['contents'] = [
        (place, text)
        for place, text, there in (
            ('summary', 'Summary', True),
            ('changes', 'What changed', compare),
            ('training', 'Training', True),
            ('classes', 'Classes', analysed),
            ('errors', 'Errors', analysed),
            ('confusion', 'Confusion', analysed),
            ('objects', 'Size and shape', analysed),
            ('calibration', 'Scores', analysed),
            ('images', 'Worst images', analysed),
            ('backbones', 'Backbones compared', comparison),
            ('made', 'How it was made', True),
        )
        if there
    ]
    return content


def _add_overviews(
    analysed: Sequence[Shown], specs: dict[str, Any], content: dict[str, Any]
) -> None:
    """Add what is drawn of all runs together."""
    found = {run.name: run.analysis for run in analysed}
    rows = _class_rows(found)
    shown = rows
    content['classes_note'] = ''
    if len(rows) > MAX_CLASSES:
        half = MAX_CLASSES // 2
        shown = rows[:half] + rows[-half:]
        content['classes_note'] = f' The best and the worst {half} of {len(rows)} are drawn.'
    content['class_rows'] = rows
    content['best'] = _best([a.figures.twelve for a in found.values()])
    content['error_rows'] = _error_rows([a.errors for a in found.values()])
    specs['classes'] = charts.class_bars(shown, list(found))
    specs['costs'] = charts.costs({name: a.errors.cost for name, a in found.items()})
    sizes = {name: a.figures.by_size for name, a in found.items()}
    shapes = {name: a.figures.by_ratio for name, a in found.items()}
    specs['sizes'] = charts.groups(sizes, 'area', SIDE_NAMES)
    specs['ratios'] = charts.groups(shapes, 'shape', RATIO_NAMES)
    specs['calibration'] = charts.reliability({name: a.calibration for name, a in found.items()})


def _add_details(run: Shown, specs: dict[str, Any], curves: int) -> None:
    """Add what is drawn of one run alone."""
    found = run.analysis
    classes = found.truth.classes
    specs[f'pr-{run.place}'] = charts.precision_recall(
        found.figures, classes, found.truth.objects, curves
    )
    specs[f'confusion-{run.place}'], number = charts.confusion_matrix(found.confusion, classes)
    run.confusion_how = (
        'Rows are what there is, columns what was detected (IoU 0.5, score from '
        f'{found.working_score:.2f}); a perfect detector has only the diagonal. The last column '
        'counts objects not found, the last row detections of nothing. Darker is a larger share '
        'of the row.'
    )
    if number < len(classes):
        run.confusion_how += (
            f' Shown are the {number} classes that are confused most, of {len(classes)}.'
        )


def _training(runs: Sequence[Shown], specs: dict[str, Any]) -> list[tuple[str, str]]:
    """Add the curves of the training; return each chart's name and how to read it."""
    shown = []
    for key in ('loss', 'lr'):
        series = {run.name: run.run.steps[key] for run in runs if run.run.steps.get(key)}
        if series:
            specs[key] = charts.curve(series, 'iteration', TITLES[key], False)
            shown.append((key, HOW[key]))
    parts = {
        key.removeprefix('loss_'): values
        for key, values in runs[0].run.steps.items()
        if len(runs) == 1 and key.startswith('loss_')
    }
    if len(parts) > 1:
        specs['parts'] = charts.curve(parts, 'iteration', 'loss', False)
        shown.append(('parts', HOW['parts']))
    if len(runs) == 1:
        names = {'bbox_mAP': 'AP', 'bbox_mAP_50': 'AP50', 'bbox_mAP_75': 'AP75'}
        logged = {key.rpartition('/')[2]: values for key, values in runs[0].run.evaluations.items()}
        series = {name: logged[key] for key, name in names.items() if logged.get(key)}
    else:
        series = {run.name: run.run.ap for run in runs if run.run.ap}
    if series:
        specs['ap'] = charts.curve(series, 'epoch', 'AP on the validation set', True)
        shown.append(('ap', HOW['AP']))
    return shown


def _class_rows(found: Mapping[str, Analysis]) -> list[dict[str, Any]]:
    """Return AP and AP50 of each class in each run, by falling AP of the first."""
    first = next(iter(found.values()))
    places = [{name: i for i, name in enumerate(a.truth.classes)} for a in found.values()]
    rows = []
    for name in dict.fromkeys(name for place in places for name in place):
        values: list[float | None] = []
        for place, analysis in zip(places, found.values(), strict=True):
            index = place.get(name)
            for column in (analysis.figures.ap, analysis.figures.ap50):
                values.append(None if index is None else float(column[index]))
        index = places[0].get(name)
        objects = 0 if index is None else int(first.truth.objects[index])
        rows.append({'name': name, 'objects': objects, 'values': values})
    return sorted(rows, key=lambda row: -np.nan_to_num(row['values'][0] or 0.0, nan=-1.0))


def _error_rows(errors: Sequence[Errors]) -> list[dict[str, Any]]:
    costs = [(*e.cost, e.false_positives, e.false_negatives) for e in errors]
    counts = [(*e.counts, sum(e.counts[:-1]), '') for e in errors]
    return [
        {
            'name': name,
            'meaning': meaning,
            'values': [(100 * c[i], n[i]) for c, n in zip(costs, counts, strict=True)],
        }
        for i, (name, meaning) in enumerate(MEANINGS.items())
    ]


def _best(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the largest of each column where there are several rows, else NaN."""
    columns = np.nan_to_num(np.array(rows), nan=-1.0)
    return columns.max(0).tolist() if len(rows) > 1 else [float('nan')] * columns.shape[1]


def _facts(runs: Sequence[Shown]) -> list[tuple[str, list[str]]]:
    facts = [run.run.facts() for run in runs]
    return [(name, [fact[name] for fact in facts]) for name in facts[0]]


def _subtitle(runs: Sequence[Shown]) -> str:
    if len(runs) == 1:
        return 'How the training went, what the detector finds, and where it fails.'
    return f'{len(runs)} trainings side by side: how they went, what they find, where they fail.'


def _changes(before: Shown, after: Shown) -> dict[str, Any]:
    """Return what differs between two runs, but for the pictures."""
    config = config_changes(
        flattened(before.run.config.to_dict()), flattened(after.run.config.to_dict())
    )
    content: dict[str, Any] = {
        'config': config[:MAX_CHANGES],
        'config_left': len(config) - len(config[:MAX_CHANGES]),
    }
    if before.analysis is None or after.analysis is None:
        return content
    worse, better = both_ends(class_changes(before.analysis, after.analysis))
    return {
        **content,
        'figures': figure_changes(before.analysis, after.analysis),
        'costs': cost_changes(before.analysis, after.analysis),
        'worse': worse,
        'better': better,
        'score': (before.analysis.working_score, after.analysis.working_score),
    }


def _comparison(
    rows: Sequence[Mapping[str, Any]], about: str, specs: dict[str, Any]
) -> dict[str, Any]:
    specs['latency'] = charts.comparison_scatter(rows, 'latency', 'latency of the detector, ms')
    specs['flops'] = charts.comparison_scatter(rows, 'flops', 'FLOPs (multiply-adds), G')
    how = 'Up and to the left is better; the bars are the range over the seeds.'
    return {'charts': [('latency', how), ('flops', how)], 'about': about}


def _choose_images(run: Shown, limit: int) -> None:
    """Choose the pictures of a run, and what they can be filtered by."""
    found = run.analysis
    if found is None:
        return
    mistakes = mistakes_of(found.truth, found.found, found.errors, found.working_score)
    run.cards = [
        make_card(image, found, mistakes) for image in choose(found.image_cost, mistakes, limit)
    ]
    pairs = {pair for card in run.cards for pair in card.mistakes}
    run.kinds = [(kind, KINDS[kind]) for kind in sorted({kind for kind, _ in pairs})]
    labels = sorted({label for _, label in pairs})
    run.labels = [(label, found.truth.classes[label]) for label in labels]


def _changed_images(before: Shown, after: Shown) -> dict[str, Any]:
    """Return the pictures whose mistakes cost more, and less, than before, in pairs."""
    shown: dict[str, Any] = {'worse_images': [], 'better_images': []}
    if before.truth_key and before.truth_key == after.truth_key:
        both = (before.analysis, after.analysis)
        mistakes = [mistakes_of(a.truth, a.found, a.errors, a.working_score) for a in both]
        for name, images in zip(shown, image_changes(*both), strict=True):
            for image in images:
                cards = [make_card(image, a, m) for a, m in zip(both, mistakes, strict=True)]
                shown[name].append(cards)
        pairs = shown['worse_images'] + shown['better_images']
        before.changed, after.changed = [a for a, _ in pairs], [b for _, b in pairs]
    return shown


def _add_thumbnails(runs: Sequence[Shown], thumbnails: Thumbnails) -> None:
    """Give cards their pictures; of all runs the worst first, so that each has some."""
    for run in runs:
        for card in run.changed:
            card.thumbnail = thumbnails.add(card.path)
    turns = max(len(run.cards) for run in runs)
    for turn in range(turns):
        for run in runs:
            for card in run.cards[turn : turn + 1]:
                card.thumbnail = thumbnails.add(card.path)


def _unreadable(thumbnails: Thumbnails) -> list[str]:
    if not thumbnails.unreadable:
        return []
    number, first = len(thumbnails.unreadable), thumbnails.unreadable[0]
    return [
        f'{number} of the images to show cannot be read, so only their boxes are drawn; the first '
        f"is '{first}'. Have the data moved?"
    ]


def _fill(content: Mapping[str, Any], thumbnails: Thumbnails, notes: Sequence[str]) -> str:
    """Fill in the template; whatever comes from data is escaped."""
    return _template().render(
        {'comparison': None, **content},
        library=Markup(_library()),
        thumbnails=thumbnails.addresses,
        notes=notes,
        nonce=secrets.token_urlsafe(16),
        version=__version__,
        commit=commit(),
        made=datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
    )


@cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader('evit_mm.report')
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(short=short, listed=listed, surer=surer)
    own = {
        name: Markup(loader.get_source(environment, file)[0])
        for name, file in (('style', 'style.css'), ('script', 'page.js'))
    }
    return environment.get_template('report.html.j2', globals=own)


def short(text: str, length: int = 80) -> str:
    """Return a text, cut in its middle where it is long."""
    half = length // 2
    return text if len(text) <= length else f'{text[: half - 1]}…{text[-half:]}'


def listed(items: Sequence[str]) -> str:
    """Return the first few of some texts, and how many more there are."""
    shown = ', '.join(items[:5])
    return shown + (f' and {len(items) - 5} more' if len(items) > 5 else '') or 'nothing'


def surer(boxes: Sequence[Box], score: float) -> list[Box]:
    """Return the boxes from a score on."""
    return [box for box in boxes if box.score is None or box.score >= score]


@cache
def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    return vl_convert.javascript_bundle()
