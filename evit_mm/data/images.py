"""Find images, also by names that another system has written; take images from memory."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from ..errors import DataError

# of files that OpenCV decodes
JPEG_SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif')
IMAGE_SUFFIXES = (
    *JPEG_SUFFIXES,
    *('.png', '.bmp', '.dib', '.tif', '.tiff', '.webp'),
    *('.jp2', '.avif', '.pbm', '.pgm', '.ppm', '.pnm'),
)
MAX_NAMED = 5
NUM_DECODED = 8  # images decoded per split, enough to find a systematic error
UNDECODABLE = 'cannot be decoded'
OTHER_FOLDERS, OTHER_FORM = 'other folders', 'another Unicode form'
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


def to_bgr(image: np.ndarray | Image.Image, turn: bool = True) -> np.ndarray:
    """Return an image in memory as OpenCV reads the same picture from a file in colour.

    Grey becomes three equal channels, an alpha channel is dropped, and of 16 bits the upper 8 stay.
    CMYK of PIL and 16-bit colours of TIFF files differ by a few levels, the roundings of OpenCV.

    Args:
        image: ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` in BGR or ``(H, W, 4)`` in BGRA, uint8 or
            uint16; or a PIL image of any mode.
        turn: Apply the EXIF orientation of a PIL image.

    Returns:
        ``(H, W, 3)``, BGR, uint8.

    Raises:
        DataError: The image has another shape or type, or PIL cannot decode it.
    """
    pixels = _from_pil(image, turn) if isinstance(image, Image.Image) else image
    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    if channels.ndim != 3 or channels.shape[2] not in (1, 3, 4) or not channels.size:
        raise DataError(
            f'the array has the shape {pixels.shape}; give (H, W), (H, W, 1), (H, W, 3) in BGR or '
            '(H, W, 4) in BGRA, without empty sides'
        )
    if channels.dtype.kind != 'u' or channels.dtype.itemsize > 2:
        raise DataError(
            f'the pixels are of type {pixels.dtype}; convert them to uint8 (0 to 255) or uint16'
        )
    if channels.dtype.itemsize == 2:
        channels = (channels >> 8).astype(np.uint8)
    chosen = channels[..., [0, 0, 0]] if channels.shape[2] == 1 else channels[..., :3]
    return np.ascontiguousarray(chosen)


def _from_pil(image: Image.Image, turn: bool) -> np.ndarray:
    try:
        image = ImageOps.exif_transpose(image) if turn else image
        if not image.mode.startswith(('I', 'F')):
            return np.asarray(image.convert('RGB'))[..., ::-1]
        pixels = np.asarray(image)
    except Exception as error:  # PIL reads files late, and their decoders can raise anything
        raise DataError(f'the PIL image {UNDECODABLE} ({error})') from error
    # some versions of PIL open images of 16 bits as 32 bits
    fits = image.mode == 'I' and 0 <= pixels.min(initial=0) <= pixels.max(initial=0) < 2**16
    return pixels.astype(np.uint16) if fits else pixels


def is_hidden(path: Path) -> bool:
    """Return whether a relative path is a hidden file, or is in a hidden folder."""
    return any(part.startswith('.') for part in path.parts)


def spread(items: Sequence[Item], most: int) -> Sequence[Item]:
    """Return at most ``most`` evenly spaced items."""
    return items[:: max(-(-len(items) // most), 1)]


def with_slashes(path: str) -> str:
    """Return a path that may have been written on Windows with slashes."""
    return path.strip().replace('\\', '/')


class NamedFiles:
    """Files that are found by names which another program or system has written.

    A name fits a file if both end with the same file name. The folders before it may differ, and so
    may slashes, the Unicode form of letters (macOS has its own), and upper and lower case.

    Args:
        files: Paths relative to a folder, with slashes.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self._files: dict[str, list[tuple[str, list[str]]]] = {}
        for file in files:
            if keys := _keys(file):
                self._files.setdefault(keys[-1], []).append((file, keys))

    def find(self, name: str) -> list[str]:
        """Return the files that a name may mean: those with the most folders of the name."""
        keys = _keys(name)
        found = self._files.get(keys[-1], []) if keys else []
        last = _composed(name).rpartition('/')[2]
        scores = [(_common_end(keys, of), _composed(file).endswith(last)) for file, of in found]
        best = max(scores, default=None)
        return [file for (file, _), score in zip(found, scores, strict=True) if score == best]


def _composed(path: str) -> str:
    return unicodedata.normalize('NFC', with_slashes(path))


def _parts(path: str) -> list[str]:
    parts = PurePosixPath(with_slashes(path)).parts
    return [part for part in parts if part.strip('/') and part != '..']


def _keys(path: str) -> list[str]:
    return _parts(_composed(path).casefold())


def _common_end(left: Sequence[str], right: Sequence[str]) -> int:
    pairs = zip(reversed(left), reversed(right), strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def difference(name: str, file: str) -> str:
    """Return what the path of a file has that a name which means this file does not have."""
    parts = _parts(name)
    end = _parts(file)[-len(parts) :]
    if parts == end:
        return 'slashes instead of backslashes' if '\\' in name else OTHER_FOLDERS
    if _keys(name) != _keys('/'.join(end)):
        return OTHER_FOLDERS
    same = _composed('/'.join(parts)) == _composed('/'.join(end))
    return OTHER_FORM if same else 'other upper and lower case letters'


def folders_apart(name: str, file: str) -> tuple[list[str], list[str]]:
    """Return the folders, in lower case, that two paths have before their common end."""
    left, right = _keys(name), _keys(file)
    common = _common_end(left, right)
    return left[: len(left) - common], right[: len(right) - common]


def some(items: Sequence[object]) -> str:
    """Return the first items and their total number as text for a message."""
    shown = ', '.join(str(item) for item in items[:MAX_NAMED])
    return shown + (f', ... ({len(items)} in all)' if len(items) > MAX_NAMED else '')
