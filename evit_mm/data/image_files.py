"""Find images of an annotation file that are missing, unreadable or of another size."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import is_normalized

from rich.console import Console
from rich.progress import track

from ..errors import DataError
from ..utils.text import counted
from .images import (
    OTHER_FOLDERS,
    OTHER_FORM,
    UNDECODABLE,
    NamedFiles,
    difference,
    some,
    spread,
)
from .overlap import MOST_LISTED
from .pipeline import ImageReader

Entries = Sequence[Mapping[str, Any]]


def image_file_faults(
    images: Entries, img_dir: Path, num_decoded: int | None, pipeline: Sequence[Any]
) -> Iterator[str]:
    """Name images that do not exist, cannot be decoded, or have another size.

    Args:
        images: Entries of an annotation file.
        img_dir: Folder that contains the images.
        num_decoded: Maximum number of images to decode, evenly spaced. None decodes all images and
            shows a progress bar.
        pipeline: Pipeline whose loading steps read the images.
    """
    # listing each folder once is faster than one stat call per image
    folders = {(img_dir / image['file_name']).parent for image in images}
    present = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    names = [image['file_name'] for image in images]
    missing = [name for name in names if img_dir / name not in present]
    if missing and not img_dir.is_dir():
        yield f"image folder '{img_dir}' does not exist; check data_root and data_prefix.img"
    elif missing:
        yield from _missing_faults(missing, len(images), img_dir)
    else:
        empty = [name for name in names[:MOST_LISTED] if not (img_dir / name).stat().st_size]
        if empty:
            yield (
                f"{len(empty)} of {counted(len(images), 'image')} in '{img_dir}' {UNDECODABLE}, "
                f'because the files are empty ({some(empty)}); replace them or remove their entries'
            )
        else:
            yield from _decoding_faults(images, img_dir, num_decoded, pipeline)


def _missing_faults(missing: Sequence[str], number: int, img_dir: Path) -> Iterator[str]:
    """Say why images are missing: often their files have another name."""
    files = NamedFiles(path.relative_to(img_dir).as_posix() for path in img_dir.rglob('*'))
    found = {name: files.find(name) for name in missing}
    renamed: dict[str, dict[str, str]] = {}
    for name, (file, *others) in ((name, fits or ['']) for name, fits in found.items()):
        cause = difference(name, file) if file and not others else ''
        renamed.setdefault(cause, {})[name] = file
    for cause, names in renamed.items():
        lost = f"{len(names)} of {number} images are not in '{img_dir}' ({some([*names])})"
        if not cause:
            yield f'{lost}; check data_prefix.img or copy the images there'
            continue
        name, file = next(iter(names.items()))
        yield (
            f"{lost}; the files are there under names with {cause} ('{file}' for "
            f"'{name}'); {_renaming(cause, names, img_dir)}"
        )


def _renaming(cause: str, names: Mapping[str, str], img_dir: Path) -> str:
    """Return how to correct the names of images that have these files."""
    if cause == OTHER_FORM:
        form = 'NFC' if all(is_normalized('NFC', file) for file in names.values()) else 'NFD'
        return f"write file_name in the form {form}, with unicodedata.normalize('{form}', name)"
    if cause == OTHER_FOLDERS:
        added = {file.removesuffix(name) for name, file in names.items()}
        lacking = [file for name, file in names.items() if not file.endswith(f'/{name}')]
        if len(added) == 1 and not lacking:
            return f"set data_prefix.img to '{img_dir / added.pop()}'"
        if all((img_dir.parent / name).is_file() for name in names):
            return f"set data_prefix.img to '{img_dir.parent}'"
    return 'write file_name as the path of the file below this folder, with /'


def _decoding_faults(
    images: Entries, img_dir: Path, num_decoded: int | None, pipeline: Sequence[Any]
) -> Iterator[str]:
    read = ImageReader(pipeline)
    if num_decoded is not None:
        images = spread(images, num_decoded)
    bar = track(
        images,
        f'decoding {img_dir}',
        console=Console(stderr=True),
        disable=num_decoded is not None or not sys.stderr.isatty(),
    )
    broken, differing = [], []
    for image in bar:
        try:
            pixels = read(img_dir / image['file_name'])
        except DataError as error:
            broken.append(f'{image["file_name"]}{str(error).partition(UNDECODABLE)[2]}')
            continue
        if pixels.shape[:2] != (image['height'], image['width']):
            size = f'{pixels.shape[1]}x{pixels.shape[0]}'
            said = f'{image["width"]}x{image["height"]}'
            differing.append(f'{image["file_name"]} is {size}, not {said}')
    opened = f"of {len(images)} checked images in '{img_dir}'"
    if broken:
        yield (
            f'{len(broken)} {opened} {UNDECODABLE} ({some(broken)}); replace them or remove their '
            'entries'
        )
    if differing:
        yield (
            f'{len(differing)} {opened} have a different size in the annotation file '
            f'({some(differing)}), so boxes would be misplaced; correct width and height. If '
            'the images have an EXIF rotation and the annotations ignore it, set '
            "color_type='color_ignore_orientation' in LoadImageFromFile"
        )
