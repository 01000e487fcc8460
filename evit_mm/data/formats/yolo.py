"""YOLO: ``data.yaml`` with ``train``, ``val`` and ``names``, and one label file per image.

The rules are those of Ultralytics. ``train`` and ``val`` are a folder, a list file, or a list of
these. The label file of ``images/a.jpg`` is ``labels/a.txt``, and an image without one has no
objects. With ``kpt_shape``, a row has a box and keypoints, and only the box is used. Darknet, and
CVAT as "YOLO 1.1", write ``obj.data`` instead of ``data.yaml``: lines such as
``train = data/train.txt``, where ``names`` is a file with one class per line and ``data/`` is the
folder of ``obj.data``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from ...errors import DataError
from ..coco import read_text
from ..images import folders_apart, with_slashes
from .samples import (
    SPLITS,
    UNSPLIT,
    Content,
    Sample,
    Source,
    bounds,
    is_image,
    numbers,
    relative_name,
)

NAMES = ('data.yaml', 'data.yml', 'dataset.yaml', 'dataset.yml', 'obj.data')
LOOKED = 'data.yaml or obj.data (YOLO)'
KEYS = {'train': ('train',), 'val': ('val', 'valid', 'validation')}
SLACK = 0.05  # a box may extend a little beyond its image
PIXELS = 2  # coordinates above are in pixels


def find(source: Source) -> list[Path]:
    """Return the file that describes a YOLO data set, or all candidates."""
    files = [f for f in source.with_suffix('.yaml', '.yml', '.data') if len(f.parts) == 1]
    return [f for f in files if f.name.lower() in NAMES or _describes(source.root / f)]


def _describes(file: Path) -> bool:
    try:
        content = _load(file)
    except DataError:
        return False
    return 'names' in content and 'train' in content


def _load(file: Path) -> dict[str, Any]:
    if file.suffix.lower() == '.data':
        pairs = (line.partition('=') for line in read_text(file).splitlines())
        return {key.strip(): value.strip() for key, _, value in pairs}
    try:
        # the base loader keeps class names such as "no" and "01" as they are written
        content = yaml.load(read_text(file), Loader=yaml.BaseLoader)  # noqa: S506
    except yaml.YAMLError as error:
        raise DataError(f"'{file}' is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, Mapping):
        raise DataError(f"'{file}' has no keys; it needs train, val and names")
    return dict(content)


def read(source: Source) -> Content:
    """Read a YOLO data set."""
    files = find(source)
    if len(files) > 1:
        found = ', '.join(map(str, files))
        raise DataError(f"'{source.root}' has several YOLO files ({found}); keep one of them")
    file = source.root / files[0]
    config = _load(file)
    names = config.get('names')
    if file.suffix.lower() == '.data' and isinstance(names, str):
        names = _lines(_resolve(names, config, file, 'names', source))
    content = Content(classes=_class_names(names, file))
    said, number = 'classes' if file.suffix.lower() == '.data' else 'nc', len(content.classes)
    if config.get(said, '') not in ('', str(number)):
        text = f"'{said}' of {file.name} is {config[said]}, but the {number} 'names' count"
        source.notes.say(text)
    keypoints = _keypoint_columns(config, file)
    labelled = 0
    for split, keys in KEYS.items():
        key = next((key for key in keys if config.get(key)), None)
        if key is None:
            if split == 'train':
                raise DataError(f"'{file}': 'train' is missing; add the folder of its images")
            continue
        for image in dict.fromkeys(_images(key, config, file, source)):
            sample = source.sample(image)
            if sample is None:
                continue
            label = _label_file(image, source)
            labelled += label is not None
            if label is None:
                name = relative_name(image, source.root)
                source.notes.add('images have no label file and count as background', name)
            else:
                _add_labels(sample, label, content.classes, keypoints, source)
            content.add(split, sample)
    if config.get('test'):
        with suppress(DataError):  # exports can name a test split that they do not contain
            for image in _images('test', config, file, source):
                content.add('test', Sample(image, (0, 0)))  # only to name it
    if not labelled:
        raise DataError(
            f"'{source.root}': no image has a label file; put the label of images/NAME.jpg into "
            'labels/NAME.txt, or beside the image'
        )
    return content


def _class_names(names: Any, file: Path) -> list[str]:
    if isinstance(names, Mapping):
        keys = [str(number) for number in range(len(names))]
        if set(names) != set(keys):
            raise DataError(
                f"'{file}': 'names' has the keys {', '.join(map(str, names))}; number the classes "
                f'from 0 to {len(keys) - 1}'
            )
        names = [names[key] for key in keys]
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise DataError(f"'{file}': 'names' is missing or not a list; add the class names")
    if not all(isinstance(name, str) and name for name in names) or len({*names}) < len(names):
        raise DataError(f"'{file}': 'names' has empty or repeated names; give each class its own")
    return list(names)


def _keypoint_columns(config: Mapping[str, Any], file: Path) -> int:
    """Return the number of columns after the box in the labels of a pose data set, or 0."""
    shape = config.get('kpt_shape')
    if not shape:
        return 0
    try:
        number, values = map(int, shape) if isinstance(shape, list) else (0, 0)
    except (TypeError, ValueError):
        number = values = 0
    if number < 1 or values not in (2, 3):
        raise DataError(
            f"'{file}': 'kpt_shape' is {shape}, but it must be the number of keypoints and 2 or 3, "
            'such as [17, 3]; correct it, or remove it if the labels have no keypoints'
        )
    return number * values


def _images(key: str, config: Mapping[str, Any], file: Path, source: Source) -> Iterator[Path]:
    """Yield the images of a split."""
    value = config[key]
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, str):
            raise DataError(f"'{file}': '{key}' is not a path or a list of paths; correct it")
        path = _resolve(entry, config, file, key, source)
        if path.is_dir():
            images = [image for image in sorted(path.rglob('*')) if is_image(image)]
            if not images:
                raise DataError(f"'{file}': '{key}' is '{entry}', which has no images; add some")
            yield from images
        elif path.suffix.lower() == '.txt':
            yield from _listed(path, source, SPLITS[key])
        else:
            raise DataError(f"'{file}': '{key}' is '{entry}', but it must be a folder or a .txt")


def _resolve(entry: str, config: Mapping[str, Any], file: Path, key: str, source: Source) -> Path:
    """Return the path of an entry, with ``path`` and without, as exports have it."""
    entry, base = with_slashes(entry), config.get('path')
    # Roboflow writes ../train/images and means train/images; data/ is of Darknet
    names = (entry.removeprefix('../'), entry, entry.removeprefix('data/'))
    bases = [file.parent / with_slashes(base)] if isinstance(base, str) and base else []
    tried = [folder / name for name in names for folder in (*bases, file.parent)]
    found = next((path for path in tried if path.exists()), None)
    found = found or source.find(entry, Path(file.name), SPLITS.get(key, UNSPLIT))
    if found is None:
        looked = ', '.join(f"'{path}'" for path in dict.fromkeys(tried))
        raise DataError(
            f"'{file}': '{key}' is '{entry}', which does not exist; tried {looked}; correct it, or "
            "'path'"
        )
    return Path(os.path.normpath(found))


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def _listed(file: Path, source: Source, split: str) -> Iterator[Path]:
    for number, line in enumerate(read_text(file).splitlines(), 1):
        name = with_slashes(line)
        if not name or Path(name).name.startswith('.'):
            continue
        names = (name, name.removeprefix('data/'))
        tried = [folder / n for n in names for folder in (file.parent, source.root)]
        found = next((path for path in tried if path.is_file()), None)
        found = found or source.find(name, Path(file.name), split)
        if found is None:
            raise DataError(
                f"'{file}', line {number}: image '{name}' does not exist; correct the path, "
                'relative to this file'
            )
        yield Path(os.path.normpath(found))


def _label_file(image: Path, source: Source) -> Path | None:
    """Return the label file of an image: in labels/ instead of images/, or beside the image."""
    places = [image.with_suffix('.txt')]
    parts = list(image.parts)
    if 'images' in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index('images')
        places.insert(0, Path(*parts[:last], 'labels', *parts[last + 1 :]).with_suffix('.txt'))
    found = next((place for place in places if place.is_file()), None)
    names = [relative_name(place, source.root) for place in places] if found is None else []
    for name in names:
        for file in source.named.find(name):
            if not any(folders_apart(name, file)):
                return source.found(name, source.root / file)
    return found


def _add_labels(
    sample: Sample, file: Path, classes: Sequence[str], keypoints: int, source: Source
) -> None:
    width, height = sample.size
    source.reads(file)
    for number, line in enumerate(read_text(file).splitlines(), 1):
        columns = line.split()
        if not columns:
            continue
        place = f'line {number}'
        if keypoints:
            if len(columns) != 5 + keypoints:
                raise DataError(
                    f"'{file}', {place}: {len(columns)} columns; by 'kpt_shape' a label has "
                    f'{5 + keypoints}, class x_center y_center width height and {keypoints} for '
                    "the keypoints; correct the label or 'kpt_shape'"
                )
            source.notes.add('keypoints were left out', f'{file.name}, {place}')
            columns = columns[:5]
        # five columns are a box; an odd number from seven on is a class with a polygon
        if len(columns) != 5 and (len(columns) < 7 or len(columns) % 2 == 0):
            hint = ' (a sixth one is the score of a detection)' if len(columns) == 6 else ''
            fix = '; separate them with spaces' if ',' in line or ';' in line else ''
            raise DataError(
                f"'{file}', {place}: {len(columns)} columns{hint}; a label has five, class "
                f'x_center y_center width height, or a class and the points of a polygon{fix}'
            )
        label, *values = numbers(columns, file, place)
        box = len(values) == 4
        if label not in range(len(classes)):
            raise DataError(
                f"'{file}', {place}: class {columns[0]} is not one of the {len(classes)} classes 0 "
                f"to {len(classes) - 1} of 'names'; correct the label or add the name"
            )
        if min(values) < -SLACK or max(values) > 1 + SLACK or (box and min(values[2:]) < 0):
            fix = 'correct them; they are shares of the width and height of the image'
            if max(values) > PIXELS:
                fix = 'divide x by the width and y by the height of the image'
            raise DataError(
                f"'{file}', {place}: the coordinates {' '.join(columns[1:])} are not all from 0 to "
                f'1; {fix}'
            )
        points = [v * (height if i % 2 else width) for i, v in enumerate(values)]
        polygon = [] if box else points
        if box:
            x, y, w, h = points
            points = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        name = classes[int(label)]
        source.add_object(sample, name, bounds(points), f'{file.name}, {place}', polygon)
