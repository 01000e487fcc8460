"""Pictures of attention: heat over the image, and the matrices of how alike heads are.

Shapes: h heads, H x W a block's map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .maps import BlockAttention, given, received

TITLES = {
    'attention_divergence': 'attention: Jensen-Shannon divergence (bits), 0 = alike',
    'attention_cosine': 'attention: cosine, 1 = alike',
    'output_cka': 'outputs: linear CKA, 1 = alike',
}
HEAT, OPACITY = 'inferno', 0.65
PANEL = 2.1  # inches


def draw(
    folder: Path,
    seen: np.ndarray,
    blocks: Sequence[BlockAttention],
    measured: Mapping[str, Any],
    point: Sequence[float] | None,
) -> None:
    """Write ``stage{k}.png`` and ``heads.png``.

    Args:
        folder: Where they go.
        seen: What the network saw, ``(H, W, 3)`` uint8 BGR.
        blocks: Its attention.
        measured: What :func:`~evit_mm.inference.attention_maps.similarities` says of it.
        point: The query, x and y from 0 to 1, or None for the mean over all.
    """
    for stage, own in groupby(blocks, key=attrgetter('stage')):
        draw_stage(seen, list(own), point).savefig(folder / f'stage{stage}.png', dpi=100)
    draw_matrices(measured).savefig(folder / 'heads.png', dpi=100)


def draw_stage(
    seen: np.ndarray, blocks: Sequence[BlockAttention], point: Sequence[float] | None
) -> Figure:
    """Draw a stage: a row per block with the image and each head's attention over it."""
    heads, shape = len(blocks[0].weights), seen.shape[0] / seen.shape[1]
    height = len(blocks) * (PANEL * shape + 0.35) + 0.6
    figure = Figure(figsize=((heads + 1.25) * PANEL, height), layout='constrained')
    axes = figure.subplots(len(blocks), heads + 1, squeeze=False)
    what = 'attention that each token receives' if point is None else 'where the cross looks'
    figure.suptitle(
        f'stage {blocks[0].stage}, stride {blocks[0].stride}: {what}, 1 = everywhere alike',
        fontsize=10,
    )
    grey = cv2.cvtColor(seen, cv2.COLOR_BGR2GRAY)
    for row, block in zip(axes, blocks, strict=True):
        maps = _maps(block, seen, point)
        row[0].imshow(seen[..., ::-1])
        row[0].set_title(f'block {block.block}', fontsize=9)
        most = max(float(maps.max()), 1e-6)
        for head, (axis, heat) in enumerate(zip(row[1:], maps, strict=True), start=1):
            axis.imshow(grey, cmap='gray', vmin=0, vmax=255)
            # enlarged to the image's pixels; tokens reach into the padding
            large = heat.repeat(block.stride, 0).repeat(block.stride, 1)
            large = large[: seen.shape[0], : seen.shape[1]]
            shown = axis.imshow(large, cmap=HEAT, alpha=OPACITY, vmin=0, vmax=most)
            axis.set_title(f'head {head}', fontsize=9)
        figure.colorbar(shown, ax=row[1:].tolist(), shrink=0.8, pad=0.01)
        for axis in row:
            _frame(axis, block, seen, point)
    return figure


def draw_matrices(measured: Mapping[str, Any]) -> Figure:
    """Draw how alike the heads are: a row per measure, a column per block."""
    blocks = measured['blocks']
    figure = Figure(figsize=(len(blocks) * PANEL, len(TITLES) * (PANEL + 0.55)))
    parts = figure.subfigures(len(TITLES), 1)
    for part, (name, title) in zip(parts, TITLES.items(), strict=True):
        stages = ', '.join(f'stage {s["stage"]}: {_figure(s[name])}' for s in measured['stages'])
        part.suptitle(f'{title}. Mean over pairs: {stages}', fontsize=9)
        axes = part.subplots(1, len(blocks), squeeze=False)[0]
        part.subplots_adjust(left=0.03, right=0.98, top=0.8, bottom=0.06, wspace=0.15)
        for axis, block in zip(axes, blocks, strict=True):
            _matrix(axis, np.asarray(block[name]['matrix'], float))
            place = f'stage {block["stage"]}, block {block["block"]}'
            axis.set_title(f'{place}: {_figure(block[name]["mean"])}', fontsize=8)
    return figure


def _matrix(axis: Axes, matrix: np.ndarray) -> None:
    axis.imshow(matrix, cmap='viridis', vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(matrix):
        text, colour = _figure(value), 'black' if value > 0.6 else 'white'
        axis.text(column, row, text, ha='center', va='center', fontsize=7, color=colour)
    heads = range(len(matrix))
    axis.set_xticks(heads, [str(head + 1) for head in heads], fontsize=7)
    axis.set_yticks(heads, [str(head + 1) for head in heads], fontsize=7)


def _maps(block: BlockAttention, seen: np.ndarray, point: Sequence[float] | None) -> np.ndarray:
    """Return each head's map ``(h, H, W)``."""
    if point is None:
        return received(block).cpu().numpy()
    x, y = _pixel(seen, point)
    return given(block, int(y) // block.stride, int(x) // block.stride).cpu().numpy()


def _pixel(seen: np.ndarray, point: Sequence[float]) -> tuple[float, float]:
    height, width = seen.shape[:2]
    return min(point[0] * width, width - 1), min(point[1] * height, height - 1)


def _frame(
    axis: Axes, block: BlockAttention, seen: np.ndarray, point: Sequence[float] | None
) -> None:
    """Draw the windows' borders and the query, and take the ticks away."""
    side = block.stride * block.window_size
    height, width = seen.shape[:2]
    axis.set(xticks=[], yticks=[])
    for x in range(side, width, side):
        axis.axvline(x - 0.5, color='white', linewidth=0.6, alpha=0.7)
    for y in range(side, height, side):
        axis.axhline(y - 0.5, color='white', linewidth=0.6, alpha=0.7)
    if point is not None:
        axis.plot(*_pixel(seen, point), '+', color='cyan', markersize=9, markeredgewidth=1.5)


def _figure(value: float | None) -> str:
    return '-' if value is None or np.isnan(value) else f'{value:.2f}'
