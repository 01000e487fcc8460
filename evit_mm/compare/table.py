"""The table of a comparison: what was measured, how sure it is, and its picture."""

from __future__ import annotations

import copy
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device

from ..errors import EvitError
from ..runner.build import config_faults, load_detector
from ..utils.text import markdown_table
from .benchmark import median_and_quartiles, time_interleaved
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


@dataclass
class Row:
    """One backbone of the table.

    Attributes:
        name: NAME of ``configs/retinanet_NAME_coco.py``.
        config: The detector's config.
        metrics: COCO's figures of each finished run, as fractions.
        minutes: Training time of each finished run.
        failures: One sentence per run that failed or could not be timed.
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
    label: str = field(init=False)

    def __post_init__(self) -> None:
        self.label = row_label(self.name)

    def values(self, metric: str) -> list[float]:
        """Return one figure of each run, in percent; COCO's -1 (no such object) becomes NaN."""
        found = [100 * m[metric] for m in self.metrics if metric in m]
        return [value if value >= 0 else math.nan for value in found]

    @property
    def ap(self) -> float:
        """Mean AP over the finished runs, NaN where there is none."""
        return mean(self.values('mAP')) if self.metrics else math.nan


def count_detector(row: Row, size: tuple[int, int]) -> None:
    """Fill in a row's parameters and multiply-adds for one image of ``(width, height)``.

    Raises:
        ConfigError: The config's model cannot be built.
    """
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
        try:
            model = load_detector(row.config, row.weights)
        except EvitError as error:  # the figures are there all the same
            row.failures.append(f'not timed: {error}')
            continue
        pipeline = row.config.test_dataloader.dataset.pipeline
        steps = [step for step in pipeline if step.type != 'LoadAnnotations']
        sample = Compose(steps)({'img_path': str(image), 'img_id': 0})
        batch = {'inputs': [sample['inputs']], 'data_samples': [sample['data_samples']]}
        functions[row.name] = _prediction(model, batch)
    seconds = time_interleaved(functions, TIMED_ROUNDS) if functions else {}
    for row in rows:
        if row.name in seconds:
            row.latency = median_and_quartiles(seconds[row.name])


def _prediction(model: Any, batch: Mapping[str, Any]) -> Callable[[], Any]:
    def predict() -> Any:
        with torch.inference_mode():
            return model.test_step(batch)

    return predict


def ranking(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Say of every two rows whether their difference exceeds the spread over seeds.

    It does where the ranges do not overlap: the worst run of one is better than the best of the
    other. With one seed nothing can be said.

    Returns:
        Per pair ``better``, ``worse``, ``difference`` (mean AP, percent) and ``exceeds_spread``
        (None where a row has fewer than two runs).
    """
    pairs = []
    ranked = sorted((row for row in rows if row.metrics), key=lambda row: -row.ap)
    for better, worse in combinations(ranked, 2):
        exceeds = None
        if min(len(better.metrics), len(worse.metrics)) > 1:
            exceeds = min(better.values('mAP')) > max(worse.values('mAP'))
        pairs.append(
            {
                'better': better.name,
                'worse': worse.name,
                'difference': better.ap - worse.ap,
                'exceeds_spread': exceeds,
            }
        )
    return pairs


def write_tables(
    rows: list[Row],
    out: Path,
    about: Mapping[str, Any],
    notes: Sequence[str] = (),
    published: bool = False,
) -> list[Row]:
    """Write ``table.md``, ``table.json`` and ``table.png``; return the rows, best first."""
    rows = sorted(rows, key=lambda row: -row.ap if row.metrics else math.inf)
    about = {**about, **_machine()}
    text = markdown(rows, about, notes, published)
    (out / 'table.md').write_text(text, encoding='utf-8')
    content = {
        'about': about,
        'notes': list(notes),
        'rows': [_as_json(row) for row in rows],
        'ranking': ranking(rows),
    }
    (out / 'table.json').write_text(json.dumps(content, indent=1))
    (out / 'table.png').unlink(missing_ok=True)  # not to leave an older one beside this table
    if any(row.metrics for row in rows):
        draw = _draw_recipes if any(row.base for row in rows) else _draw
        draw(rows, out / 'table.png', about)
    return rows


def markdown(
    rows: Sequence[Row], about: Mapping[str, Any], notes: Sequence[str], published: bool
) -> str:
    """Return the table with what it says about itself, as Markdown."""
    columns = ['backbone', *METRICS.values(), 'params M', 'FLOPs G', 'latency ms', 'training min']
    extra = {**_epochs_column(rows), **_base_column(rows)}
    columns += extra
    if published:
        columns += [f'{name} (COCO, published)' for name in METRICS.values()]
    body = []
    for row in rows:
        cells = [row.label, _spread(row.values('mAP'))]
        cells += [_mean(row.values(m)) for m in list(METRICS)[1:]]
        cells += [f'{row.params / 1e6:.2f}', f'{row.macs / 1e9:.2f}', _latency(row)]
        cells.append(_mean(row.minutes))
        cells += [column[row.name] for column in extra.values()]
        if published:
            figures = PUBLISHED[row.name].coco if row.name in PUBLISHED else ()
            cells += [f'{figure:.1f}' for figure in figures]
            cells += ['-'] * (len(columns) - len(cells))
        body.append(cells)
    facts = '; '.join(f'{key}: {_plain(value)}' for key, value in about.items())
    lines = [
        *markdown_table(columns, body),
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
    lines += [*(f'\nNote: {note}.' for note in notes), '', *_ranking_lines(rows)]
    if published:
        lines += [
            '',
            'The published columns are RetinaNet on COCO val2017 after 12 epochs from ImageNet '
            'weights, taken from the papers and not measured here, with the recipes of the papers. '
            'What the EfficientViT paper calls "SPOS" is Single-Path NAS; for SPOS itself no AP is '
            'published.',
        ]
    return '\n'.join(lines).rstrip() + '\n'


def _epochs_column(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Return the rows' epochs where they differ: those rows had not the same budget."""
    epochs = {row.name: str(row.config.get('train_cfg', {}).get('max_epochs')) for row in rows}
    return {'epochs': epochs} if len({*epochs.values()}) > 1 else {}


def _base_column(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Return what each row adds to its base, and whether that exceeds the spread."""
    if not any(row.base for row in rows):
        return {}
    words = {True: 'exceeds the spread', False: 'within the spread', None: 'one seed'}
    found = {row.name: 'the base' if row.name == row.base else '-' for row in rows}
    for pair in _shown_pairs(rows):
        ahead = pair['worse'] in {row.base for row in rows if row.name == pair['better']}
        name, sign = (pair['better'], 1) if ahead else (pair['worse'], -1)
        found[name] = f'{sign * pair["difference"]:+.1f}, {words[pair["exceeds_spread"]]}'
    return {'AP against the base': found}


def _shown_pairs(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the ranking; of rows that have a base, only the pairs with it."""
    bases = {row.name: row.base for row in rows}
    return [
        pair
        for pair in ranking(rows)
        if not any(bases.values())
        or bases[pair['worse']] == pair['better']
        or bases[pair['better']] == pair['worse']
    ]


def _ranking_lines(rows: Sequence[Row]) -> list[str]:
    pairs = _shown_pairs(rows)
    known = [pair for pair in pairs if pair['exceeds_spread'] is not None]
    if not known:
        unknown = 'One seed: no spread is known, so no difference here is certain.'
        return [unknown] if pairs else []
    labels = {row.name: row.label for row in rows}
    listed: dict[bool, list[str]] = {True: [], False: []}
    for pair in known:
        better, worse = labels[pair['better']], labels[pair['worse']]
        listed[pair['exceeds_spread']].append(
            f'- {better} over {worse}: {pair["difference"]:+.1f} AP'
        )
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


def _machine() -> dict[str, Any]:
    import mmcv
    import mmdet

    on_gpu = get_device() == 'cuda'
    return {
        'device': torch.cuda.get_device_name() if on_gpu else f'CPU, {platform.machine()}',
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'mmcv': mmcv.__version__,
        'mmdet': mmdet.__version__,
    }


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
        'published_coco': PUBLISHED[row.name].coco if row.name in PUBLISHED else (),
    }


def _draw(rows: Sequence[Row], path: Path, about: Mapping[str, Any]) -> None:
    """Draw AP against latency and against FLOPs, with the range over seeds as a bar."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.metrics]
    latencies = {row.name: 1000 * row.latency[0] for row in shown if row.latency}
    panels = {
        'latency of the detector, ms': latencies,
        'FLOPs of the detector (multiply-adds), G': {row.name: row.macs / 1e9 for row in shown},
    }
    figure = Figure(figsize=(11, 4.5), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (label, places) in zip(axes, panels.items(), strict=True):
        for index, row in enumerate(shown):
            if row.name not in places:
                continue
            place, values = places[row.name], row.values('mAP')
            bar = [[row.ap - min(values)], [max(values) - row.ap]]
            marker = 'o' if row.name.startswith('evit') else 's'
            axis.errorbar(place, row.ap, yerr=bar, fmt=marker, capsize=3, color=f'C{index % 10}')
            right_half = 2 * place > min(places.values()) + max(places.values())
            axis.annotate(
                row.label,
                (place, row.ap),
                xytext=(-7 if right_half else 7, 4),  # labels point inwards
                textcoords='offset points',
                ha='right' if right_half else 'left',
            )
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.margins(x=0.15)
    axes[0].set_ylabel(f'AP on {about.get("data", "val")}, %')
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
