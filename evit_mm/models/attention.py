"""Cascaded group attention in windows (arXiv 2305.07027, section 2.2).

Shapes: batch B (each window is one sample), channels C, heads h, window size w, tokens N = w * w.
Each head has D = C / h value channels and K query and key channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor, nn

from .layers import ConvBN
from .window import window_partition, window_unpartition


def relative_offsets(window_size: int) -> Tensor:
    """Return the bias index of each token pair, ``|dy| * w + |dx|``: ``(N, N)``, int64."""
    steps = torch.arange(window_size)
    ys, xs = (grid.flatten() for grid in torch.meshgrid(steps, steps, indexing='ij'))
    dy = (ys[:, None] - ys[None, :]).abs()
    dx = (xs[:, None] - xs[None, :]).abs()
    return dy * window_size + dx


def resize_attention_biases(biases: Tensor, window_size: int) -> Tensor:
    """Resize relative position biases to another window size: ``(h, w0 * w0) -> (h, w * w)``.

    The offset grid is interpolated bicubically without corner alignment, as in the authors'
    detection code.

    Raises:
        ValueError: The biases do not form a square grid.
    """
    side = round(biases.shape[-1] ** 0.5)
    if biases.ndim != 2 or side * side != biases.shape[1] or not biases.numel():
        raise ValueError(f'attention biases must be (heads, w * w), got {tuple(biases.shape)}')
    if side == window_size:
        return biases
    grid = biases.reshape(1, -1, side, side).float()
    size = (window_size, window_size)
    grid = F.interpolate(grid, size, mode='bicubic', align_corners=False)
    return grid.reshape(-1, window_size**2).to(biases.dtype)


def fit_windows(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in ``state`` with attention biases resized to the windows in ``wanted``.

    Biases that cannot be resized are returned unchanged. The caller reports them.
    """
    fitted = dict(state)
    for key, value in state.items():
        if key.endswith('attention_biases') and key in wanted and value.is_floating_point():
            heads, offsets = wanted[key].shape
            with suppress(ValueError):
                if value.shape[:1] == (heads,):
                    fitted[key] = resize_attention_biases(value, round(offsets**0.5))
    return fitted


class CascadedGroupAttention(nn.Module):
    """Attention in which each head receives one slice of the channels.

    The output of each head is added to the input slice of the next head (the cascade).

    Args:
        dim: Number of channels C.
        key_dim: Number of query and key channels K of each head.
        num_heads: Number of heads h. It must divide ``dim``.
        window_size: Window size w. The input must be ``w x w``.
        kernel_sizes: Kernel size of the depthwise conv on the query of each head. Extra entries
            are ignored.
    """

    attention_bias_idxs: Tensor

    def __init__(
        self,
        dim: int,
        key_dim: int,
        num_heads: int,
        window_size: int,
        kernel_sizes: tuple[int, ...],
    ) -> None:
        super().__init__()
        value_dim = dim // num_heads
        self.split_sizes = (key_dim, key_dim, value_dim)
        self.scale = key_dim**-0.5
        self.window_size = window_size
        self.qkvs = nn.ModuleList(
            ConvBN(value_dim, 2 * key_dim + value_dim) for _ in range(num_heads)
        )
        self.dws = nn.ModuleList(
            ConvBN(key_dim, key_dim, kernel_size, groups=key_dim)
            for kernel_size in kernel_sizes[:num_heads]
        )
        self.proj = nn.Sequential(nn.ReLU(inplace=True), ConvBN(dim, dim, bn_weight=0.0))
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window_size**2))
        # not persistent: the indices depend on the window size, so a checkpoint with another
        # window size must not overwrite them
        self.register_buffer('attention_bias_idxs', relative_offsets(window_size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply attention in each window: ``(B, C, w, w) -> (B, C, w, w)``."""
        biases = self.attention_biases[:, self.attention_bias_idxs]  # (h, N, N)
        slices = x.chunk(len(self.qkvs), dim=1)
        heads: list[Tensor] = []
        for part, qkv, dw, bias in zip(slices, self.qkvs, self.dws, biases, strict=True):
            feat = part + heads[-1] if heads else part  # the cascade
            q, k, v = qkv(feat).split(self.split_sizes, dim=1)
            # flatten(2).transpose(1, 2) would give BatchNorm wrong gradients on the CPU for B = 1,
            # see test_one_window_has_the_gradient_of_many
            q = dw(q).permute(0, 2, 3, 1).flatten(1, 2) * self.scale  # (B, N, K)
            attention = (q @ k.flatten(2) + bias).softmax(dim=-1)  # (B, N, N)
            head = attention @ v.flatten(2).transpose(1, 2)  # (B, N, D)
            # a view without a copy, in channels-last format like the windows
            heads.append(head.unflatten(1, part.shape[2:]).permute(0, 3, 1, 2))
        return self.proj(torch.cat(heads, dim=1))


class WindowAttention(nn.Module):
    """:class:`CascadedGroupAttention` on every window of a feature map of any size.

    ``(B, C, H, W) -> (B, C, H, W)``. It takes the same arguments.
    """

    def __init__(
        self,
        dim: int,
        key_dim: int,
        num_heads: int,
        window_size: int,
        kernel_sizes: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.attn = CascadedGroupAttention(dim, key_dim, num_heads, window_size, kernel_sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Partition the map into windows, apply attention, and merge the windows."""
        windows = window_partition(x, self.attn.window_size)
        return window_unpartition(self.attn(windows), *x.shape[2:])
