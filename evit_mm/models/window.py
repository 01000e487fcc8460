"""Partition feature maps into square windows, and merge the windows.

Shapes: batch B, channels C, map size H x W, window size w. A map has nH x nW windows, with
nH = ceil(H / w) and nW = ceil(W / w).
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """Partition a map into windows: ``(B, C, H, W) -> (B * nH * nW, C, w, w)``.

    The map is zero-padded at the bottom and right. The windows of each image are in row-major order
    and in channels-last memory format. The padded tokens take part in the attention, as in the
    authors' code, so the trained weights depend on this padding.
    """
    _, channels, height, width = x.shape
    w = window_size
    # written this way, torch.compile can prove that rows * w is a multiple of w
    rows, cols = (height + w - 1) // w, (width + w - 1) // w
    x = F.pad(x, (0, cols * w - width, 0, rows * w - height))
    x = x.view(-1, channels, rows, w, cols, w).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(-1, w, w, channels).permute(0, 3, 1, 2)


def window_unpartition(windows: Tensor, height: int, width: int) -> Tensor:
    """Merge the windows of :func:`window_partition` and remove the padding.

    ``(B * nH * nW, C, w, w) -> (B, C, H, W)``, in channels-last memory format.
    """
    _, channels, w, _ = windows.shape
    rows, cols = (height + w - 1) // w, (width + w - 1) // w
    x = windows.permute(0, 2, 3, 1).reshape(-1, rows, cols, w, w, channels)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows * w, cols * w, channels)
    return x[:, :height, :width].permute(0, 3, 1, 2)
