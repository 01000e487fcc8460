"""Large images in tiles: where the tiles are, and their detections as those of the whole image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError

OVERLAP = 0.2
MAX_OVERLAP = 0.9  # above, the number of tiles explodes
# the same object has boxes from several tiles; a part of it lies within the whole
MATCH = {'match_metric': 'IOS', 'match_threshold': 0.5}


@dataclass(frozen=True)
class Tiles:
    """How a large image is cut. The tiles and the suppression of repeated boxes are sahi's.

    Attributes:
        size: Width and height of a tile in pixels of the image, at least 32.
        overlap: Part of its side that a tile shares with the next one, from 0 to 0.9.
        batch_size: Tiles per batch.

    Raises:
        ConfigError: A value is out of range, or the package ``sahi`` is not installed.
    """

    size: int
    overlap: float = OVERLAP
    batch_size: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 32:
            raise ConfigError(
                f'the size of a tile must be an integer of at least 32 pixels, got {self.size!r}'
            )
        if not isinstance(self.overlap, (int, float)) or not 0 <= self.overlap <= MAX_OVERLAP:
            raise ConfigError(
                f'the overlap of tiles must be from 0 to {MAX_OVERLAP}, got {self.overlap!r}'
            )
        _import_sahi()

    def places(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """Return the rows and columns of each tile of an image; the last ones end at its border."""
        slicing, _ = _import_sahi()
        boxes = slicing.get_slice_bboxes(
            height,
            width,
            slice_height=self.size,
            slice_width=self.size,
            overlap_height_ratio=self.overlap,
            overlap_width_ratio=self.overlap,
        )
        return [(slice(top, bottom), slice(left, right)) for left, top, right, bottom in boxes]


def join_tiles(parts: Sequence[tuple[tuple[slice, slice], Any]], height: int, width: int) -> Any:
    """Return the detections of all parts of an image as those of the image, the best first.

    Of boxes of one class that overlap by more than half of the smaller one, the one with the
    highest score is kept.

    Args:
        parts: Place of each part, and its ``InstanceData`` in pixels of the part, on the CPU.
        height: Height of the image.
        width: Width of the image.

    Returns:
        ``InstanceData`` with ``bboxes``, ``scores``, ``labels`` and, if the parts have them,
        ``masks (N, height, width)``.
    """
    from mmengine.structures import InstanceData

    _, combine = _import_sahi()
    corners = [(columns.start, rows.start) * 2 for (rows, columns), _ in parts]
    found = [instances for _, instances in parts]
    boxes = torch.cat(
        [x.bboxes + x.bboxes.new_tensor(c) for c, x in zip(corners, found, strict=True)]
    )
    scores, labels = (torch.cat([x[name] for x in found]) for name in ('scores', 'labels'))
    rows = torch.column_stack([boxes, scores, labels]).double().numpy()
    kept = combine.batched_nms(rows, **MATCH)
    joined = InstanceData(bboxes=boxes[kept], scores=scores[kept], labels=labels[kept])
    if all('masks' in instances for instances in found):
        masks = np.zeros((len(kept), height, width), bool)  # takes memory where it is written
        in_parts = [(place, mask) for place, x in parts for mask in x.masks]
        for row, index in enumerate(kept):
            place, mask = in_parts[index]
            masks[row][place] = np.asarray(mask)
        joined.masks = torch.from_numpy(masks)
    return joined


def _import_sahi() -> tuple[Any, Any]:
    logger_class = logging.getLoggerClass()
    try:
        from sahi import slicing
        from sahi.postprocess import combine
    except ImportError:
        raise ConfigError(
            "tiles need sahi; install it with: pip install 'evit_mm[tiles]'"
        ) from None
    finally:
        logging.setLoggerClass(logger_class)  # sahi sets its own for the whole process
    return slicing, combine
