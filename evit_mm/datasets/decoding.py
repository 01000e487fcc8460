"""Reading pictures that may be broken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import mmcv
import numpy as np

MAX_NAMED = 5


def read_image(path: str | Path) -> np.ndarray | None:
    """Return an image's pixels ``(H, W, 3)``, BGR, uint8; None where it cannot be decoded."""
    try:
        return mmcv.imread(str(path))
    except (OSError, cv2.error):  # a folder, or an empty file; of others OpenCV returns None
        return None


def some(items: Sequence[object]) -> str:
    """Return the first few items and how many there are, for a message."""
    shown = ', '.join(str(item) for item in items[:MAX_NAMED])
    return shown + (f', ... ({len(items)} in all)' if len(items) > MAX_NAMED else '')
