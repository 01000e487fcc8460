"""Label Studio: its JSON export, a list of tasks, with the images in the same folder."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..coco import read_json
from ..images import IMAGE_SUFFIXES, some, with_slashes
from .samples import (
    Content,
    Sample,
    Source,
    bounds,
    may_mean,
    named_split,
    numbers,
    split_of,
)

LOOKED = 'a JSON export of Label Studio'
UPLOAD = re.compile('^[0-9a-f]{8}-')  # Label Studio puts this before the name of an uploaded file


def is_label_studio(content: Any) -> bool:
    """Return whether the content of a JSON file is an export of Label Studio."""
    tasks = content if isinstance(content, list) else []
    return bool(tasks) and all(
        isinstance(task, Mapping) and isinstance(task.get('data'), Mapping) for task in tasks
    )


def is_minimal(content: Any) -> bool:
    """Return whether the content of a JSON file is Label Studio's JSON-MIN."""
    regions = [r for task in _entries(content) for v in task.values() for r in _entries(v)]
    return bool(regions) and all('original_width' in region for region in regions)


def read(source: Source, files: list[Path]) -> Content:
    """Read the exports."""
    content = Content()
    for file in files:
        path = source.root / file
        for number, task in enumerate(read_json(path), 1):
            place = f'task {task.get("id", number)}'
            regions = _regions(task, place, source)
            if regions is None:
                continue
            image = _image(task, source, path, place)
            sample = source.sample(source.root / image, _size(regions))
            if sample is not None:
                _add_regions(sample, regions, path, place, source)
                content.add(split_of(image), sample, file)
    content.sort_classes()
    return content


def _regions(task: Mapping[str, Any], place: str, source: Source) -> list[Mapping[str, Any]] | None:
    """Return the regions of the first annotation that was not skipped, ground truth first."""
    found = task.get('annotations') or task.get('completions')
    annotations = [a for a in _entries(found) if not a.get('was_cancelled')]
    if not annotations:
        source.notes.add('tasks have no annotation and were left out', place)
        return None
    if len(annotations) > 1:
        source.notes.add('tasks have several annotations, of which the first is used', place)
    annotations.sort(key=lambda annotation: not annotation.get('ground_truth'))
    regions = _entries(annotations[0].get('result'))
    return [region for region in regions if isinstance(region.get('value'), Mapping)]


def _entries(value: Any) -> list[Mapping[str, Any]]:
    """Return the dicts in a list of a JSON file, or nothing if it is not a list."""
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []


def _size(regions: list[Mapping[str, Any]]) -> list[Any]:
    region = next((r for r in regions if 'original_width' in r), {})
    return [region.get('original_width'), region.get('original_height')]


def _image(task: Mapping[str, Any], source: Source, file: Path, place: str) -> Path:
    names = []
    for value in (*task['data'].values(), task.get('file_upload')):
        if not isinstance(value, str):
            continue
        address = urllib.parse.urlparse(value)
        # a local file is /data/local-files/?d=FOLDER/NAME
        local = urllib.parse.parse_qs(address.query).get('d', [address.path])[0]
        folder, slash, name = with_slashes(urllib.parse.unquote(local)).rpartition('/')
        if name.lower().endswith(IMAGE_SUFFIXES):
            names += [f'{folder}{slash}{n}' for n in dict.fromkeys((name, UPLOAD.sub('', name, 1)))]
    found = next((files for name in names if (files := _files(name, source))), [])
    if len(found) != 1:
        name = Path(names[0]).name if names else 'of the task'
        if found:
            raise DataError(f"'{file}', {place}: '{name}' can be {some(found)}; keep one of them")
        raise DataError(
            f"'{file}', {place}: image '{name}' is not in '{file.parent}'; copy the images there, "
            'because the export does not contain them'
        )
    return Path(found[0])


def _files(name: str, source: Source) -> list[str]:
    # the split is that of the folder of the image, but the name must not have another one
    files = source.named.find(name)
    return [file for file in files if may_mean(name, file, named_split(Path(file).parts[:-1]))]


def _add_regions(
    sample: Sample,
    regions: list[Mapping[str, Any]],
    file: Path,
    place: str,
    source: Source,
) -> None:
    names = {}  # a region without a class can get it from another entry with the same id
    for region in regions:
        labels = [v for k, v in region['value'].items() if k.endswith('labels') and v]
        if labels and region.get('id') is not None:
            names[region['id']] = labels[0]
    width, height = sample.size
    drawn: set[Any] = set()
    for number, region in enumerate(regions, 1):
        where = f'{place}, region {region.get("id", number)}'
        value = region['value']
        polygon: list[float] = []
        if {'x', 'y', 'width', 'height'} <= set(value):
            keys = ('x', 'y', 'width', 'height')
            x, y, w, h = numbers((value[key] for key in keys), file, where)
            corners = [x, y, x + w, y + h]
        elif {'x', 'y', 'radiusX', 'radiusY'} <= set(value):
            keys = ('x', 'y', 'radiusX', 'radiusY')
            x, y, rx, ry = numbers((value[key] for key in keys), file, where)
            corners = [x - rx, y - ry, x + rx, y + ry]
        elif isinstance(value.get('points'), list) and value['points']:
            points = [point if isinstance(point, list) else [point] for point in value['points']]
            polygon = numbers((v for point in points for v in point[:2]), file, where)
            if len(polygon) != 2 * len(points):
                raise DataError(f"'{file}', {where}: 'points' is not a list of [x, y]; correct it")
            corners = bounds(polygon)
        else:
            if region.get('type') in ('brushlabels', 'keypointlabels', 'brush', 'keypoint'):
                kind = f'Label Studio regions of the kind {region["type"]} have no box'
                source.notes.add(f'{kind} and were left out', where)
            continue
        if region.get('id') in drawn:  # the class of a region, which repeats its box
            continue
        drawn |= {region['id']} if region.get('id') is not None else set()
        scale = (width / 100, height / 100)  # Label Studio stores percentages
        corners = [v * scale[i % 2] for i, v in enumerate(corners)]
        polygon = [v * scale[i % 2] for i, v in enumerate(polygon)]
        degrees = numbers([value.get('rotation') or 0], file, where)[0]
        if degrees and not polygon:
            pivot = None if 'radiusX' in value else (corners[0], corners[1])
            corners = source.upright(corners, degrees, where, pivot)
        labels = [v for k, v in value.items() if k.endswith('labels') and v]
        name = labels[0] if labels else names.get(region.get('id'), [])
        if len(name) > 1:
            source.notes.add('regions have several classes, of which the first is used', where)
        source.add_object(sample, str(name[0]) if name else '', corners, where, polygon)
