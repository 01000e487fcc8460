"""CVAT for images 1.1: one XML file per task, with all its images."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from ...errors import DataError
from ..images import with_slashes
from .samples import (
    UNSPLIT,
    Content,
    Sample,
    Source,
    bounds,
    numbers,
    read_xml,
    root_tag,
    rotated,
    split_in_name,
    split_of,
)

LOOKED = 'annotations.xml (CVAT for images 1.1)'
CORNERS = ('xtl', 'ytl', 'xbr', 'ybr')


def find(source: Source) -> list[Path]:
    """Return the files of CVAT tasks, in the folder or in one below it."""
    files = [file for file in source.with_suffix('.xml') if len(file.parts) < 3]
    return [f for f in files[:20] if root_tag(source.root / f) == 'annotations']


def read(source: Source) -> Content:
    """Read all tasks."""
    content = Content()
    for file in find(source):
        path = source.root / file
        tree = read_xml(path)
        if tree.find('track') is not None:
            raise DataError(f"'{path}' is CVAT for video; export the task as 'CVAT for images 1.1'")
        labels = [(name.text or '').strip() for name in tree.iterfind('meta//labels/label/name')]
        content.classes += [name for name in labels if name not in content.classes]
        for number, image in enumerate(tree.iterfind('image'), 1):
            name = with_slashes(image.get('name') or '')
            subset = image.get('subset') or ''
            split = split_in_name(subset) or split_of(Path(name)) or split_in_name(file.stem)
            place = f"image {number} '{name}'"
            sample = source.sample(_image(source.root, file, name, subset, place), _size(image))
            if sample is not None:
                _add_shapes(sample, image, path, place, source)
                content.add(split or split_of(file) or UNSPLIT, sample)
    used = Content(splits=content.splits)
    used.sort_classes()
    content.classes += [name for name in used.classes if name not in content.classes]
    return content


def _size(image: ElementTree.Element) -> list[str | None]:
    return [image.get('width'), image.get('height')]


def _image(root: Path, file: Path, name: str, subset: str, place: str) -> Path:
    folder = root / file.parent
    places = [folder / 'images' / subset, folder / 'images', folder / subset, folder]
    for found in (place / part for part in (name, Path(name).name) for place in places):
        if name and found.is_file():
            return found
    raise DataError(
        f"'{root / file}', {place} does not exist; export with 'Save images', or put the images "
        f"into '{folder / 'images'}'"
    )


def _add_shapes(
    sample: Sample, image: ElementTree.Element, file: Path, place: str, source: Source
) -> None:
    for number, shape in enumerate(image, 1):
        where = f'{place}, {shape.tag} {number}'
        polygon: list[float] = []
        if shape.tag == 'box':
            corners = numbers(map(shape.get, CORNERS), file, where)
        elif shape.tag == 'polygon':
            polygon = numbers(re.split('[,;]', shape.get('points') or ''), file, where)
            if len(polygon) % 2 or len(polygon) < 6:
                source.notes.add('polygons with fewer than three points were left out', where)
                continue
            corners = list(bounds(polygon))
        elif shape.tag == 'mask':  # only its box; the mask itself is not read
            left, top, width, height = numbers(
                map(shape.get, ('left', 'top', 'width', 'height')), file, where
            )
            corners = [left, top, left + width, top + height]
        elif shape.tag == 'ellipse':
            x, y, rx, ry = numbers(map(shape.get, ('cx', 'cy', 'rx', 'ry')), file, where)
            corners = [x - rx, y - ry, x + rx, y + ry]
        else:
            kind = f'CVAT shapes of the kind {shape.tag} have no box and were left out'
            source.notes.add(kind, place)
            continue
        degrees = numbers([shape.get('rotation', '0')], file, where)[0]
        if degrees:
            middle = ((corners[0] + corners[2]) / 2, (corners[1] + corners[3]) / 2)
            corners = list(bounds(rotated(corners, degrees, middle)))
            source.notes.add('rotated boxes were replaced by the upright box around them', where)
        source.add_object(sample, (shape.get('label') or '').strip(), corners, where, polygon)
