"""The page: what runs and their analyses say, as one HTML file that needs nothing else."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import chain, zip_longest
from typing import Any

import jinja2
import numpy as np

from .. import __version__
from ..evaluation.coco_eval import FIGURES
from ..evaluation.tide import KINDS
from ..utils.provenance import commit
from . import changes, charts
from .analysis import Analysis
from .detections import Detections
from .pictures import Card, add_thumbnails, worst_cards
from .runs import Run

MAX_BYTES = 5_000_000
MARGIN = 60_000  # what thumbnails and notes take beside their bytes
MAX_RUNS = 8
MAX_IMAGES = 90
MAX_BARS = 80  # classes; the table has all
ABSENT = (0, float('nan'), float('nan'))
# name, hotcoco's name, meaning
ERRORS = (
    ('classification', 'Cls', 'found, but given the wrong class'),
    ('localisation', 'Loc', 'right class, but the box fits too badly (IoU 0.1 to 0.5)'),
    ('both', 'Both', 'wrong class and a badly fitting box'),
    ('duplicate', 'Dupe', 'an object that a surer detection has found already'),
    ('background', 'Bkg', 'there is no object'),
    ('missed', 'Miss', 'an object that nothing found, not even badly'),
    ('all false detections', 'FP', 'as if every false detection went'),
    ('all unfound objects', 'FN', 'as if no unfound object were counted'),
)
HOW = {
    'loss': 'Training loss, mean of the last iterations: it should fall and level off.',
    'lr': 'Learning rate: warm-up and steps as the config asks for.',
    'parts': 'The parts of the loss: the one that stays high is what the detector finds hard.',
    'ap': 'AP on the validation set at each evaluation: still rising at the end means that longer '
    'training would pay.',
}


@dataclass
class Shown:
    """A run and what the page shows of it; without detections there is no analysis."""

    run: Run
    colour: str
    detections: Detections | None = None
    analysis: Analysis | None = None
    cards: list[Card] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name


def render(runs: Sequence[Shown], compare: bool = False) -> str:
    """Return the page's HTML, with as many pictures as its size allows."""
    analysed = [run for run in runs if run.analysis is not None]
    for run in runs:
        if run.analysis is not None:
            run.cards = worst_cards(run.analysis, MAX_IMAGES // len(runs))
    content = {
        'runs': runs,
        'analysed': analysed,
        'training': _training_charts(runs),
        'how': HOW,
        'figure_names': FIGURES,
        'kinds': KINDS,
        'facts': [run.run.facts() for run in runs],
        'compare': _changes(*runs) if compare else None,
        **(_findings(analysed) if analysed else {}),
    }
    room = MAX_BYTES - MARGIN - len(_fill(content, [], []).encode())
    # of all runs the worst images first, so that each has some pictures
    cards = filter(None, chain(*zip_longest(*(run.cards for run in runs))))
    changed = content['compare'].get('cards', ()) if compare else ()
    return _fill(content, *add_thumbnails([*chain(*changed), *cards], room))


def _training_charts(runs: Sequence[Shown]) -> dict[str, str]:
    """Return the curves of the training; of a single run also those of its loss's parts."""
    steps = {run.name: run.run.steps for run in runs}
    parts = {}
    if len(runs) == 1:
        of_run = runs[0].run.steps
        parts = {k.removeprefix('loss_'): v for k, v in of_run.items() if k.startswith('loss_')}
    drawn: dict[str, str] = {}
    for name, series, x, y in (
        ('loss', {run: v.get('loss') for run, v in steps.items()}, 'iteration', 'loss'),
        ('lr', {run: v.get('lr') for run, v in steps.items()}, 'iteration', 'learning rate'),
        ('parts', parts if len(parts) > 1 else {}, 'iteration', 'loss'),
        ('ap', {run.name: run.run.ap for run in runs}, 'epoch', 'AP on the validation set'),
    ):
        if any(series.values()):
            drawn[name] = charts.lines(series, x, y, marker='o' if name == 'ap' else '')
    return drawn


def _findings(runs: Sequence[Shown]) -> dict[str, Any]:
    """Return what the template takes of runs with detections."""
    found = {run.name: run.analysis for run in runs if run.analysis is not None}
    colours = [run.colour for run in runs]
    of_classes = [analysis.of_classes for analysis in found.values()]
    first = {name: np.nan_to_num(ap, nan=-1.0) for name, (_, ap, _) in of_classes[0].items()}
    names = sorted(dict.fromkeys(chain(*of_classes)), key=lambda name: -first.get(name, -1.0))
    drawn = names[-MAX_BARS:]
    ap = {
        run: [own.get(name, ABSENT)[1] for name in drawn]
        for run, own in zip(found, of_classes, strict=True)
    }
    costs = {run: analysis.costs for run, analysis in found.items()}
    bins = {run: analysis.calibration['bins'] for run, analysis in found.items()}
    scores = {
        run: [(part['avg_confidence'], part['avg_accuracy']) for part in parts if part['count']]
        for run, parts in bins.items()
    }
    return {
        'best': np.fmax.reduce([analysis.figures.twelve for analysis in found.values()]),
        'class_names': names,
        'of_classes': of_classes,
        'absent': ABSENT,
        'num_drawn': len(drawn),
        'errors': ERRORS,
        'classes_chart': charts.bars(drawn, ap, 'AP', 3, colours),
        'costs_chart': charts.bars(KINDS, costs, 'AP50 points lost', 2, colours),
        'scores_chart': charts.lines(
            scores, 'mean score', 'share that is right', colours, marker='o', diagonal=True
        ),
        'recall_charts': [_recall_chart(analysis) for analysis in found.values()],
        'confusion_charts': [
            charts.confusion_matrix(analysis.confusion, analysis.truth.classes)
            for analysis in found.values()
        ],
        'max_confused': charts.MAX_CONFUSED,
    }


def _recall_chart(analysis: Analysis) -> str:
    recall = np.linspace(0, 1, 101)
    curves = {
        f'IoU {iou}': list(zip(recall, values, strict=True))
        for iou, values in analysis.figures.curves.items()
    }
    return charts.lines(curves, 'recall', 'precision')


def _changes(before: Shown, after: Shown) -> dict[str, Any]:
    """Return what differs between two runs."""
    content: dict[str, Any] = {'config': changes.config_diff(before.run, after.run)}
    if before.analysis is not None and after.analysis is not None:
        both = (before.analysis, after.analysis)
        worse, better = changes.image_changes(*both)
        content.update(
            figures=changes.figure_changes(*both),
            costs=changes.cost_changes(*both),
            classes=changes.class_changes(*both),
            score=[analysis.working_score for analysis in both],
            worse=worse,
            better=better,
            cards=worse + better,
        )
    return content


def _fill(content: Mapping[str, Any], thumbnails: Sequence[str], unreadable: Sequence[Any]) -> str:
    """Fill in the template; whatever comes from data is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('evit_mm.report'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['short'] = charts.short
    return environment.get_template('report.html.j2').render(
        content,
        thumbnails=thumbnails,
        unreadable=unreadable,
        nonce=secrets.token_urlsafe(16),
        version=__version__,
        commit=commit(),
        made=datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
    )
