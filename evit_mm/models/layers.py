"""Basic layers of the network.

The attribute names (``c``, ``bn``, ``m``, ``pw1``, ``fc1``, ...) are the names in the authors'
checkpoints. Do not rename them. Every ReLU is in-place. It follows a convolution, a BatchNorm or a
concatenation, and nothing else needs the output of that layer, not even the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvBN(nn.Sequential):
    """Convolution without bias, followed by BatchNorm.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Kernel size, an odd number. The padding keeps the map size at stride 1.
        stride: Stride of the convolution.
        groups: Groups of the convolution.
        bn_weight: Initial BatchNorm weight. With 0, a residual branch starts as the identity.
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
    """:class:`ConvBN` for the input images, with a choice of memory format.

    The converted copy of the images is freed before the BatchNorm allocates its output. Otherwise a
    small network returns this memory to the system and allocates it again in every call.

    Args:
        memory_format: Memory format of the output.
        args, kwargs: Arguments of :class:`ConvBN`.
    """

    def __init__(self, memory_format: torch.memory_format, *args: int, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)
        self.memory_format = memory_format

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise images of any memory format."""
        x = self.c(x.contiguous(memory_format=self.memory_format))
        # a one-channel image has both memory formats, and then the conv returns contiguous output
        return self.bn(x.contiguous(memory_format=self.memory_format))


class FFN(nn.Module):
    """Pointwise feed-forward network with expansion ratio 2: ``(B, C, H, W) -> (B, C, H, W)``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pw1 = ConvBN(dim, 2 * dim)
        self.act = nn.ReLU(inplace=True)
        self.pw2 = ConvBN(2 * dim, dim, bn_weight=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Apply two pointwise convolutions with a ReLU between them."""
        return self.pw2(self.act(self.pw1(x)))


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation with reduction ratio 4: ``(B, C, H, W) -> (B, C, H, W)``."""

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
    """Residual connection ``x + m(x)``, with stochastic depth during training."""

    def __init__(self, m: nn.Module, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.m = m
        self.drop_path_rate = drop_path_rate

    def forward(self, x: Tensor) -> Tensor:
        """Add the output of the branch to the input."""
        branch = self.m(x)
        if self.training and self.drop_path_rate:
            branch = drop_path(branch, self.drop_path_rate)
        return x + branch


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Drop samples of a batch ``(B, ...)`` with probability ``rate`` (stochastic depth).

    The other samples are divided by ``1 - rate`` to keep the mean. See arXiv 1603.09382.
    """
    kept = torch.rand((x.shape[0], *[1] * (x.ndim - 1)), dtype=x.dtype, device=x.device) >= rate
    return x / (1 - rate) * kept


class BNLinear(nn.Module):
    """BatchNorm followed by a linear layer: ``(B, in_features) -> (B, out_features)``.

    The linear weight is initialised from a truncated normal distribution with std 0.02.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(in_features)
        self.l = nn.Linear(in_features, out_features)
        nn.init.trunc_normal_(self.l.weight, std=0.02)
        nn.init.zeros_(self.l.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the features and return the logits."""
        return self.l(self.bn(x))


def mean_pool(x: Tensor) -> Tensor:
    """Return the spatial mean: ``(B, C, H, W) -> (B, C)``."""
    return torch.mean(x, dim=(2, 3))
