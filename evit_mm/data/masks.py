"""Whether a segmentation in COCO's format can be given to pycocotools.

It trusts what it is given: far points take all memory, and wrong runs end the interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .coco import is_number


def is_loadable(segmentation: Any, width: int, height: int) -> bool:
    """Say whether it is polygons near an image of this size, or runs that fill it."""
    if isinstance(segmentation, Mapping):
        runs = run_lengths(segmentation.get('counts'))
        return segmentation.get('size') == [height, width] and sum(runs) == width * height
    if not isinstance(segmentation, list):
        return False
    # mmdet leaves polygons of fewer points out, and takes the rest of the object's
    return all(_is_polygon(p, width, height) for p in segmentation) and any(
        len(polygon) >= 6 for polygon in segmentation
    )


def _is_polygon(value: Any, width: int, height: int) -> bool:
    if not isinstance(value, list) or len(value) % 2 or not all(map(is_number, value)):
        return False
    xs, ys = value[::2], value[1::2]
    return all(-width <= x <= 2 * width for x in xs) and all(-height <= y <= 2 * height for y in ys)


def run_lengths(counts: Any) -> list[int]:
    """Return the runs of an RLE, a list or COCO's text of six bits a character; [] if broken."""
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
        if len(runs) > 2:  # from the fourth on they are differences to the one before the last
            run += runs[-2]
        if run < 0:
            return []
        runs.append(run)
        run = shift = 0
    return [] if shift else runs
