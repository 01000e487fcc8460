"""Pictures for people: 8-bit colours of any image, colours of classes, names of files."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError

NAMED_PALETTES = ('coco', 'voc', 'citys')  # lists of colours that mmdet knows by name
# suffixes of colour pictures that OpenCV writes and browsers or picture viewers open
WRITTEN = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
GOLDEN = 0.618034  # successive hues at this distance fill the circle evenly
APART = 60  # least difference of two colours, summed over the channels, while there is room
TRIES = 500
WHITES = (1.0, *(2.0**bits - 1 for bits in (8, 10, 12, 14, 16)))
Levels = tuple[float, float]


def value_levels(image: np.ndarray) -> Levels:
    """Return the values of an image that a picture shows as black and as white.

    They are 0 and 255 for 8-bit values, also if they are stored as floats. Otherwise, white is the
    smallest of :data:`WHITES` that no value exceeds, so that images of 12 and 16 bits keep their
    brightness. If there are negative values, they are the smallest and the largest value.
    """
    if image.dtype == np.uint8 or not image.size:
        return 0.0, 255.0
    finite = np.nan_to_num(image.astype(np.float32), posinf=0, neginf=0)
    low, high = float(finite.min()), float(finite.max())
    if low < 0:
        return low, max(high, low + 1)
    return 0.0, next((white for white in WHITES if high <= white), high)


def to_picture(image: np.ndarray, levels: Levels | None = None) -> np.ndarray:
    """Convert an image ``(H, W)`` or ``(H, W, C)`` of any type to a picture, BGR, uint8.

    One or two channels become grey (the first one). Of more channels, the first three are the
    colours, in the order blue, green, red. Values are scaled so that ``levels`` are black and
    white; the default is :func:`value_levels`. Values beyond them are clipped.

    Returns:
        ``(H, W, 3)``; the image itself if it has this form already.
    """
    channels = image[..., None] if image.ndim == 2 else image
    chosen = channels[..., :3] if channels.shape[2] >= 3 else channels[..., [0, 0, 0]]
    low, high = value_levels(chosen) if levels is None else levels
    if (low, high) != (0, 255):
        chosen = np.nan_to_num((chosen.astype(np.float32) - low) * (255 / (high - low))).round()
    if chosen.dtype == np.uint8:
        return np.ascontiguousarray(chosen)
    return np.ascontiguousarray(np.nan_to_num(chosen).clip(0, 255).astype(np.uint8))


def complete_palette(metainfo: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metainfo of a data set with a colour for each class.

    The given colours stay. Classes without a colour get further, distinct colours. Without a
    palette, or with the name of a colour, nothing changes: mmdet then chooses the colours.

    Raises:
        ConfigError: A colour is not three numbers from 0 to 255.
    """
    palette, classes = metainfo.get('palette'), metainfo.get('classes')
    if palette in NAMED_PALETTES:
        from mmdet.visualization import get_palette

        palette = get_palette(palette, 0)
    if palette is None or isinstance(palette, str):
        return dict(metainfo)
    if not isinstance(palette, Sequence) or isinstance(classes, str):
        raise ConfigError(f'metainfo.palette is {palette!r}; {_PALETTE_FIX}')
    if isinstance(palette, tuple) and _is_colour(palette):
        return dict(metainfo)  # mmdet uses it for every class
    for colour in palette:
        if not _is_colour(colour):
            raise ConfigError(f'metainfo.palette contains {colour!r}; {_PALETTE_FIX}')
    colours = [tuple(colour) for colour in palette]
    further = _further_colours(colours)
    colours += [next(further) for _ in range(len(classes or ()) - len(colours))]
    return {**metainfo, 'palette': colours}


_PALETTE_FIX = 'give a list with (red, green, blue) per class, each a number from 0 to 255'


def _is_colour(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == 3
        and all(isinstance(part, (int, float, np.number)) and 0 <= part <= 255 for part in value)
    )


def _further_colours(given: Sequence[tuple]) -> Iterator[tuple[int, int, int]]:
    """Yield colours that differ from the given ones and from each other."""
    taken = {tuple(colour) for colour in given}
    for number in count():
        saturation, value = ((0.8, 0.95), (0.55, 0.75), (1.0, 0.6))[number // 7 % 3]
        parts = colorsys.hsv_to_rgb(number * GOLDEN % 1, saturation, value)
        red, green, blue = (round(255 * part) for part in parts)
        colour = (red, green, blue)
        apart = APART if number < TRIES else 1
        if all(
            sum(abs(a - b) for a, b in zip(colour, other, strict=True)) >= apart for other in taken
        ):
            taken.add(colour)
            yield colour


def picture_name(path: str | Sequence[str], folder: str) -> str:
    """Return the file name of a picture of an image, with its subfolders below ``folder``.

    A picture of a file that no picture viewer opens, such as ``a.npy``, is a PNG file.

    Args:
        path: File, or the files of the channels.
        folder: Folder of the images; ``''`` keeps all folders of the path.
    """
    first = path if isinstance(path, str) else path[0]
    relative = os.path.relpath(first, folder) if folder and '://' not in first else first
    name = '/'.join(part for part in Path(relative).parts if part not in (os.pardir, os.sep))
    return name if Path(name).suffix.lower() in WRITTEN else f'{name}.png'


def image_folder(dataset: Any) -> str:
    """Return the folder of the images of a built data set, or ``''`` if it is unknown.

    It is the common folder of concatenated data sets.
    """
    parts = getattr(dataset, 'datasets', None) or filter(None, [getattr(dataset, 'dataset', None)])
    inner = [image_folder(part) for part in parts]
    prefix = getattr(dataset, 'data_prefix', None) or {}
    folders = inner or [prefix.get('img') or prefix.get('img_path') or '']
    if not all(folders):
        return ''
    return os.path.commonpath([os.path.abspath(folder) for folder in folders])
