"""The table of a comparison, with the spread over seeds and a chart."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from mmengine.config import Config

from ..data.pipeline import PredictionPipeline
from ..evaluation.bootstrap import LEVEL, compare_runs
from ..runner.build import config_faults, load_detector
from ..utils.files import write_atomically, write_json
from ..utils.text import markdown_table
from .benchmark import median_and_quartiles, time_interleaved
from .benchmark.forms import eager
from .complexity import count_parameters, detector_macs
from .published_results import coco_of
from .recipes import row_label

# name in CocoMetric, name in the table
METRICS = {
    'mAP': 'AP',
    'mAP_50': 'AP50',
    'mAP_75': 'AP75',
    'mAP_s': 'S',
    'mAP_m': 'M',
    'mAP_l': 'L',
}
PREFIX = 'coco/bbox_'
MASK_METRICS = {'segm_mAP': 'mask AP', 'segm_mAP_50': 'mask AP50', 'segm_mAP_75': 'mask AP75'}
TIMED_ROUNDS = 20


@dataclass
class Row:
    """One row of the table: a backbone, or a backbone with a recipe.

    Attributes:
        name: NAME of ``configs/retinanet_NAME_coco.py``, with the recipe if there is one, or
            ``timm:NAME``.
        config: Config of the detector.
        metrics: COCO metrics of each finished run, as fractions.
        minutes: Training time of each finished run.
        failures: One sentence per failed run.
        weights: Checkpoint for the latency measurement, or None.
        params: Number of parameters of the whole detector.
        macs: Multiply-adds of the whole detector for one image.
        latency: Median and quartiles of the seconds for one image, from pixels in memory to boxes.
        base: For recipes, name of the base row.
        samples: For each finished run, AP in percent of resampled images, from
            :func:`~evit_mm.evaluation.bootstrap.resampled_ap`. Empty if the detections are unknown.
        searched: AP in percent of each learning rate of the search. NaN if the training failed.
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
    samples: list[np.ndarray] = field(default_factory=list)
    searched: dict[float, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Display name."""
        return row_label(self.name)

    @property
    def epochs(self) -> int | None:
        """Number of training epochs."""
        return self.config.get('train_cfg', {}).get('max_epochs')

    @property
    def published(self) -> tuple[float, ...]:
        """Published COCO metrics in percent; empty if there are none."""
        return coco_of(self.name)

    @property
    def ap(self) -> float:
        """Mean AP over the finished runs, or NaN without a finished run."""
        return mean(self.values('mAP')) if self.metrics else math.nan

    def values(self, metric: str) -> list[float]:
        """Return one metric of each run in percent; -1, for no such object, becomes NaN."""
        found = [100 * m[metric] for m in self.metrics if metric in m]
        return [value if value >= 0 else math.nan for value in found]

    @property
    def lr(self) -> float | None:
        """Learning rate."""
        return self.config.get('optim_wrapper', {}).get('optimizer', {}).get('lr')


def figures_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a row, given COCO's metrics as mmdet names them."""
    names = {PREFIX + name: name for name in METRICS} | {f'coco/{n}': n for n in MASK_METRICS}
    return {short: metrics[name] for name, short in names.items() if name in metrics}


def count_detector(row: Row, size: tuple[int, int]) -> None:
    """Set the parameters and multiply-adds of a row, for one image of ``(width, height)``."""
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
    """Set the latency of the rows that have weights, with interleaved timings on one image."""
    functions = {}
    for row in rows:
        if row.weights is None:
            continue
        model: Any = load_detector(row.config, row.weights)
        sample = PredictionPipeline(row.config)(image)
        batch = {'inputs': [sample['inputs']], 'data_samples': [sample['data_samples']]}
        functions[row.name] = eager(model.test_step, batch)
    seconds = time_interleaved(functions, TIMED_ROUNDS) if functions else {}
    for row in rows:
        if row.name in seconds:
            row.latency = median_and_quartiles(seconds[row.name])


def ranking(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the AP difference of each two rows in percent, its interval and the verdict."""
    ranked = sorted((row for row in rows if row.metrics), key=lambda row: -row.ap)
    return [
        {'better': better.name, 'worse': worse.name, **difference(better, worse)}
        for better, worse in combinations(ranked, 2)
    ]


def difference(row: Row, other: Row) -> dict[str, Any]:
    """Return the AP difference of two rows, its interval and the verdict.

    The interval covers the images and the seeds, or only the seeds if the detections of a row are
    unknown. With one seed, it covers only the images, and the verdict is None.
    """
    found = {'difference': row.ap - other.ap, 'low': None, 'high': None, 'verdict': None}
    one_seed = min(len(row.metrics), len(other.metrics)) < 2
    if one_seed and not (row.samples and other.samples):
        return found
    interval = compare_runs(row.values('mAP'), other.values('mAP'), row.samples, other.samples)
    verdict = None if one_seed else interval.verdict
    return {**found, 'low': interval.low, 'high': interval.high, 'verdict': verdict}


def write_tables(
    rows: list[Row],
    out: Path,
    about: Mapping[str, Any],
    published: bool = False,
    notices: Sequence[str] = (),
) -> list[Row]:
    """Write ``table.md``, ``table.json`` and ``table.png``; return the rows, best first.

    The paragraphs ``notices`` are printed above the table.
    """
    rows = sorted(rows, key=lambda row: -row.ap if row.metrics else math.inf)
    text = ''.join(f'{notice}\n\n' for notice in notices) + markdown(rows, about, published)
    write_atomically(out / 'table.md', text.encode())
    content = {
        **({'notices': list(notices)} if notices else {}),
        'about': dict(about),
        'rows': [_as_json(row) for row in rows],
        'ranking': ranking(rows),
    }
    write_json(out / 'table.json', content, indent=1)
    (out / 'table.png').unlink(missing_ok=True)  # an old chart would not match the table
    if any(row.metrics for row in rows):
        draw = _draw_recipes if any(row.base for row in rows) else _draw
        draw(rows, out / 'table.png', about)
    return rows


def markdown(rows: Sequence[Row], about: Mapping[str, Any], published: bool) -> str:
    """Return the table and the text below it as Markdown."""
    cells = [_cells(row, rows, published) for row in rows]
    facts = '; '.join(f'{key}: {_plain(value)}' for key, value in about.items())
    latency = ''
    if any(row.latency for row in rows):
        latency = (
            ' Latency is the time for one image, from pixels in memory to boxes: median '
            '(quartiles), with interleaved timings.'
        )
    lines = [
        *markdown_table(list(cells[0]), [list(row.values()) for row in cells]),
        '',
        'AP is in percent: mean over seeds ± standard deviation (number of runs). Other metrics '
        'are means over seeds. FLOPs are multiply-adds of the whole detector for one image.'
        + latency,
        '',
        f'{facts}.',
    ]
    failures = [f'- {row.label}, {failure}' for row in rows for failure in row.failures]
    if failures:
        lines += ['', 'Runs that failed:', '', *failures]
    lines += ['', *_search_lines(rows), *_ranking_lines(rows)]
    if published:
        lines += [
            '',
            'The published columns show RetinaNet, or Mask R-CNN if the row names it, on COCO '
            'val2017 after 12 epochs from ImageNet weights. These figures are from the papers, '
            'with the recipes of the papers, and were not measured here. The EfficientViT paper '
            'calls Single-Path NAS "SPOS". No AP is published for SPOS itself.',
        ]
    return '\n'.join(lines).rstrip() + '\n'


def _cells(row: Row, rows: Sequence[Row], published: bool) -> dict[str, str]:
    """Return the cells of a row by column heading."""
    masks = [m for m in MASK_METRICS if any(other.values(m) for other in rows)]
    cells = {
        'backbone': row.label,
        'AP': _spread(row.values('mAP')),
        **{METRICS[metric]: _mean(row.values(metric)) for metric in list(METRICS)[1:]},
        **{MASK_METRICS[metric]: _mean(row.values(metric)) for metric in masks},
        'params M': f'{row.params / 1e6:.2f}',
        'FLOPs G': f'{row.macs / 1e9:.2f}',
        'latency ms': _latency(row),
        'training min': _mean(row.minutes),
    }
    if any(other.searched for other in rows):
        cells['learning rate'] = f'{row.lr:g}'
    if len({other.epochs for other in rows}) > 1:
        cells['epochs'] = str(row.epochs)
    if row.base:
        cells['AP against the base'] = _against_base(row, rows)
    if published:
        figures = [f'{figure:.1f}' for figure in row.published]
        figures += ['-'] * (len(METRICS) - len(figures))
        for name, figure in zip(METRICS.values(), figures, strict=True):
            cells[f'{name} (COCO, published)'] = figure
        figures = [f'{figure:.1f}' for figure in coco_of(row.name, 'mask')] or ['-'] * 3
        for metric, figure in zip(MASK_METRICS, figures, strict=True):
            if metric in masks:
                cells[f'{MASK_METRICS[metric]} (COCO, published)'] = figure
    return cells


def _against_base(row: Row, rows: Sequence[Row]) -> str:
    """Return the difference to the base row, with its interval and the verdict."""
    if row.name == row.base:
        return 'the base'
    base = next((other for other in rows if other.name == row.base), None)
    if base is None or not base.metrics or not row.metrics:
        return '-'
    found = difference(row, base)
    return f'{_interval(found)}, {found["verdict"] or "one seed"}'


def _interval(found: Mapping[str, Any]) -> str:
    text = f'{found["difference"]:+.1f}'
    return text if found['low'] is None else f'{text} ({found["low"]:+.1f} to {found["high"]:+.1f})'


def _ranking_lines(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the ranking. Rows with a base have their verdicts in the table."""
    pairs = ranking(rows)
    if not any(pair['verdict'] for pair in pairs):
        unknown = 'so the spread over seeds is unknown and no difference is certain.'
        return [f'A row has one training, {unknown}'] if pairs else []
    known = all(row.samples for row in rows if row.metrics)
    what = 'the images (by bootstrap) and the seeds' if known else 'the seeds'
    lines = [
        f'Differences in AP have a {LEVEL:.0%} interval over {what} '
        "(by Student's t). A row leads or is behind if the interval does not contain 0. If two "
        'rows are equally good, one verdict in twenty is wrong.'
    ]
    if any(row.base for row in rows):
        return lines
    labels = {row.name: row.label for row in rows}
    titles = {
        'leads': 'Leads:',
        'undecided': 'Undecided:',
        None: 'Unknown, because a row has one training:',
    }
    listed: dict[str | None, list[str]] = {verdict: [] for verdict in titles}
    for pair in pairs:
        word = 'leads' if pair['verdict'] == 'leads' else 'and'
        pair_label = f'{labels[pair["better"]]} {word} {labels[pair["worse"]]}'
        listed[pair['verdict']].append(f'- {pair_label}: {_interval(pair)}')
    for verdict, title in titles.items():
        if listed[verdict]:
            lines += ['', title, '', *listed[verdict]]
    return lines


def _search_lines(rows: Sequence[Row]) -> list[str]:
    """Return the table of the learning rate search, with the chosen rates in bold."""
    searched = [row for row in rows if row.searched]
    if not searched:
        return []
    rates = sorted({rate for row in searched for rate in row.searched})
    cells = []
    edges = []
    for row in searched:
        figures = {rate: _mean([row.searched.get(rate, math.nan)]) for rate in rates}
        if row.lr in figures:
            figures[row.lr] = f'**{figures[row.lr]}**'
        if row.lr in (rates[0], rates[-1]) and len(rates) > 1:
            edges.append(row.label)
        cells.append([row.label, *figures.values()])
    lines = [
        'Search of the learning rate: AP of one short training for each rate. The best rate (bold) '
        'is used above.',
        '',
        *markdown_table(['backbone', *(f'{rate:g}' for rate in rates)], cells),
    ]
    if edges:
        lines += ['', f'At the edge of the search, so a better rate may exist: {", ".join(edges)}.']
    return [*lines, '']


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
        'learning_rate': row.lr,
        'searched': {f'{rate:g}': None if math.isnan(v) else v for rate, v in row.searched.items()},
        'failures': row.failures,
        'params': row.params,
        'macs': row.macs,
        'latency_seconds': row.latency
        and dict(zip(('median', 'q25', 'q75'), row.latency, strict=True)),
        'published_coco': row.published,
    }


def _draw(rows: Sequence[Row], path: Path, about: Mapping[str, Any]) -> None:
    """Draw AP over latency and over FLOPs, with the range over seeds as an error bar."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    for row in (row for row in rows if row.metrics):
        values = row.values('mAP')
        bar = [[row.ap - min(values)], [max(values) - row.ap]]
        marker = 'o' if row.name.startswith('evit') else 's'
        latency = 1000 * row.latency[0] if row.latency else math.nan
        for axis, place in zip(axes, (latency, row.macs / 1e9), strict=True):
            axis.errorbar(place, row.ap, yerr=bar, fmt=marker, capsize=3, label=row.label)
    axes[0].set_xlabel('latency of the detector, ms')
    axes[1].set_xlabel('FLOPs of the detector (multiply-adds), G')
    axes[0].set_ylabel(f'AP on {about.get("data", "val")}, %')
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.legend(*axes[1].get_legend_handles_labels(), loc='outside right center')
    figure.savefig(path, dpi=110)


def _draw_recipes(rows: Sequence[Row], path: Path, about: Mapping[str, Any]) -> None:
    """Draw the AP of each run as a dot, one line per row, with the range of each base shaded."""
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
