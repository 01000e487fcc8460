"""The small layers that the network is made of.

Attribute names (``c``, ``bn``, ``m``, ``pw1``, ``fc1``, ...) are those of the authors' checkpoints
and so part of a file format; do not rename them. ReLUs work in place: each follows a convolution,
a BatchNorm or a concatenation, whose result neither the backward pass nor anybody else reads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvBN(nn.Sequential):
    """Convolution without bias, then BatchNorm.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Side of the kernel, odd; the padding keeps the size at stride 1.
        stride: Stride.
        groups: Groups of the convolution.
        bn_weight: Initial BatchNorm scale; 0 lets a residual branch start as the identity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        bn_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.c = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_channels)
        nn.init.constant_(self.bn.weight, bn_weight)


class ImageConvBN(ConvBN):
    """:class:`ConvBN` on images, whose result is in the layout that the network computes in.

    The copy of the images in that layout is freed before the BatchNorm allocates its result. While
    it lived longer, the process of a small network returned memory to the system after every call
    and asked for it again in the next.

    Args:
        memory_format: That layout.
        args, kwargs: As :class:`ConvBN`.
    """

    def __init__(self, memory_format: torch.memory_format, *args: int, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)
        self.memory_format = memory_format

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise images of either layout."""
        x = self.c(x.contiguous(memory_format=self.memory_format))
        # images of one channel are in both layouts, and their result would be contiguous
        return self.bn(x.contiguous(memory_format=self.memory_format))


class FFN(nn.Module):
    """Pointwise feed-forward network with expansion 2: ``(B, C, H, W) -> (B, C, H, W)``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pw1 = ConvBN(dim, 2 * dim)
        self.act = nn.ReLU(inplace=True)
        self.pw2 = ConvBN(2 * dim, dim, bn_weight=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the two pointwise convolutions with a ReLU between them."""
        return self.pw2(self.act(self.pw1(x)))


class SqueezeExcite(nn.Module):
    """Channel gate from the spatial mean, reduction 4: ``(B, C, H, W) -> (B, C, H, W)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 4, 1)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel by a gate in (0, 1)."""
        gate = self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class Residual(nn.Module):
    """``x + m(x)``; while training, the branch of a sample is dropped with ``drop_path_rate``."""

    def __init__(self, m: nn.Module, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.m = m
        self.drop_path_rate = drop_path_rate

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch, scaled by 1 / (1 - rate) where it is kept."""
        branch = self.m(x)
        if self.training and self.drop_path_rate:
            branch = drop_path(branch, self.drop_path_rate)
        return x + branch


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Set samples of a batch ``(B, ...)`` to zero with probability ``rate``; scale the others.

    The mean stays what it was (stochastic depth, arXiv 1603.09382).
    """
    kept = torch.rand((x.shape[0], *[1] * (x.ndim - 1)), dtype=x.dtype, device=x.device) >= rate
    return x / (1 - rate) * kept


class BNLinear(nn.Module):
    """BatchNorm over features, then a linear layer: the authors' classification head.

    ``(B, in_features) -> (B, out_features)``; the weight starts as a truncated normal, std 0.02.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(in_features)
        self.l = nn.Linear(in_features, out_features)
        nn.init.trunc_normal_(self.l.weight, std=0.02)
        nn.init.zeros_(self.l.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and project; logits."""
        return self.l(self.bn(x))


def mean_pool(x: Tensor) -> Tensor:
    """Return the spatial mean: ``(B, C, H, W) -> (B, C)``."""
    return torch.mean(x, dim=(2, 3))
