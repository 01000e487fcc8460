"""The networks of the benchmark: this package's and timm's, as backbones and in detectors.

Shapes: batch B, image H x W.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from ...models import EfficientViT
from ...models.backbone import Backbone
from ...runner.config import load_config
from ..complexity import CLASSIFIER_WINDOWS

BATCH, SIDE = 16, 224  # protocol of the paper


def backbone(arch: str, side: int, channels_last: bool = True) -> nn.Module:
    """Return the EfficientViT of this package for images of one size, in eval mode."""
    windows = CLASSIFIER_WINDOWS if side == SIDE else None
    model = EfficientViT(arch=arch, window_sizes=windows, channels_last=channels_last)
    return with_statistics(model)


def timm_backbone(arch: str, side: int) -> nn.Module:
    """Return timm's implementation of the same network."""
    import timm  # optional

    # the last stage has windows of 4 at 224 px and windows of 7 at larger sizes, as in this
    # package; from version 1.0.31 on, timm then accepts any image size
    size = SIDE if side == SIDE else 512
    return timm.create_model(f'efficientvit_{arch}', features_only=True, img_size=size)


def with_statistics(model: nn.Module) -> nn.Module:
    """Initialise BatchNorm with weights other than zero, which would disable a branch."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.5, generator=generator)
    return model.eval()


def read_untrained(config: str, backbone: Mapping[str, Any] | None = None) -> Config:
    """Load a config of this project, without pretrained weights and with backbone overrides."""
    overrides = {**(backbone or {}), 'init_cfg': None}
    init_default_scope('mmdet')
    return load_config(config, {f'model.backbone.{key}': v for key, v in overrides.items()})


def build_detector(cfg: Config) -> Any:
    """Build the detector of a config with random weights."""
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


class TimmBackbone(Backbone):
    """timm's EfficientViT as the backbone of a detector; it keeps the layout of its input."""

    def __init__(self, arch: str, norm_eval: bool, out_stem: bool) -> None:
        super().__init__()
        self.net = timm_backbone(arch, 0)
        self.norm_eval = norm_eval
        self.stem: list[Tensor] = []
        if out_stem:
            self.net.patch_embed_relu3.register_forward_hook(
                lambda module, inputs, output: self.stem.append(output)  # noqa: ARG005
            )

    def parts(self) -> list[list[nn.Module]]:
        """Return no parts, because nothing is frozen."""
        return []

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of the stages; with ``out_stem``, the map of the stem comes first."""
        outputs = self.net(x)
        stem, self.stem = self.stem, []
        return (*stem, *outputs)
