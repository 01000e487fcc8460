"""Find and read images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import mmcv
import numpy as np

from ..errors import DataError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
MAX_NAMED = 5
NUM_DECODED = 8  # images decoded per split, enough to find a systematic error
UNDECODABLE = 'cannot be decoded'
Item = TypeVar('Item')


def list_images(source: str | Path) -> list[Path]:
    """Return an image file, or all images in a folder and its subfolders, sorted.

    Raises:
        DataError: The path does not exist, or the folder has no image.
    """
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"image or folder '{source}' does not exist")
    images = sorted(p for p in source.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"no image found in '{source}' ({', '.join(IMAGE_SUFFIXES)})")
    return images


def read_image(path: str | Path) -> np.ndarray | None:
    """Return the pixels ``(H, W, 3)`` of an image, BGR, uint8; None if it cannot be decoded."""
    try:
        return mmcv.imread(str(path))
    except (OSError, cv2.error):  # a folder or an empty file; for other errors OpenCV returns None
        return None


def spread(items: Sequence[Item], most: int) -> Sequence[Item]:
    """Return at most ``most`` evenly spaced items."""
    return items[:: max(-(-len(items) // most), 1)]


def some(items: Sequence[object]) -> str:
    """Return the first items and their total number as text for a message."""
    shown = ', '.join(str(item) for item in items[:MAX_NAMED])
    return shown + (f', ... ({len(items)} in all)' if len(items) > MAX_NAMED else '')
