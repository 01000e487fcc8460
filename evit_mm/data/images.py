"""Find images, and recognise truncated ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

from ..errors import DataError

# of files that OpenCV decodes
IMAGE_SUFFIXES = (
    *('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.dib', '.tif', '.tiff', '.webp'),
    *('.jp2', '.avif', '.pbm', '.pgm', '.ppm', '.pnm'),
)
MAX_NAMED = 5
NUM_DECODED = 8  # images decoded per split, enough to find a systematic error
UNDECODABLE = 'cannot be decoded'
JPEG_START, JPEG_END = b'\xff\xd8', b'\xff\xd9'
TAIL = 1024  # the last bytes of a file, in which a complete JPEG has its end marker
Item = TypeVar('Item')


def list_images(source: str | Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Return an image file, or all images in a folder and its subfolders, sorted.

    Hidden files and folders, such as the ``._a.jpg`` of macOS, are skipped. ``suffixes`` are those
    of the images, in lower case.

    Raises:
        DataError: The path does not exist, or the folder has no image.
    """
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"image or folder '{source}' does not exist")
    found = (path for path in source.rglob('*') if path.suffix.lower() in suffixes)
    images = sorted(path for path in found if not is_hidden(path.relative_to(source)))
    if not images:
        raise DataError(f"no image found in '{source}' ({', '.join(suffixes)})")
    return images


def is_cut_short(path: str) -> bool:
    """Return whether a local JPEG is truncated.

    OpenCV 4 fills the missing part with grey, and OpenCV 5 does not decode the file.
    """
    if not os.path.isfile(path):
        return False
    with open(path, 'rb') as file:
        if file.read(2) != JPEG_START:
            return False
        file.seek(max(2, os.path.getsize(path) - TAIL))
        if JPEG_END in file.read():
            return False
    try:  # the end marker can also be before the tail, so decode the file to be certain
        with Image.open(path) as image:
            image.load()
    except OSError:
        return True
    return False


def is_hidden(path: Path) -> bool:
    """Return whether a relative path is a hidden file, or is in a hidden folder."""
    return any(part.startswith('.') for part in path.parts)


def spread(items: Sequence[Item], most: int) -> Sequence[Item]:
    """Return at most ``most`` evenly spaced items."""
    return items[:: max(-(-len(items) // most), 1)]


def some(items: Sequence[object]) -> str:
    """Return the first items and their total number as text for a message."""
    shown = ', '.join(str(item) for item in items[:MAX_NAMED])
    return shown + (f', ... ({len(items)} in all)' if len(items) > MAX_NAMED else '')
