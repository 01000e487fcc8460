"""Pictures of the attention of a model on an image, and of the similarity of its heads.

Shapes: heads h, feature map H x W.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from ...checkpoint import load_pretrained
from ...data.pictures import to_picture
from ...data.pipeline import PredictionPipeline
from ...errors import ConfigError, DataError
from ...models import EfficientViT
from ...runner.build import config_faults, make_folder
from ...runner.config import load_config
from .maps import BlockAttention, given, look, received, similarities

TITLES = {
    'attention_divergence': 'attention: Jensen-Shannon divergence (bits), 0 = equal',
    'attention_cosine': 'attention: cosine, 1 = equal',
    'output_cka': 'outputs: linear CKA, 1 = equal',
}
RANDOM = 'random'  # given as checkpoint, it selects the initial weights of the model
HEAT, OPACITY = 'inferno', 0.65
PANEL = 2.1  # inches


def visualize_attention(
    config: str | Path,
    checkpoint: str | Path,
    image: str | Path,
    out_dir: str | Path,
    point: Sequence[float] | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Draw the attention of a model on an image, and measure the similarity of its heads.

    The function writes ``stage{k}.png`` for each stage (one row per block, one column per head),
    ``heads.png`` (the similarity matrices) and ``similarity.json``.

    Args:
        config: Config file of a detector or a classifier with an EfficientViT as backbone.
        checkpoint: A detector or backbone file that :func:`evit_mm.checkpoint.load_pretrained`
            accepts, or ``'random'``.
        image: Image file.
        out_dir: Folder to write to.
        point: Draw the attention of the query at this point, x and y from 0 to 1 in the resized
            image. Default: the mean over all queries.
        cfg_options: Overrides of the config, with dotted keys.

    Returns:
        The result of :func:`~evit_mm.inference.attention_maps.maps.similarities`.

    Raises:
        EvitError: The config, the checkpoint or the image cannot be used.
    """
    if point is not None and not all(0 <= p <= 1 for p in point):
        raise ConfigError(f'--point must be x and y between 0 and 1, got {tuple(point)}')
    cfg, folder = load_config(config, cfg_options), Path(out_dir)
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    backbone = load_backbone(cfg, checkpoint)
    seen, fed = network_input(cfg, image)
    query = None  # in pixels
    if point is not None:
        height, width = seen.shape[:2]
        query = min(point[0] * width, width - 1), min(point[1] * height, height - 1)
    blocks = look(backbone, fed)
    measured = similarities(blocks)
    make_folder('-o', folder)
    for stage, own in groupby(blocks, key=attrgetter('stage')):
        draw_stage(seen, list(own), query).savefig(folder / f'stage{stage}.png', dpi=100)
    draw_matrices(measured).savefig(folder / 'heads.png', dpi=100)
    content = {'image': str(image), 'checkpoint': str(checkpoint), **measured}
    (folder / 'similarity.json').write_text(json.dumps(content))
    return measured


def load_backbone(cfg: Config, checkpoint: str | Path) -> EfficientViT:
    """Build the backbone of a config with the weights of a checkpoint, in eval mode."""
    with config_faults(cfg), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # makes 'random' deterministic
        backbone = MODELS.build({**cfg.model.backbone, 'init_cfg': None})
    if not isinstance(backbone, EfficientViT):
        kind = type(backbone).__name__
        raise ConfigError(
            f"config '{cfg.filename}': model.backbone is {kind}; this tool needs an EfficientViT"
        )
    if str(checkpoint) != RANDOM:
        load_pretrained(backbone, checkpoint)
    return backbone.eval()


def network_input(cfg: Config, image: str | Path) -> tuple[np.ndarray, Tensor]:
    """Apply the test pipeline and the data preprocessor of a config to an image.

    Returns:
        The resized image ``(H, W, 3)``, uint8, BGR, and the normalised and padded input of the
        network ``(1, C, H', W')``.
    """
    # mmpretrain's configs define it outside the model and without a type
    preprocessor = cfg.model.get('data_preprocessor') or cfg.data_preprocessor
    with config_faults(cfg):
        pipeline = PredictionPipeline(cfg)
        preprocess = MODELS.build({'type': 'ClsDataPreprocessor', **preprocessor})
    try:
        packed = pipeline(image)
    except DataError as error:
        raise DataError(f"'{image}': {error}; choose another file") from None
    batch = {key: [packed[key]] for key in ('inputs', 'data_samples')}
    seen = to_picture(packed['inputs'].permute(1, 2, 0).numpy())
    return seen, preprocess(batch)['inputs']


def draw_stage(
    seen: np.ndarray, blocks: Sequence[BlockAttention], query: Sequence[float] | None
) -> Figure:
    """Draw a stage: one row per block, with the image and the attention of each head.

    ``seen`` is ``(H, W, 3)``, BGR. ``query`` is a point x, y in it, or None for the mean.
    """
    heads, shape = len(blocks[0].weights), seen.shape[0] / seen.shape[1]
    height = len(blocks) * (PANEL * shape + 0.35) + 0.6
    figure = Figure(figsize=((heads + 1.25) * PANEL, height), layout='constrained')
    axes = figure.subplots(len(blocks), heads + 1, squeeze=False)
    what = 'attention that each token receives' if query is None else 'attention of the query'
    figure.suptitle(
        f'stage {blocks[0].stage}, stride {blocks[0].stride}: {what}, 1 = uniform attention',
        fontsize=10,
    )
    grey = cv2.cvtColor(seen, cv2.COLOR_BGR2GRAY)
    for panels, block in zip(axes, blocks, strict=True):
        if query is None:
            maps = received(block).cpu().numpy()
        else:
            column, row = (int(place) // block.stride for place in query)
            maps = given(block, row, column).cpu().numpy()
        panels[0].imshow(seen[..., ::-1])
        panels[0].set_title(f'block {block.block}', fontsize=9)
        most = max(float(maps.max()), 1e-6)
        for head, (axis, heat) in enumerate(zip(panels[1:], maps, strict=True), start=1):
            axis.imshow(grey, cmap='gray', vmin=0, vmax=255)
            # enlarge to the pixels of the image; some tokens extend into the padding
            large = heat.repeat(block.stride, 0).repeat(block.stride, 1)
            large = large[: seen.shape[0], : seen.shape[1]]
            shown = axis.imshow(large, cmap=HEAT, alpha=OPACITY, vmin=0, vmax=most)
            axis.set_title(f'head {head}', fontsize=9)
        figure.colorbar(shown, ax=panels[1:].tolist(), shrink=0.8, pad=0.01)
        for axis in panels:
            _frame(axis, block, seen, query)
    return figure


def draw_matrices(measured: Mapping[str, Any]) -> Figure:
    """Draw the similarity matrices: one row per measure, one column per block."""
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


def _frame(
    axis: Axes, block: BlockAttention, seen: np.ndarray, query: Sequence[float] | None
) -> None:
    """Draw the borders of the windows as a grid, and the query."""
    side = block.stride * block.window_size
    height, width = seen.shape[:2]
    borders = [np.arange(side, length, side) - 0.5 for length in (width, height)]
    axis.set(xticks=borders[0], yticks=borders[1])
    axis.tick_params(length=0, labelbottom=False, labelleft=False)
    axis.grid(color='white', linewidth=0.6, alpha=0.7)
    if query is not None:
        axis.plot(*query, '+', color='cyan', markersize=9, markeredgewidth=1.5)


def _figure(value: float | None) -> str:
    return '-' if value is None or np.isnan(value) else f'{value:.2f}'
