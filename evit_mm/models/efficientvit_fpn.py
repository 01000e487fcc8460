"""The neck of the published EfficientViT detectors.

A feature pyramid whose finer levels come from transposed convolutions, since the backbone's first
map already has stride 16. Submodule names are those of the authors' detector files.

Shapes: B batch, C_i ``in_channels[i]``, C ``out_channels``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from mmengine.model import BaseModule, kaiming_init, xavier_init
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError


class _TransposedConv(nn.Module):
    """2x2 transposed convolution that doubles the size; the wrapper keeps the file's name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, h, w) -> (B, C, 2h, 2w)``."""
        return self.conv(x)


@MODELS.register_module()
class EfficientViTFPN(BaseModule):
    """Feature pyramid with transposed-convolution levels below the finest input.

    1x1 laterals, nearest top-down adds, a 3x3 convolution per level; no norm, no activation.
    Each transposed level doubles the merged finest lateral (then the level before it) and has its
    own 3x3 convolution. Coarser levels come from max-pooling with kernel 1 and stride 2.

    Args:
        in_channels: Channels of each input, finest first.
        out_channels: Channels of every output.
        num_outs: Outputs in all: transposed levels, one per input, then pooled ones.
        num_extra_trans_convs: Transposed levels: 0, 1 (RetinaNet: stride 8) or 2 (Mask R-CNN:
            strides 8 and 4).
        init_cfg: As everywhere in OpenMMLab. None is the published initialisation: convolutions
            Xavier-uniform, transposed ones Kaiming-normal over fan-out.

    Raises:
        TypeError: ``in_channels`` is not a list of integers.
        ValueError: ``num_outs`` or ``num_extra_trans_convs`` is impossible, or the inputs of
            ``forward`` do not match ``in_channels``.

    Example:
        >>> import torch
        >>> neck = EfficientViTFPN((128, 256, 384), 256, num_outs=5, num_extra_trans_convs=1)
        >>> feats = [torch.rand(1, c, s, s) for c, s in zip((128, 256, 384), (16, 8, 4))]
        >>> [out.shape[-1] for out in neck(feats)]
        [32, 16, 8, 4, 2]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        num_extra_trans_convs: int = 0,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        from mmcv.cnn import ConvModule  # late: mmcv loads OpenCV

        super().__init__(init_cfg=init_cfg)
        is_list = isinstance(in_channels, (list, tuple)) and len(in_channels) > 0
        if not is_list or not all(isinstance(channels, int) for channels in in_channels):
            raise TypeError(f'in_channels must be a sequence of integers, got {in_channels!r}')
        for name, value in (('out_channels', out_channels), ('num_outs', num_outs)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'{name} must be a positive integer, got {value!r}')
        if min(in_channels) < 1:
            raise ValueError(f'in_channels must be positive, got {in_channels!r}')
        if num_extra_trans_convs not in (0, 1, 2):
            raise ValueError(
                f'num_extra_trans_convs must be 0, 1 or 2, got {num_extra_trans_convs!r}'
            )
        needed = len(in_channels) + num_extra_trans_convs
        if num_outs < needed:
            raise ValueError(
                f'num_outs must be at least {needed} ({len(in_channels)} inputs and '
                f'{num_extra_trans_convs} transposed levels), got {num_outs}'
            )
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        self.num_outs = num_outs
        self.lateral_convs = nn.ModuleList(
            ConvModule(channels, out_channels, 1, act_cfg=None) for channels in in_channels
        )
        self.fpn_convs = nn.ModuleList(
            ConvModule(out_channels, out_channels, 3, padding=1, act_cfg=None) for _ in in_channels
        )
        self.extra_trans_convs = nn.ModuleList(
            _TransposedConv(out_channels) for _ in range(num_extra_trans_convs)
        )
        self.extra_fpn_convs = nn.ModuleList(
            ConvModule(out_channels, out_channels, 3, padding=1, act_cfg=None)
            for _ in range(num_extra_trans_convs)
        )

    def init_weights(self) -> None:
        """Initialise as published, then as ``init_cfg`` says."""
        if self.is_init:  # not to wipe what has been learned since
            return
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d):
                kaiming_init(module, mode='fan_out', distribution='normal')
            elif isinstance(module, nn.Conv2d):
                xavier_init(module, distribution='uniform')
        super().init_weights()

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Build the pyramid.

        Args:
            inputs: One ``(B, C_i, h_i, w_i)`` per entry of ``in_channels``, finest first.

        Returns:
            ``num_outs`` maps ``(B, C, h, w)``, finest first.
        """
        self._check(inputs)
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, inputs, strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            size = laterals[i - 1].shape[2:]
            laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size, mode='nearest')
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=True)]

        finer = laterals[:1]
        for trans_conv in self.extra_trans_convs:
            finer.insert(0, trans_conv(finer[0]))
        # in the authors' files the 3x3 convolutions count from the finest level, while the
        # transposed ones count away from the laterals
        outputs = [conv(x) for conv, x in zip(self.extra_fpn_convs, finer, strict=False)] + outputs
        while len(outputs) < self.num_outs:
            outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return tuple(outputs)

    def _check(self, inputs: Sequence[Tensor]) -> None:
        found = () if isinstance(inputs, Tensor) else tuple(x.shape[1] for x in inputs)
        if found != self.in_channels:
            raise ConfigError(
                f'EfficientViTFPN was built for in_channels={self.in_channels} but got maps with '
                f"{found} channels; set neck.in_channels to the backbone's out_channels"
            )
