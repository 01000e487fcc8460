"""LabelMe: one JSON file per image, usually beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..coco import read_json, read_text
from ..images import with_slashes
from .samples import (
    ROTATED,
    Content,
    Sample,
    Source,
    bounds,
    images_in,
    numbers,
    split_of,
)

LOOKED = '*.json beside the images (LabelMe)'
TURNED = ('rotation', 'oriented_rectangle')  # the first is of X-AnyLabeling; four corners
BOXED = ('rectangle', 'polygon', 'circle', 'mask', *TURNED)
NO_CLASS = ('__ignore__', '_background_')  # in LabelMe's labels.txt


def is_labelme(content: Any) -> bool:
    """Return whether the content of a JSON file is LabelMe's."""
    return isinstance(content, Mapping) and {'shapes', 'imagePath'} <= set(content)


def read(source: Source) -> Content:
    """Read all JSON files."""
    content = Content()
    for file in source.with_suffix('.json'):
        path = source.root / file
        labels = read_json(path)
        if not is_labelme(labels):
            source.notes.add('JSON files are not from LabelMe and were left out', file)
            continue
        name = with_slashes(str(labels['imagePath']))
        image = _beside(path, name, source) or _image(file, name, source)
        sample = source.sample(image, [labels.get('imageWidth'), labels.get('imageHeight')])
        if sample is not None:
            _add_shapes(sample, labels['shapes'], path, source)
            content.add(split_of(file), sample, file)
    content.sort_classes()
    listed = source.root / 'labels.txt'
    if listed.is_file():
        order = [line.strip() for line in read_text(listed).splitlines() if line.strip()]
        order = [name for name in dict.fromkeys(order) if name not in NO_CLASS]
        content.classes = order + [name for name in content.classes if name not in order]
    return content


def _beside(file: Path, name: str, source: Source) -> Path | None:
    """Return the image of the same name beside a file whose imagePath has another one.

    Renaming pairs of files leaves the old names in imagePath, which can now be of other images.
    """
    image = images_in(file.parent).get(file.stem)
    if image is None or Path(name).stem == file.stem:
        return None
    kind = 'imagePath is another image than the one beside the file, which was used'
    source.notes.add(kind, f"'{image.name}' for '{name}' in {file.name}")
    return image


def _image(file: Path, name: str, source: Source) -> Path:
    path = source.root / file
    places = [path.parent / name, path.parent / Path(name).name]
    found = next((place for place in places if name and place.is_file()), None)
    found = found or images_in(path.parent).get(file.stem)
    found = found or source.find(name, file, split_of(file))
    if found is None:
        raise DataError(
            f"'{path}': the image '{name}' of imagePath does not exist; put it beside this file"
        )
    return found


def _add_shapes(sample: Sample, shapes: Any, file: Path, source: Source) -> None:
    if not isinstance(shapes, list) or not all(isinstance(shape, Mapping) for shape in shapes):
        raise DataError(f"'{file}': 'shapes' is not a list of objects; export the file again")
    groups: dict[Any, tuple[str, list[float], list[float]]] = {}
    for number, shape in enumerate(shapes, 1):
        place = f'shape {number}'
        kind = shape.get('shape_type') or 'polygon'  # old files have only polygons
        if kind not in BOXED:
            text = f'LabelMe shapes of the kind {kind} have no box and were left out'
            source.notes.add(text, f'{file.name}, {place}')
            continue
        points = _points(shape.get('points'), file, place)
        if kind == 'circle' and len(points) == 4:  # the centre and a point on the circle
            x, y, radius = points[0], points[1], math.dist(points[:2], points[2:])
            points = [x - radius, y - radius, x + radius, y + radius]
        if len(points) < (4 if kind in ('rectangle', 'circle', 'mask') else 6):
            source.notes.add('shapes with too few points were left out', f'{file.name}, {place}')
            continue
        if kind in TURNED:
            source.notes.add(ROTATED, f'{file.name}, {place}')
        if kind == 'mask':
            source.notes.add('masks gave only their box', f'{file.name}, {place}')
        name = str(shape.get('label') or '').strip()
        # shapes of the same group are the parts of one object
        group = shape.get('group_id')
        key = number if group is None else (name, group)
        _, corners, _ = groups.get(key, ('', [], []))
        polygon = points if kind == 'polygon' and not corners else []
        groups[key] = (name, [*corners, *bounds(points)], polygon)
    for number, (name, corners, polygon) in enumerate(groups.values(), 1):
        place = f'{file.name}, object {number}'
        source.add_object(sample, name, bounds(corners), place, polygon)


def _points(points: Any, file: Path, place: str) -> list[float]:
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise DataError(
            f"'{file}', {place}: 'points' is not a list of [x, y]; draw the shape again"
        )
    return numbers((value for point in points for value in point), file, place)
