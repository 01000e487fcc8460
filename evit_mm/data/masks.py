"""Check whether a COCO segmentation is safe for pycocotools.

pycocotools does not validate its input. Points far outside the image exhaust the memory, and
invalid run lengths crash the interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .coco import is_number


def is_loadable(segmentation: Any, width: int, height: int) -> bool:
    """Return whether a segmentation is polygons near the image, or RLE of the image size."""
    if isinstance(segmentation, Mapping):
        runs = run_lengths(segmentation.get('counts'))
        return segmentation.get('size') == [height, width] and sum(runs) == width * height
    if not isinstance(segmentation, list):
        return False
    # mmdet ignores polygons with fewer than three points if the object has others
    return all(_is_polygon(p, width, height) for p in segmentation) and any(
        len(polygon) >= 6 for polygon in segmentation
    )


def _is_polygon(value: Any, width: int, height: int) -> bool:
    if not isinstance(value, list) or len(value) % 2 or not all(map(is_number, value)):
        return False
    xs, ys = value[::2], value[1::2]
    return all(-width <= x <= 2 * width for x in xs) and all(-height <= y <= 2 * height for y in ys)


def run_lengths(counts: Any) -> list[int]:
    """Return the run lengths of an RLE, or ``[]`` if it is invalid.

    ``counts`` is a list, or COCO's compressed string with six bits per character.
    """
    if isinstance(counts, list):
        return counts if all(isinstance(run, int) and run >= 0 for run in counts) else []
    if not isinstance(counts, str):
        return []
    runs: list[int] = []
    run = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return []
        run |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more of this run follows
            continue
        if bits & 16:
            run -= 1 << shift
        if len(runs) > 2:  # from the fourth run on, COCO stores differences to the run two before
            run += runs[-2]
        if run < 0:
            return []
        runs.append(run)
        run = shift = 0
    return [] if shift else runs
