"""Find images that are in two splits of a data set."""

from __future__ import annotations

import filecmp
import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .images import NUM_DECODED, spread

MOST_LISTED = 10_000  # larger training sets are not searched for renamed copies


def shared_images(first: Sequence[Path], second: Sequence[Path]) -> tuple[list[Path], int]:
    """Return the images of ``second`` that are also in ``first``.

    Two entries with the same path are the same image. If there are none, a few images of ``second``
    are compared by content with the files of ``first`` of the same size, to find copies.

    Returns:
        The shared images, and how many images of ``second`` were compared.
    """
    known = set(map(os.path.abspath, first))
    same = [path for path in second if os.path.abspath(path) in known]
    if same or len(first) > MOST_LISTED:
        return same, len(second)
    by_size: dict[int, list[Path]] = defaultdict(list)
    copies: list[Path] = []
    sample = spread(second, NUM_DECODED)
    with suppress(OSError):  # missing images are an error of their own
        for path in first:
            by_size[path.stat().st_size].append(path)
        copies = [
            path
            for path in sample
            if any(
                filecmp.cmp(path, other, shallow=False)
                # uncompressed images all have one size
                for other in by_size[path.stat().st_size][:NUM_DECODED]
            )
        ]
    return copies, len(sample)
