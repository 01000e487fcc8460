"""The report page: runs and their analyses as one self-contained HTML file."""

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
from ..utils.text import counted
from . import changes, charts
from .analysis import Analysis
from .detections import Detections
from .pictures import MAX_BOXES, Card, add_thumbnails, worst_cards
from .runs import Run

MAX_BYTES = 5_000_000
MARGIN = 60_000  # bytes for the markup of thumbnails and notes
MAX_RUNS = 8
MAX_IMAGES = 90
MAX_BARS = 80  # classes in the chart; the table contains all classes
ABSENT = (0, float('nan'), float('nan'))
# name, name in hotcoco, meaning
ERRORS = (
    ('classification', 'Cls', 'the box is correct, but the class is wrong'),
    ('localisation', 'Loc', 'the class is correct, but the box is inaccurate (IoU 0.1 to 0.5)'),
    ('both', 'Both', 'the class is wrong and the box is inaccurate (IoU 0.1 to 0.5)'),
    ('duplicate', 'Dupe', 'a detection with a higher score has found the same object'),
    ('background', 'Bkg', 'there is no object (IoU below 0.1)'),
    ('missed', 'Miss', 'no detection found the object, not even with a wrong class or box'),
    ('all false detections', 'FP', 'the gain if all false detections were removed'),
    ('all missed objects', 'FN', 'the gain if no missed object were counted'),
)
HOW = {
    'loss': 'Training loss, averaged over the last iterations. It should fall and then level off.',
    'lr': 'Learning rate at each iteration.',
    'parts': 'Components of the loss. A component that stays high is difficult for the detector.',
    'ap': 'AP on the validation set at each evaluation. If it rises until the end, train longer.',
}


@dataclass
class Shown:
    """A run and its content on the page; the analysis needs detections."""

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
    """Return the HTML of the page, with as many pictures as the size limit allows."""
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
        'max_boxes': MAX_BOXES,
        'facts': [run.run.facts() for run in runs],
        'compare': _changes(*runs) if compare else None,
        **(_findings(analysed) if analysed else {}),
    }
    room = MAX_BYTES - MARGIN - len(_fill(content, [], []).encode())
    # alternate between the runs, so that each run has pictures
    cards = filter(None, chain(*zip_longest(*(run.cards for run in runs))))
    changed = content['compare'].get('cards', ()) if compare else ()
    return _fill(content, *add_thumbnails([*chain(*changed), *cards], room))


def _training_charts(runs: Sequence[Shown]) -> dict[str, str]:
    """Return the training curves; for a single run, also the components of the loss."""
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
    """Return the template variables for runs with detections."""
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
            scores, 'mean score', 'share of correct detections', colours, marker='o', diagonal=True
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
    """Return the differences between two runs."""
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
    """Render the template; all data are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('evit_mm.report'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['short'] = charts.short
    environment.filters['counted'] = counted
    return environment.get_template('report.html.j2').render(
        content,
        thumbnails=thumbnails,
        unreadable=unreadable,
        nonce=secrets.token_urlsafe(16),
        version=__version__,
        commit=commit(),
        made=datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
    )
