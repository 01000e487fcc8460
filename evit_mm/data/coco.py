"""Read annotation files in COCO format, repair what is safe to repair, and find errors."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..utils.text import counted
from .images import some


def is_number(value: Any) -> bool:
    """Return whether a value of a JSON file is a finite number."""
    return isinstance(value, (int, float)) and value is not True and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    # tables that were read with pandas have 128.0; mmdet and pycocotools accept it
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def _is_size(value: Any) -> bool:
    return _is_integer(value) and value is not True and value > 0


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


Kind = tuple[str, Callable[[Any], bool]]  # description of a valid value, and a test for it
ID: Kind = ('an integer or a string', lambda value: isinstance(value, str) or _is_integer(value))
NUMBER: Kind = ('a finite number', is_number)
NAME: Kind = ('a non-empty string', lambda value: isinstance(value, str) and bool(value))
PIXELS: Kind = ('a positive integer', _is_size)
BOX: Kind = ('four finite numbers [x, y, width, height]', _is_box)
FLAG: Kind = ('0 or 1', lambda value: isinstance(value, (int, float)) and value in (0, 1))
FIELDS: dict[str, dict[str, Kind]] = {
    'images': {'id': ID, 'file_name': NAME, 'width': PIXELS, 'height': PIXELS},
    'annotations': {
        'id': ID,
        'image_id': ID,
        'category_id': ID,
        'bbox': BOX,
        'area': NUMBER,
        'iscrowd': FLAG,
    },
    'categories': {'id': ID, 'name': NAME},
}
EMPTY = {
    'images': "the list 'images' is empty; add at least one image",
    'categories': "the list 'categories' is empty; add at least one category",
}
NOUNS = {
    'images': 'image',
    'annotations': 'annotation',
    'categories': 'category',
}
DEFAULTS = {'area': 'width times height of the box', 'iscrowd': '0, or 1 for a crowd'}


def read_coco(ann_file: str | Path, parts: Sequence[str] = tuple(FIELDS)) -> dict[str, Any]:
    """Read an annotation file, repair it with :func:`repaired`, and check the given parts.

    Raises:
        DataError: The file cannot be read or has errors. The message lists one error per line.
    """
    coco = repaired(read_json(ann_file))[0]
    _, faults = examine(coco, parts)
    if faults:
        raise DataError('\n'.join(f"'{ann_file}': {fault}" for fault in faults))
    return coco


@dataclass
class AnnotationFile:
    """An annotation file as one reader of it understands it.

    Attributes:
        coco: Images, categories and annotations that have no error.
        faults: One sentence for each kind of error.
        repairs: Ids of repaired annotations for each field.
        labelled: Whether the file has a list of annotations.
        tolerant: Whether the reader repairs boxes.
    """

    coco: dict[str, list[dict[str, Any]]]
    faults: list[str]
    repairs: dict[str, list[Any]]
    labelled: bool
    tolerant: bool


def read_annotations(ann_file: str | Path, tolerant: bool) -> AnnotationFile:
    """Read an annotation file and find its errors.

    Args:
        ann_file: JSON file. It may have no list of annotations.
        tolerant: Whether to repair boxes, as
            :class:`~evit_mm.data.coco_dataset.TolerantCOCO` does.

    Raises:
        DataError: The file cannot be read.
    """
    raw = read_json(ann_file)
    labelled = not isinstance(raw, Mapping) or 'annotations' in raw
    content, repairs = repaired(raw if labelled else {**raw, 'annotations': []}, boxes=tolerant)
    return AnnotationFile(*examine(content), repairs, labelled, tolerant)


def read_json(ann_file: str | Path) -> Any:
    """Read a JSON file in UTF-8, with or without a byte order mark, in any locale.

    Raises:
        DataError: The file does not exist, cannot be read, or is not valid JSON.
    """
    ann_file = Path(ann_file)
    if not ann_file.is_file():
        raise DataError(_missing(ann_file))
    try:
        return json.loads(read_text(ann_file))
    except json.JSONDecodeError as error:
        raise DataError(f"'{ann_file}' is not valid JSON ({error}); export it again") from None


def read_text(file: Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark, in any locale.

    Raises:
        DataError: The file cannot be read or has another encoding.
    """
    try:
        return file.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise DataError(f"'{file}' is not in UTF-8 ({error}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"'{file}' cannot be read: {error}") from None


def repaired(coco: Any, boxes: bool = True) -> tuple[Any, dict[str, list[Any]]]:
    """Fill in what annotations leave out, where only one value is possible.

    - A missing or null ``area`` becomes width times height of the box.
    - A missing or null ``iscrowd`` becomes 0.
    - A box with a negative width or height, as annotation programs write for a box that was drawn
      from right to left, keeps its corners and gets a positive width and height.
    - A size or an id of an image such as 128.0 becomes 128. This is not counted as a repair.

    Args:
        coco: Content of an annotation file. It is not changed.
        boxes: Whether to repair boxes.

    Returns:
        The repaired content, and the ids of the repaired annotations for each field.
    """
    repairs: dict[str, list[Any]] = {'area': [], 'iscrowd': [], 'bbox': []}
    if isinstance(coco, Mapping) and isinstance(coco.get('images'), list):
        coco = {**coco, 'images': [_with_integers(image) for image in coco['images']]}
    if not isinstance(coco, Mapping) or not isinstance(coco.get('annotations'), list):
        return coco, repairs
    annotations = []
    for annotation in coco['annotations']:
        if isinstance(annotation, Mapping):
            changes = _changes(annotation, boxes)
            for field in repairs:
                # the area of a repaired box is a part of that repair
                if field in changes and (field == 'bbox' or annotation.get(field) is None):
                    repairs[field].append(annotation.get('id'))
            annotation = {**annotation, **changes} if changes else annotation
        annotations.append(annotation)
    return {**coco, 'annotations': annotations}, repairs


def _with_integers(image: Any) -> Any:
    if not isinstance(image, Mapping):
        return image
    values = {key: image.get(key) for key in ('id', 'width', 'height')}
    floats = {k: int(v) for k, v in values.items() if isinstance(v, float) and v.is_integer()}
    return {**image, **floats} if floats else image


def _changes(annotation: Mapping[str, Any], boxes: bool) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if annotation.get('iscrowd') is None:
        changes['iscrowd'] = 0
    if not _is_box(annotation.get('bbox')):
        return changes
    (x, y, w, h), area = annotation['bbox'], annotation.get('area')
    if boxes and (w < 0 or h < 0):
        changes['bbox'] = [min(x, x + w), min(y, y + h), abs(w), abs(h)]
        if is_number(area) and annotation['area'] < 0:
            changes['area'] = -annotation['area']
    if area is None:
        changes['area'] = abs(w * h)
    return changes


def examine(
    coco: Any, parts: Sequence[str] = tuple(FIELDS)
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Find the errors in the given parts of an annotation file.

    Every entry must have the fields of :data:`FIELDS`, ids must be unique, and the image and the
    category of each annotation must exist.

    Returns:
        The entries without errors, and one sentence for each kind of error.
    """
    content = coco if isinstance(coco, Mapping) else {}
    faults: list[str] = []
    sound: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        sound[part], found = _sound_entries(content.get(part), part)
        faults += found
    faults += _repeated_ids(sound)
    for key, part in (('image_id', 'images'), ('category_id', 'categories')):
        items = content.get(part)
        if 'annotations' not in sound or not isinstance(items, list):
            continue
        listed = {item.get('id') for item in items if _has_id(item)}
        wrong = [a['id'] for a in sound['annotations'] if a[key] not in listed]
        if wrong and len(listed) == len(items):  # otherwise the ids there are the error
            faults.append(f"the {key} of {ids_of(wrong)} is not in '{part}'; correct or remove it")
        known = {item['id'] for item in sound.get(part, ())}
        sound['annotations'] = [a for a in sound['annotations'] if a[key] in known]
    return sound, faults


def rotation_of(annotation: Mapping[str, Any]) -> float:
    """Return the degrees, clockwise, by which an object is rotated although its box is not.

    CVAT exports a rotated box to COCO's format as the box before its rotation, with the angle in
    ``attributes.rotation``. It also writes ``attributes.occluded`` for each box, which tells its
    angle from an attribute that a user has called rotation. The box of a mask or polygon is that
    of its pixels.
    """
    attributes = annotation.get('attributes')
    if not isinstance(attributes, Mapping) or 'occluded' not in attributes:
        return 0.0
    angle: Any = attributes.get('rotation')
    return float(angle) if is_number(angle) and not annotation.get('segmentation') else 0.0


def ids_of(ids: Sequence[Any]) -> str:
    """Return ``'annotation 3'`` or ``'annotations 3, 5'`` for a message."""
    return f'annotation{"s" * (len(ids) != 1)} {some(ids)}'


def _has_id(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get('id'), (int, float, str))


def _missing(ann_file: Path) -> str:
    root = ann_file.parent.parent
    text = f"annotation file '{ann_file}' does not exist"
    if root.name == 'coco':
        return (
            f'{text}; arrange COCO 2017 as {root}/annotations/instances_{{train,val}}2017.json, '
            f'{root}/train2017/ and {root}/val2017/, or use configs/retinanet_evit_m4_shapes.py, '
            'which needs no download'
        )
    if 'shapes' in root.name:
        return f'{text}; run python tools/make_shapes.py {root}'
    return f'{text}; check data_root and ann_file'


def _sound_entries(items: Any, part: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the entries of a part whose fields are valid, and the errors of the others."""
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        return [], [f"'{part}' is missing or not a list of dicts; export the file in COCO format"]
    if not items and part in EMPTY:
        return [], [EMPTY[part]]
    faults: list[str] = []
    broken: set[int] = set()
    for key, (kind, is_kind) in FIELDS[part].items():
        lacking = [place for place, item in enumerate(items) if key not in item]
        wrong = [
            place for place, item in enumerate(items) if key in item and not is_kind(item[key])
        ]
        broken.update(lacking, wrong)
        if lacking:
            what = f' ({DEFAULTS[key]})' if key in DEFAULTS else ''
            faults.append(f"'{key}' is missing in {_named(items, part, lacking)}; add it{what}")
        if wrong:
            value = items[wrong[0]][key]
            faults.append(
                f"'{key}' is not {kind} in {_named(items, part, wrong)}, the first value is "
                f'{value!r}; correct or remove these {part}'
            )
    kept = [item for place, item in enumerate(items) if place not in broken]
    return kept if broken else items, faults


def _named(items: Sequence[Mapping[str, Any]], part: str, places: Sequence[int]) -> str:
    names = [items[place].get('id', f'number {place + 1}') for place in places]
    return f'{len(places)} of {counted(len(items), NOUNS[part])} ({some(names)})'


def _repeated_ids(parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    for part, items in parts.items():
        ids = [item['id'] for item in items]
        repeated = [key for key, count in Counter(ids).items() if count > 1]
        if repeated:
            yield f'{part} have duplicate ids ({some(repeated)}); make them unique'
        if len({isinstance(key, str) for key in ids}) > 1:
            yield f'the ids of {part} are numbers and strings; use one kind'
