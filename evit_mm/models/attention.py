"""Cascaded group attention inside windows (arXiv 2305.07027, section 2.2).

Shapes: B batch (windows count as batch), C channels, h heads, D = C / h channels of one head's
value, K channels of its query and key, w window side, N = w * w tokens.
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
    """Return which bias each pair of tokens shares: ``|dy| * w + |dx|``, ``(N, N)`` int64."""
    steps = torch.arange(window_size)
    ys, xs = (grid.flatten() for grid in torch.meshgrid(steps, steps, indexing='ij'))
    dy = (ys[:, None] - ys[None, :]).abs()
    dx = (xs[:, None] - xs[None, :]).abs()
    return dy * window_size + dx


def resize_attention_biases(biases: Tensor, window_size: int) -> Tensor:
    """Resize relative position biases to another window: ``(h, w0 * w0) -> (h, w * w)``.

    Bicubic on the grid of offsets, without corner alignment, as in the authors' detection code.

    Raises:
        ValueError: The biases are not over a square grid.
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
    """Return a file's tensors with attention biases resized to the windows of a model's own.

    What cannot be resized is left to be reported.
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
    """Attention whose heads each see a slice of the channels plus the previous head's output.

    Args:
        dim: Channels C.
        key_dim: Channels K of one head's query and key.
        num_heads: Heads h; must divide ``dim``.
        window_size: Window side w; the input must be exactly ``w x w``.
        kernel_sizes: Depthwise kernel on the query of each head, one per head.
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
        # not persistent: it follows from the window size, and a stale copy in a file of another
        # window size must never be loaded
        self.register_buffer('attention_bias_idxs', relative_offsets(window_size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each window: ``(B, C, w, w) -> (B, C, w, w)``."""
        biases = self.attention_biases[:, self.attention_bias_idxs]  # (h, N, N)
        slices = x.chunk(len(self.qkvs), dim=1)
        heads: list[Tensor] = []
        for part, qkv, dw, bias in zip(slices, self.qkvs, self.dws, biases, strict=True):
            feat = part + heads[-1] if heads else part  # the cascade
            q, k, v = qkv(feat).split(self.split_sizes, dim=1)
            # not flatten(2).transpose(1, 2): see `test_one_window_has_the_gradient_of_many`
            q = dw(q).permute(0, 2, 3, 1).flatten(1, 2) * self.scale  # (B, N, K)
            attention = (q @ k.flatten(2) + bias).softmax(dim=-1)  # (B, N, N)
            head = attention @ v.flatten(2).transpose(1, 2)  # (B, N, D)
            # channels last in memory, as the windows come: a view, no copy
            heads.append(head.unflatten(1, part.shape[2:]).permute(0, 3, 1, 2))
        return self.proj(torch.cat(heads, dim=1))


class WindowAttention(nn.Module):
    """:class:`CascadedGroupAttention` on every window of a map of any size.

    ``(B, C, H, W) -> (B, C, H, W)``; arguments as :class:`CascadedGroupAttention`.
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
        """Cut into windows, attend in each, put together again."""
        windows = window_partition(x, self.attn.window_size)
        return window_unpartition(self.attn(windows), *x.shape[2:])
