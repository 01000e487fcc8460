"""The networks that are timed: ours and timm's, alone and in a detector.

Shapes: B batch, H x W image.
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

BATCH, SIDE = 16, 224  # of the paper's protocol


def backbone(arch: str, side: int, channels_last: bool = True) -> nn.Module:
    """Return our backbone for images of a size, in eval mode."""
    windows = CLASSIFIER_WINDOWS if side == SIDE else None
    model = EfficientViT(arch=arch, window_sizes=windows, channels_last=channels_last)
    return with_statistics(model)


def timm_backbone(arch: str, side: int) -> nn.Module:
    """Return timm's implementation of the same network."""
    import timm  # optional

    # windows of 4 in the last stage at 224 px, of 7 beyond, as in ours; timm 1.0.31 and later take
    # any size of image then
    size = SIDE if side == SIDE else 512
    return timm.create_model(f'efficientvit_{arch}', features_only=True, img_size=size)


def with_statistics(model: nn.Module) -> nn.Module:
    """Give BatchNorm weights other than zero, with which a branch would compute nothing."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.5, generator=generator)
    return model.eval()


def read_untrained(config: str, backbone: Mapping[str, Any] | None = None) -> Config:
    """Read one of the project's configs, its backbone untrained and with keys overridden."""
    overrides = {**(backbone or {}), 'init_cfg': None}
    init_default_scope('mmdet')
    return load_config(config, {f'model.backbone.{key}': v for key, v in overrides.items()})


def build_detector(cfg: Config) -> Any:
    """Build a config's detector with its random weights."""
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


class TimmBackbone(Backbone):
    """timm's EfficientViT in a detector's place for a backbone, in whatever layout it gets."""

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
        """Return nothing, since nothing is frozen."""
        return []

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the stages' maps, the stem's first if it is wanted."""
        outputs = self.net(x)
        stem, self.stem = self.stem, []
        return (*stem, *outputs)
