"""CVAT for images 1.1: one XML file per task, with all its images."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

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
            sample = source.sample(_image(source, file, name, subset, split, place), _size(image))
            if sample is not None:
                _add_shapes(sample, image, path, place, source)
                content.add(split or split_of(file) or UNSPLIT, sample, file)
    used = Content(splits=content.splits)
    used.sort_classes()
    content.classes += [name for name in used.classes if name not in content.classes]
    return content


def _size(image: ElementTree.Element) -> list[str | None]:
    return [image.get('width'), image.get('height')]


def _image(source: Source, file: Path, name: str, subset: str, split: str, place: str) -> Path:
    folder = source.root / file.parent
    places = [folder / 'images' / subset, folder / 'images', folder / subset, folder]
    found = next((p / name for p in places if name and (p / name).is_file()), None)
    found = found or source.find(name, file, split)
    if found is None:
        raise DataError(
            f"'{source.root / file}', {place} does not exist; export with 'Save images', or put "
            f"the images into '{folder / 'images'}'"
        )
    return found


def _add_shapes(
    sample: Sample, image: ElementTree.Element, file: Path, place: str, source: Source
) -> None:
    for number, shape in enumerate(image, 1):
        where = f'{place}, {shape.tag} {number}'
        polygon: list[float] = []
        mask: dict[str, Any] = {}
        if shape.tag == 'box':
            corners = numbers(map(shape.get, CORNERS), file, where)
        elif shape.tag == 'polygon':
            polygon = numbers(re.split('[,;]', shape.get('points') or ''), file, where)
            if len(polygon) % 2 or len(polygon) < 6:
                source.notes.add('polygons with fewer than three points were left out', where)
                continue
            corners = bounds(polygon)
        elif shape.tag == 'mask':
            box = numbers(map(shape.get, ('left', 'top', 'width', 'height')), file, where)
            corners = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
            runs = numbers(filter(None, (shape.get('rle') or '').split(',')), file, where)
            mask = _mask([int(v) for v in runs], [int(v) for v in box], sample.size)
            if not mask:
                source.notes.add('masks do not fit into their box, and only the box is used', where)
        elif shape.tag == 'ellipse':
            x, y, rx, ry = numbers(map(shape.get, ('cx', 'cy', 'rx', 'ry')), file, where)
            corners = [x - rx, y - ry, x + rx, y + ry]
        else:
            kind = f'CVAT shapes of the kind {shape.tag} have no box and were left out'
            source.notes.add(kind, place)
            continue
        degrees = numbers([shape.get('rotation', '0')], file, where)[0]
        if degrees:
            corners = source.upright(corners, degrees, where)
        source.add_object(
            sample, (shape.get('label') or '').strip(), corners, where, polygon, **mask
        )


def _mask(runs: list[int], box: list[int], size: tuple[int, int]) -> dict[str, Any]:
    """Return a mask as COCO's compressed RLE and its area, or nothing if it does not fit.

    Args:
        runs: Lengths of the runs of background and object, in turn, along the rows of the box.
        box: Left, top, width and height in pixels.
        size: Width and height of the image.
    """
    left, top, width, height = box
    inside = min(box) >= 0 and left + width <= size[0] and top + height <= size[1]
    if not inside or min(runs, default=0) < 0 or sum(runs) != width * height:
        return {}
    pixels = np.zeros(size[::-1], np.uint8, order='F')
    values = np.repeat(np.arange(len(runs)) % 2, runs)
    pixels[top : top + height, left : left + width] = values.reshape(height, width)
    rle = mask_api.encode(pixels)
    rle['counts'] = rle['counts'].decode()
    return {'segmentation': rle, 'area': int(values.sum())}
