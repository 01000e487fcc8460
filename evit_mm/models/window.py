"""Cutting feature maps into square windows and back: pure functions.

Shapes: B batch, C channels, H x W map, w window side, nH = ceil(H / w), nW = ceil(W / w).
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """Cut a map into windows, zero-padded at the bottom and right to whole windows.

    ``(B, C, H, W) -> (B * nH * nW, C, w, w)``, windows of an image in row-major order, channels
    last in memory. The padding is part of the trained function: padded tokens take part in the
    attention.
    """
    _, channels, height, width = x.shape
    w = window_size
    # this form of the ceiling lets torch.compile see that rows * w is a multiple of w
    rows, cols = (height + w - 1) // w, (width + w - 1) // w
    x = F.pad(x, (0, cols * w - width, 0, rows * w - height))
    x = x.view(-1, channels, rows, w, cols, w).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(-1, w, w, channels).permute(0, 3, 1, 2)


def window_unpartition(windows: Tensor, height: int, width: int) -> Tensor:
    """Put the windows of :func:`window_partition` together again and cut the padding off.

    ``(B * nH * nW, C, w, w) -> (B, C, H, W)``, channels last in memory.
    """
    _, channels, w, _ = windows.shape
    rows, cols = (height + w - 1) // w, (width + w - 1) // w
    x = windows.permute(0, 2, 3, 1).reshape(-1, rows, cols, w, w, channels)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows * w, cols * w, channels)
    return x[:, :height, :width].permute(0, 3, 1, 2)
