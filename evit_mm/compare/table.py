"""The table of a comparison: what was measured, how sure it is, and its picture."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mmengine.config import Config

from ..runner.build import config_faults, load_detector
from ..utils.text import markdown_table
from .benchmark import median_and_quartiles, time_interleaved
from .benchmark.forms import eager
from .complexity import count_parameters, detector_macs
from .published_results import PUBLISHED
from .recipes import row_label

# As COCO's metric calls them, and as the table does.
METRICS = {
    'mAP': 'AP',
    'mAP_50': 'AP50',
    'mAP_75': 'AP75',
    'mAP_s': 'S',
    'mAP_m': 'M',
    'mAP_l': 'L',
}
TIMED_ROUNDS = 20
SPREAD = {True: 'exceeds the spread', False: 'within the spread', None: 'one seed'}


@dataclass
class Row:
    """One backbone of the table.

    Attributes:
        name: NAME of ``configs/retinanet_NAME_coco.py``, and the recipe if there is one.
        config: The detector's config.
        metrics: COCO's figures of each finished run, as fractions.
        minutes: Training time of each finished run.
        failures: One sentence per run that failed.
        weights: Checkpoint to time it with, if there is one.
        params: Parameters of the whole detector.
        macs: Multiply-adds of the whole detector for one image at the table's scale.
        latency: Seconds for one image, from pixels in memory to boxes: median and quartiles.
        base: Name of the row that this one is set against, for recipes.
    """

    name: str
    config: Config
    metrics: list[dict[str, float]] = field(default_factory=list)
    minutes: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    weights: Path | None = None
    params: int = 0
    macs: int = 0
    latency: tuple[float, float, float] | None = None
    base: str | None = None

    @property
    def label(self) -> str:
        """Name for people."""
        return row_label(self.name)

    @property
    def epochs(self) -> int | None:
        """Epochs of its trainings."""
        return self.config.get('train_cfg', {}).get('max_epochs')

    @property
    def published(self) -> tuple[float, ...]:
        """COCO's figures as published, in percent; empty where there are none."""
        return PUBLISHED[self.name].coco if self.name in PUBLISHED else ()

    @property
    def ap(self) -> float:
        """Mean AP over the finished runs, NaN where there is none."""
        return mean(self.values('mAP')) if self.metrics else math.nan

    def values(self, metric: str) -> list[float]:
        """Return one figure of each run, in percent; COCO's -1 (no such object) becomes NaN."""
        found = [100 * m[metric] for m in self.metrics if metric in m]
        return [value if value >= 0 else math.nan for value in found]


def count_detector(row: Row, size: tuple[int, int]) -> None:
    """Fill in a row's parameters and multiply-adds for one image of ``(width, height)``."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    cfg = copy.deepcopy(row.config.model)
    cfg.backbone.init_cfg = None
    with config_faults(row.config):
        model = MODELS.build(cfg)
    row.params = count_parameters(model)
    row.macs = sum(detector_macs(model, size[1], size[0]).values())


def add_latency(rows: Sequence[Row], image: Path) -> None:
    """Time the rows that have weights, in turns, on one image."""
    from mmcv.transforms import Compose

    functions = {}
    for row in rows:
        if row.weights is None:
            continue
        model: Any = load_detector(row.config, row.weights)
        pipeline = row.config.test_dataloader.dataset.pipeline
        steps = [step for step in pipeline if step.type != 'LoadAnnotations']
        sample = Compose(steps)({'img_path': str(image), 'img_id': 0})
        batch = {'inputs': [sample['inputs']], 'data_samples': [sample['data_samples']]}
        functions[row.name] = eager(model.test_step, batch)
    seconds = time_interleaved(functions, TIMED_ROUNDS) if functions else {}
    for row in rows:
        if row.name in seconds:
            row.latency = median_and_quartiles(seconds[row.name])


def ranking(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Say of every two rows what their difference is, and whether it exceeds the spread."""
    ranked = sorted((row for row in rows if row.metrics), key=lambda row: -row.ap)
    return [
        {
            'better': better.name,
            'worse': worse.name,
            'difference': better.ap - worse.ap,  # percent
            'exceeds_spread': exceeds_spread(better, worse),
        }
        for better, worse in combinations(ranked, 2)
    ]


def exceeds_spread(better: Row, worse: Row) -> bool | None:
    """Say whether the worst run of one is better than the best of the other.

    With one seed nothing can be said, and None is returned.
    """
    if min(len(better.metrics), len(worse.metrics)) < 2:
        return None
    return min(better.values('mAP')) > max(worse.values('mAP'))


def write_tables(
    rows: list[Row], out: Path, about: Mapping[str, Any], published: bool = False
) -> list[Row]:
    """Write ``table.md``, ``table.json`` and ``table.png``; return the rows, best first."""
    rows = sorted(rows, key=lambda row: -row.ap if row.metrics else math.inf)
    (out / 'table.md').write_text(markdown(rows, about, published), encoding='utf-8')
    content = {
        'about': dict(about),
        'rows': [_as_json(row) for row in rows],
        'ranking': ranking(rows),
    }
    (out / 'table.json').write_text(json.dumps(content, indent=1))
    (out / 'table.png').unlink(missing_ok=True)  # not to leave an older one beside this table
    if any(row.metrics for row in rows):
        draw = _draw_recipes if any(row.base for row in rows) else _draw
        draw(rows, out / 'table.png', about)
    return rows


def markdown(rows: Sequence[Row], about: Mapping[str, Any], published: bool) -> str:
    """Return the table with what it says about itself, as Markdown."""
    cells = [_cells(row, rows, published) for row in rows]
    facts = '; '.join(f'{key}: {_plain(value)}' for key, value in about.items())
    lines = [
        *markdown_table(list(cells[0]), [list(row.values()) for row in cells]),
        '',
        'AP in percent: mean over seeds ± standard deviation (number of runs); other figures: mean '
        'over seeds. FLOPs: multiply-adds of the whole detector for an image. Latency: from pixels '
        'in memory to boxes, one image, median (quartiles), all backbones timed in turns.',
        '',
        f'{facts}.',
    ]
    failures = [f'- {row.label}, {failure}' for row in rows for failure in row.failures]
    if failures:
        lines += ['', 'Runs that failed:', '', *failures]
    lines += ['', *_ranking_lines(rows)]
    if published:
        lines += [
            '',
            'The published columns are RetinaNet on COCO val2017 after 12 epochs from ImageNet '
            'weights, taken from the papers and not measured here, with the recipes of the papers. '
            'What the EfficientViT paper calls "SPOS" is Single-Path NAS; for SPOS itself no AP is '
            'published.',
        ]
    return '\n'.join(lines).rstrip() + '\n'


def _cells(row: Row, rows: Sequence[Row], published: bool) -> dict[str, str]:
    """Return a row's cells by the headings of their columns."""
    cells = {
        'backbone': row.label,
        'AP': _spread(row.values('mAP')),
        **{METRICS[metric]: _mean(row.values(metric)) for metric in list(METRICS)[1:]},
        'params M': f'{row.params / 1e6:.2f}',
        'FLOPs G': f'{row.macs / 1e9:.2f}',
        'latency ms': _latency(row),
        'training min': _mean(row.minutes),
    }
    if len({other.epochs for other in rows}) > 1:  # those rows had not the same budget
        cells['epochs'] = str(row.epochs)
    if row.base:
        cells['AP against the base'] = _against_base(row, rows)
    if published:
        figures = [f'{figure:.1f}' for figure in row.published]
        figures += ['-'] * (len(METRICS) - len(figures))
        for name, figure in zip(METRICS.values(), figures, strict=True):
            cells[f'{name} (COCO, published)'] = figure
    return cells


def _against_base(row: Row, rows: Sequence[Row]) -> str:
    """Say what a row adds to its base, and whether that exceeds the spread."""
    if row.name == row.base:
        return 'the base'
    base = next((other for other in rows if other.name == row.base), None)
    if base is None or not base.metrics or not row.metrics:
        return '-'
    better, worse = (row, base) if row.ap > base.ap else (base, row)
    return f'{row.ap - base.ap:+.1f}, {SPREAD[exceeds_spread(better, worse)]}'


def _ranking_lines(rows: Sequence[Row]) -> list[str]:
    """Return what the ranking says; of rows that have a base, only the pairs with it."""
    bases = {row.name: row.base for row in rows}
    labels = {row.name: row.label for row in rows}
    listed: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for pair in ranking(rows):
        better, worse = pair['better'], pair['worse']
        if not any(bases.values()) or bases[better] == worse or bases[worse] == better:
            line = f'- {labels[better]} over {labels[worse]}: {pair["difference"]:+.1f} AP'
            listed[pair['exceeds_spread']].append(line)
    if not listed[True] and not listed[False]:
        unknown = 'One seed: no spread is known, so no difference here is certain.'
        return [unknown] if listed[None] else []
    return [
        'Differences that exceed the spread over seeds (no run of the one reaches the other):',
        '',
        *(listed[True] or ['- none']),
        '',
        'Differences within the spread, that is, undecided here:',
        '',
        *(listed[False] or ['- none']),
    ]


def _mean(values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    return f'{mean(known):.1f}' if known else '-'


def _spread(values: Sequence[float]) -> str:
    if not values:
        return 'failed'
    text = f'{mean(values):.1f}'
    return f'{text} ± {stdev(values):.1f} ({len(values)})' if len(values) > 1 else f'{text} (1)'


def _latency(row: Row) -> str:
    if row.latency is None:
        return '-'
    middle, low, high = (1000 * value for value in row.latency)
    return f'{middle:.1f} ({low:.1f}-{high:.1f})'


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ', '.join(map(str, value))
    if isinstance(value, Mapping):
        return ', '.join(f'{k}={v}' for k, v in value.items()) or 'none'
    return str(value)


def _as_json(row: Row) -> dict[str, Any]:
    return {
        'name': row.name,
        'label': row.label,
        'runs': row.metrics,
        'AP': None if math.isnan(row.ap) else row.ap,
        'minutes': row.minutes,
        'failures': row.failures,
        'params': row.params,
        'macs': row.macs,
        'latency_seconds': row.latency
        and dict(zip(('median', 'q25', 'q75'), row.latency, strict=True)),
        'published_coco': row.published,
    }


def _draw(rows: Sequence[Row], path: Path, about: Mapping[str, Any]) -> None:
    """Draw AP against latency and against FLOPs, with the range over seeds as a bar."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    for index, row in enumerate(row for row in rows if row.metrics):
        values = row.values('mAP')
        bar = [[row.ap - min(values)], [max(values) - row.ap]]
        marker = 'o' if row.name.startswith('evit') else 's'
        latency = 1000 * row.latency[0] if row.latency else math.nan
        for axis, place in zip(axes, (latency, row.macs / 1e9), strict=True):
            axis.errorbar(place, row.ap, yerr=bar, fmt=marker, capsize=3, color=f'C{index % 10}')
            if not math.isnan(place):
                axis.annotate(row.label, (place, row.ap), xytext=(7, 4), textcoords='offset points')
    axes[0].set_xlabel('latency of the detector, ms')
    axes[1].set_xlabel('FLOPs of the detector (multiply-adds), G')
    axes[0].set_ylabel(f'AP on {about.get("data", "val")}, %')
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.margins(x=0.15)
    figure.savefig(path, dpi=110)


def _draw_recipes(rows: Sequence[Row], path: Path, about: Mapping[str, Any]) -> None:
    """Draw each run's AP as a dot, a line per row, and the range of each base over all of them."""
    from matplotlib.figure import Figure

    shown = [row for row in reversed(rows) if row.metrics]
    figure = Figure(figsize=(9, 1.5 + 0.35 * len(shown)), layout='constrained')
    axis = figure.subplots()
    for row in shown:
        values = row.values('mAP')
        is_base = row.name == row.base
        if is_base:
            axis.axvspan(min(values), max(values), color='C0', alpha=0.15)
        axis.plot(values, [row.label] * len(values), 'o', color='C0' if is_base else 'C1')
        axis.plot(row.ap, row.label, '|', color='black', markersize=16)
    axis.set_xlabel(f'AP on {about.get("data", "val")}, %: runs, and their mean; shaded: the base')
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
