"""EfficientViT: memory-efficient vision transformer with cascaded group attention.

This is Microsoft's EfficientViT (arXiv 2305.07027). MIT-HAN's model of the same name is a different
network. The submodules have the names of the authors' checkpoints.

Shapes: batch B, channels C, input size H x W, feature map size h x w. At stride s, h = ceil(H / s)
and w = ceil(W / s).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError
from ..utils.provenance import need_torch
from .attention import WindowAttention
from .backbone import Backbone, check_out_indices, recomputed
from .layers import FFN, BNLinear, ConvBN, ImageConvBN, Residual, SqueezeExcite, mean_pool
from .variants import NUM_STAGES, Variant, resolve_arch


class EfficientViTBlock(nn.Module):
    """Sandwich layout: depthwise conv and FFN, window attention, depthwise conv and FFN.

    ``(B, C, h, w) -> (B, C, h, w)``. The block is initialised as the identity.
    """

    def __init__(self, variant: Variant, stage: int, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        dim, rate = variant.embed_dims[stage], drop_path_rate
        attention = WindowAttention(
            dim,
            variant.key_dims[stage],
            variant.num_heads[stage],
            variant.window_sizes[stage],
            variant.kernel_sizes,
        )
        self.dw0 = Residual(ConvBN(dim, dim, 3, groups=dim, bn_weight=0.0), rate)
        self.ffn0 = Residual(FFN(dim), rate)
        self.mixer = Residual(attention, rate)
        self.dw1 = Residual(ConvBN(dim, dim, 3, groups=dim, bn_weight=0.0), rate)
        self.ffn1 = Residual(FFN(dim), rate)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the five residual branches."""
        x = self.ffn0(self.dw0(x))
        x = self.mixer(x)
        return self.ffn1(self.dw1(x))


class PatchMerging(nn.Module):
    """Subsample with an inverted residual block: ``(B, C, h, w) -> (B, C', h / 2, w / 2)``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        hidden = 4 * in_channels
        self.conv1 = ConvBN(in_channels, hidden)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = ConvBN(hidden, hidden, 3, stride=2, groups=hidden)
        self.se = SqueezeExcite(hidden)
        self.conv3 = ConvBN(hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Expand, subsample, gate and project. Odd sizes round up."""
        x = self.act(self.conv1(x))
        x = self.act(self.conv2(x))
        return self.conv3(self.se(x))


def conv_ffn(dim: int, drop_path_rate: float) -> nn.Sequential:
    """Return the depthwise conv and FFN that precede or follow a :class:`PatchMerging`."""
    return nn.Sequential(
        Residual(ConvBN(dim, dim, 3, groups=dim), drop_path_rate),
        Residual(FFN(dim), drop_path_rate),
    )


@MODELS.register_module()
class EfficientViT(Backbone):
    """EfficientViT backbone with feature maps at strides 16, 32 and 64.

    The class is registered in mmengine's root registry. After ``import evit_mm``,
    ``dict(type='EfficientViT', arch='m4')`` works in every OpenMMLab library.

    Args:
        arch: ``'m0'`` to ``'m5'``, or a dict with the fields of
            :class:`~evit_mm.models.variants.Variant`.
        in_channels: Channels of the input image.
        out_indices: Stages to return, in increasing order: 0 (stride 16), 1 (stride 32) and 2
            (stride 64). Later stages are not built.
        out_stem: Also return the stride-8 map of the stem, as the first output. It has half the
            channels of stage 0.
        frozen_stages: -1 freezes nothing, 0 freezes the stem, k also freezes the first k stages.
            Frozen parts have no gradients and keep BatchNorm in eval mode.
        norm_eval: Keep every BatchNorm in eval mode during training. Its affine weights still
            learn. The published detector was trained with ``norm_eval=True``.
        drop_path_rate: Stochastic depth rate of the last block. The rate grows linearly from 0 at
            the first block.
        with_cp: Recompute each block in the backward pass to save memory. Gradients and BatchNorm
            statistics do not change. Needs PyTorch 2.1.
        window_sizes: Window size of each stage; overrides the window sizes of the variant. The
            ImageNet classifiers have (7, 7, 4).
        channels_last: Compute in channels-last instead of contiguous memory format, which is
            faster. Results and checkpoints are the same.
        init_cfg: Initialisation config of OpenMMLab.
            ``dict(type='Pretrained', checkpoint=PATH_OR_URL)`` loads the authors' files without
            conversion, see :func:`evit_mm.checkpoint.load_pretrained`.

    Attributes:
        variant: The architecture.
        out_channels: Channels of each output.
        strides: Stride of each output.

    Raises:
        KeyError: ``arch`` is unknown.
        TypeError: ``arch`` or ``window_sizes`` has the wrong type.
        ValueError: An argument is out of range.

    Example:
        >>> import torch
        >>> from evit_mm.models import EfficientViT
        >>> backbone = EfficientViT(arch='m4').eval()
        >>> [tuple(out.shape) for out in backbone(torch.rand(1, 3, 256, 320))]
        [(1, 128, 16, 20), (1, 256, 8, 10), (1, 384, 4, 5)]
        >>> backbone.out_channels, backbone.strides
        ((128, 256, 384), (16, 32, 64))
    """

    unused = ('head', 'blocks1', 'blocks2', 'blocks3')

    def __init__(
        self,
        arch: str | Mapping[str, Any] | Variant = 'm4',
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2),
        out_stem: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        window_sizes: Sequence[int] | None = None,
        channels_last: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(channels_last, init_cfg)
        variant = resolve_arch(arch)
        if window_sizes is not None:
            variant = replace(variant, window_sizes=window_sizes)
        out_indices = check_out_indices(out_indices, range(NUM_STAGES))
        num_stages = out_indices[-1] + 1
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be in [0, 1), got {drop_path_rate}')
        if in_channels < 1:
            raise ValueError(f'in_channels must be positive, got {in_channels}')

        dims = variant.embed_dims
        self.variant = variant
        self.in_channels = in_channels
        self.out_indices = out_indices
        self.out_stem = out_stem
        if with_cp:
            need_torch('2.1', 'with_cp=True')
        self.with_cp = with_cp
        stem_out = ((dims[0] // 2, 8),) if out_stem else ()
        outputs = (*stem_out, *((dims[i], 16 << i) for i in out_indices))
        self.out_channels, self.strides = zip(*outputs, strict=True)

        self.patch_embed = nn.Sequential(
            ImageConvBN(self.memory_format, in_channels, dims[0] // 8, 3, stride=2),
            nn.ReLU(inplace=True),
            ConvBN(dims[0] // 8, dims[0] // 4, 3, stride=2),
            nn.ReLU(inplace=True),
            ConvBN(dims[0] // 4, dims[0] // 2, 3, stride=2),
            nn.ReLU(inplace=True),
            ConvBN(dims[0] // 2, dims[0], 3, stride=2),
        )
        num_blocks = sum(variant.depths)
        rates = iter(drop_path_rate * i / max(num_blocks - 1, 1) for i in range(num_blocks))
        for stage in range(num_stages):
            stage_rates = [next(rates) for _ in range(variant.depths[stage])]
            blocks = [EfficientViTBlock(variant, stage, rate) for rate in stage_rates]
            if stage > 0:
                blocks = [
                    conv_ffn(dims[stage - 1], stage_rates[0]),
                    PatchMerging(dims[stage - 1], dims[stage]),
                    conv_ffn(dims[stage], stage_rates[0]),
                    *blocks,
                ]
            self.add_module(f'blocks{stage + 1}', nn.Sequential(*blocks))
        self.freeze(frozen_stages, norm_eval)

    @property
    def stages(self) -> list[nn.Sequential]:
        """The stages that are built, in order."""
        return [getattr(self, f'blocks{i + 1}') for i in range(self.out_indices[-1] + 1)]

    def parts(self) -> list[list[nn.Module]]:
        """Return the modules of the stem, then the modules of each stage that is built."""
        return [[self.patch_embed], *([stage] for stage in self.stages)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x: Normalised images ``(B, in_channels, H, W)`` of at least 16 x 16 pixels.

        Returns:
            One map ``(B, C, ceil(H / s), ceil(W / s))`` for each stride s in ``strides``.

        Raises:
            ConfigError: ``x`` has another type or shape.
        """
        self._check(x)
        outputs = []
        for index, layer in enumerate(self.patch_embed):
            x = layer(x)
            if self.out_stem and index == len(self.patch_embed) - 2:
                outputs.append(x)
        for index, stage in enumerate(self.stages):
            for block in stage:
                x = recomputed(block, x) if self.with_cp and self.training else block(x)
            if index in self.out_indices:
                outputs.append(x)
        return tuple(outputs)

    def _check(self, x: Tensor) -> None:
        """Raise one sentence in place of PyTorch's errors. A compiled form has no such checks."""
        if not isinstance(x, Tensor):
            found, fix = type(x).__name__, 'convert an array with torch.from_numpy'
        elif x.ndim != 4:
            found = f'the shape {tuple(x.shape)}'
            fix = 'add the batch dimension, for one image with x[None]'
        elif x.shape[1] != self.in_channels:
            found = f'the shape {tuple(x.shape)}'
            fix = 'move the channels to the second dimension, or set backbone.in_channels'
        else:
            weights = next(self.patch_embed.parameters()).dtype
            alike = x.dtype == weights or torch.float64 not in (x.dtype, weights)
            if x.is_floating_point() and alike:  # autocast converts the smaller types
                return
            found, fix = f'{x.dtype}, but its weights are {weights}', f'use x.to({weights})'
        raise ConfigError(
            f'EfficientViT needs a tensor (B, {self.in_channels}, H, W), got {found}; {fix}'
        )


@MODELS.register_module()
class EfficientViTHead(BaseModule):
    """The authors' classification head: global average pooling, BatchNorm and a linear layer.

    Args:
        in_channels: Channels of the last output of the backbone.
        num_classes: Number of classes.
        init_cfg: Initialisation config of OpenMMLab.

    Example:
        >>> import torch
        >>> head = EfficientViTHead(384, 1000).eval()
        >>> head((torch.rand(2, 384, 4, 4),)).shape
        torch.Size([2, 1000])
    """

    def __init__(
        self, in_channels: int, num_classes: int = 1000, init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.head = BNLinear(in_channels, num_classes)

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Return the logits ``(B, num_classes)`` for the outputs of the backbone."""
        return self.head(mean_pool(feats[-1]))
