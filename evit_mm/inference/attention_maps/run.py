"""From a config, a checkpoint and an image to pictures of the attention and its measures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from ...checkpoint import load_pretrained
from ...data.images import read_image
from ...data.pipeline import test_pipeline
from ...errors import ConfigError, DataError
from ...models import EfficientViT
from ...runner.build import config_faults
from ...runner.config import load_config
from . import pictures
from .maps import look, similarities

# of a config that names none
PREPROCESSORS = {
    'mmdet': 'mmdet.DetDataPreprocessor',
    'mmpretrain': 'mmpretrain.ClsDataPreprocessor',
}
RANDOM = 'random'  # in a checkpoint's place: the weights that the model starts from


def visualize_attention(
    config: str | Path,
    checkpoint: str | Path,
    image: str | Path,
    out_dir: str | Path,
    point: Sequence[float] | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Draw the attention of a model on an image, and measure how alike its heads are.

    Writes ``stage{k}.png`` of each stage (a row per block, a column per head), ``heads.png`` (the
    matrices) and ``similarity.json``.

    Args:
        config: Config file of a detector or a classifier whose backbone is an EfficientViT.
        checkpoint: Any file that :func:`evit_mm.checkpoint.load_pretrained` takes, a detector's or
            a bare backbone's; or ``'random'``.
        image: Image file.
        out_dir: Folder to write to.
        point: Draw where this query looks, in place of the mean over all queries: x and y from 0
            to 1, in the picture that the network sees.
        cfg_options: Overrides of the config, dotted keys.

    Returns:
        What :func:`~evit_mm.inference.attention_maps.similarities` says.

    Raises:
        EvitError: The config, the checkpoint or the image cannot be used.
    """
    if point is not None and not (len(point) == 2 and all(0 <= p <= 1 for p in point)):
        raise ConfigError(f'--point takes x and y from 0 to 1, got {tuple(point)}')
    cfg = load_config(config, cfg_options)
    backbone = load_backbone(cfg, checkpoint)
    seen, normalised = network_input(cfg, image)
    blocks = look(backbone, normalised)
    measured = similarities(blocks)
    text = json.dumps({'image': str(image), 'checkpoint': str(checkpoint), **measured})
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        pictures.draw(Path(out_dir), seen, blocks, measured, point)
        (Path(out_dir) / 'similarity.json').write_text(text)
    except OSError as error:
        raise ConfigError(f"-o '{out_dir}' cannot be written: {error}") from None
    return measured


def load_backbone(cfg: Config, checkpoint: str | Path) -> EfficientViT:
    """Build a config's backbone with a checkpoint's weights, in eval mode.

    Raises:
        EvitError: It is no EfficientViT, or the checkpoint does not fit.
    """
    from mmengine.registry import MODELS

    part = cfg.model.get('backbone')
    if not isinstance(part, Mapping) or part.get('type') != 'EfficientViT':
        kind = part.get('type') if isinstance(part, Mapping) else part
        raise ConfigError(f'{cfg.filename}: model.backbone is {kind}, not EfficientViT')
    with config_faults(cfg), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # 'random' is the same each time
        backbone = MODELS.build({**part, 'init_cfg': None})
    if str(checkpoint) != RANDOM:
        load_pretrained(backbone, checkpoint)
    return backbone.eval()


def network_input(cfg: Config, image: str | Path) -> tuple[np.ndarray, Tensor]:
    """Prepare an image as a config's test pipeline and data preprocessor do.

    Returns:
        What the network sees, ``(H, W, 3)`` uint8 BGR without padding, and what it is fed,
        ``(1, 3, H', W')``, normalised and padded.

    Raises:
        DataError: The image cannot be decoded, or is too thin.
    """
    from mmengine.registry import MODELS, init_default_scope

    pixels = read_image(image)
    if pixels is None:
        raise DataError(f"'{image}' cannot be decoded")
    scope = cfg.get('default_scope') or 'mmdet'
    init_default_scope(scope)
    with config_faults(cfg):
        prepare = test_pipeline(cfg)
        preprocess = MODELS.build({'type': PREPROCESSORS[scope], **_preprocessor(cfg)})
    try:
        packed = prepare(pixels)
    except DataError as error:
        raise DataError(f"'{image}': {error}") from None
    batch = {key: [packed[key]] for key in ('inputs', 'data_samples')}
    seen = np.ascontiguousarray(packed['inputs'].permute(1, 2, 0).numpy())
    return seen, preprocess(batch)['inputs']


def _preprocessor(cfg: Config) -> Mapping[str, Any]:
    return cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
