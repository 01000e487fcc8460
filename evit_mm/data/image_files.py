"""Find images of an annotation file that are missing, unreadable or of another size."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from unicodedata import is_normalized

from rich.console import Console
from rich.progress import track

from ..errors import DataError
from ..utils.text import counted
from .formats.samples import may_mean, named_split
from .images import (
    OTHER_FOLDERS,
    OTHER_FORM,
    UNDECODABLE,
    NamedFiles,
    difference,
    folders_apart,
    is_cut_short,
    some,
    spread,
)
from .overlap import MOST_LISTED
from .pipeline import ImageReader

Entries = Sequence[Mapping[str, Any]]
MOST_SEARCHED = 200_000  # files and folders below an image folder
MOST_EXPLAINED = 100  # missing images for which the files are searched
COPY = 'check data_prefix.img or copy the images there'
RENAME = 'write file_name as the path of the file below this folder, with /'


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
        yield from _missing_faults(missing, names, img_dir)
    else:
        broken = [name for name in names[:MOST_LISTED] if _is_broken(img_dir / name)]
        if broken:
            yield (
                f"{len(broken)} of {counted(len(images), 'image')} in '{img_dir}' {UNDECODABLE}, "
                f'because the files are empty or truncated ({some(broken)}); replace them or '
                'remove their entries'
            )
        else:
            yield from _decoding_faults(images, img_dir, num_decoded, pipeline)


def _is_broken(image: Path) -> bool:
    return not image.stat().st_size or is_cut_short(str(image))


def _missing_faults(missing: Sequence[str], names: Sequence[str], img_dir: Path) -> Iterator[str]:
    """Say why images are missing: often their files are in other folders or have other names."""
    entries = islice(img_dir.rglob('*'), MOST_SEARCHED)  # without data_root, it is any folder
    files = NamedFiles(path.relative_to(img_dir).as_posix() for path in entries)
    found = {name: files.find(name) for name in missing[:MOST_EXPLAINED]}
    others = missing[MOST_EXPLAINED:]
    if folder := _folder_of_all([*missing, *names], found[missing[0]], img_dir):
        text = f"{len(missing)} of {len(names)} images are not in '{img_dir}' ({some(missing)})"
        yield f"{text}; all images are in '{folder}'; set data_prefix.img to this folder"
        return
    causes: dict[tuple[str, str], list[str]] = {}
    for name in found:
        causes.setdefault(_cause(name, found[name], img_dir), []).append(name)
    for (cause, fix), lost in causes.items():
        listed = lost if cause else [*lost, *others]
        number = f'at least {len(listed)}' if cause and others else len(listed)
        text = f"{number} of {len(names)} images are not in '{img_dir}' ({some(listed)})"
        if cause == OTHER_FOLDERS:
            folders = {f"'{(img_dir / file).parent}'" for name in lost for file in found[name]}
            text += f'; files with these names are in {some(sorted(folders))}'
        elif cause:
            example = f"'{found[lost[0]][0]}' for '{lost[0]}'"
            text += f'; the files are there under names with {cause} ({example})'
        yield f'{text}; {fix}'


def _folder_of_all(names: Sequence[str], found: Sequence[str], img_dir: Path) -> Path | None:
    """Return the folder that has all images, if there is one and it is not of another split.

    ``found`` are the files below the image folder that the first name can mean.
    """
    name = names[0]
    same = [f for f in found if f.endswith(f'/{name}') and _is_of_split(name, f, img_dir)]
    inner = [img_dir / file.removesuffix(name) for file in same]
    folders = [f for f in (img_dir.parent, *inner) if all((f / n).is_file() for n in names)]
    return folders[0] if len(folders) == 1 else None


def _cause(name: str, found: Sequence[str], img_dir: Path) -> tuple[str, str]:
    """Return what the files that a name can mean have that the name does not have, and the fix."""
    if not found:
        return '', COPY
    if any(folders_apart(name, found[0])):
        certain = len(found) == 1 and _is_of_split(name, found[0], img_dir)
        return OTHER_FOLDERS, RENAME if certain else 'check data_prefix.img and file_name'
    cause = difference(name, found[0])
    if cause == OTHER_FORM:
        form = 'NFC' if is_normalized('NFC', found[0]) else 'NFD'
        fix = f"write file_name in the form {form}, with unicodedata.normalize('{form}', name)"
        return cause, fix
    return cause, RENAME


def _is_of_split(name: str, file: str, img_dir: Path) -> bool:
    return may_mean(name, f'{img_dir.name}/{file}', named_split([img_dir.name]))


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
