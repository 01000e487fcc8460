"""Neck of the published EfficientViT detectors.

The first map of the backbone already has stride 16. Transposed convolutions add the finer levels.
The submodules have the names of the authors' detector checkpoints.

Shapes: batch B, C_i = ``in_channels[i]``, C = ``out_channels``.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from mmengine.model import BaseModule, kaiming_init, xavier_init
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError
from ..utils.text import counted


class _TransposedConv(nn.Module):
    """2x2 transposed convolution with stride 2, named ``conv`` as in the authors' checkpoints."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, h, w) -> (B, C, 2h, 2w)``."""
        return self.conv(x)


@MODELS.register_module()
class EfficientViTFPN(BaseModule):
    """Feature pyramid network with additional finer levels from transposed convolutions.

    The top-down path has 1x1 lateral convolutions and nearest-neighbour upsampling. Each output
    has a 3x3 convolution. There is no normalisation and no activation. The first transposed
    convolution upsamples the finest merged lateral by 2, and the second upsamples its result.
    Coarser levels come from max pooling with kernel size 1 and stride 2.

    Args:
        in_channels: Channels of each input, from fine to coarse.
        out_channels: Channels of every output.
        num_outs: Number of outputs: transposed levels, one level per input, and pooled levels.
        num_extra_trans_convs: Number of transposed levels: 0, 1 (RetinaNet, stride 8) or 2 (Mask
            R-CNN, strides 8 and 4).
        init_cfg: Initialisation config of OpenMMLab. None is the published initialisation:
            Xavier uniform for convolutions, Kaiming normal (fan-out) for transposed convolutions.

    Raises:
        TypeError: ``in_channels`` is not a list of integers.
        ValueError: ``num_outs`` or ``num_extra_trans_convs`` is out of range, or the inputs of
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
        from mmcv.cnn import ConvModule  # here, because mmcv imports OpenCV

        super().__init__(init_cfg=init_cfg)
        is_list = isinstance(in_channels, (list, tuple)) and len(in_channels) > 0
        if not is_list or not all(isinstance(channels, Integral) for channels in in_channels):
            raise TypeError(
                f'in_channels must be a sequence of at least one integer, got {in_channels!r}'
            )
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
                f'num_outs must be at least {needed} ({counted(len(in_channels), "input")} and '
                f'{counted(num_extra_trans_convs, "transposed level")}), got {num_outs}'
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
        """Apply the published initialisation, then ``init_cfg``."""
        if self.is_init:  # do not overwrite trained weights
            return
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d):
                kaiming_init(module, mode='fan_out', distribution='normal')
            elif isinstance(module, nn.Conv2d):
                xavier_init(module, distribution='uniform')
        super().init_weights()

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the feature pyramid.

        Args:
            inputs: One map ``(B, C_i, h_i, w_i)`` per entry of ``in_channels``, from fine to
                coarse.

        Returns:
            ``num_outs`` maps ``(B, C, h, w)``, from fine to coarse.
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
        # in the authors' checkpoints, extra_fpn_convs[0] belongs to the finest level, but
        # extra_trans_convs[0] belongs to the level next to the laterals
        outputs = [conv(x) for conv, x in zip(self.extra_fpn_convs, finer, strict=False)] + outputs
        while len(outputs) < self.num_outs:
            outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return tuple(outputs)

    def _check(self, inputs: Sequence[Tensor]) -> None:
        if isinstance(inputs, Tensor):
            raise ConfigError(
                f'EfficientViTFPN needs a list with {counted(len(self.in_channels), "map")}, got a '
                f'tensor of shape {tuple(inputs.shape)}; pass the outputs of the backbone'
            )
        for x in inputs:
            if x.ndim != 4:
                raise ConfigError(
                    f'EfficientViTFPN needs maps (B, C, h, w), got the shape {tuple(x.shape)}; add '
                    'the batch dimension with x[None]'
                )
        found = tuple(x.shape[1] for x in inputs)
        if found != self.in_channels:
            raise ConfigError(
                f'EfficientViTFPN was built for in_channels={self.in_channels} but got maps with '
                f"{found} channels; set neck.in_channels to the backbone's out_channels"
            )
