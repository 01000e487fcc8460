"""Read annotation files in COCO format and reject inconsistent ones."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .images import some


def is_number(value: Any) -> bool:
    """Return whether a value of a JSON file is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


Kind = tuple[str, Callable[[Any], bool]]  # description of a valid value, and a test for it
ID: Kind = ('an integer or a string', lambda value: isinstance(value, (int, str)))
NUMBER: Kind = ('a finite number', is_number)
NAME: Kind = ('a non-empty string', lambda value: isinstance(value, str) and bool(value))
PIXELS: Kind = ('a positive integer', lambda value: isinstance(value, int) and value > 0)
BOX: Kind = ('four finite numbers [x, y, width, height]', _is_box)
FLAG: Kind = ('0 or 1', lambda value: isinstance(value, int) and value in (0, 1))
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
DEFAULTS = {'area': ' (width times height of the box)', 'iscrowd': ' (0, or 1 for a crowd)'}


def read_coco(ann_file: str | Path, parts: Sequence[str] = tuple(FIELDS)) -> dict[str, Any]:
    """Read an annotation file and check the given parts.

    In these parts, every entry must have the fields of :data:`FIELDS`, ids must be unique, and the
    image and the category of each annotation must exist.

    Raises:
        DataError: The file cannot be read or has errors. The message lists one error per line.
    """
    ann_file = Path(ann_file)
    if not ann_file.is_file():
        raise DataError(_missing(ann_file))
    try:
        coco = json.loads(ann_file.read_text(encoding='utf-8'))
    except OSError as error:
        raise DataError(f"annotation file '{ann_file}' cannot be read: {error}") from None
    except ValueError as error:
        raise DataError(f"'{ann_file}' is not valid JSON ({error}); export it again") from None
    content = coco if isinstance(coco, Mapping) else {}
    faults = [fault for part in parts for fault in _field_faults(content.get(part), part)]
    faults = faults or list(_id_faults({part: content[part] for part in parts}))
    if faults:
        raise DataError('\n'.join(f"'{ann_file}': {fault}" for fault in faults))
    return coco


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


def _field_faults(items: Any, part: str) -> Iterator[str]:
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        yield f"'{part}' is missing or not a list of dicts; export the file in COCO format"
    elif not items and part in EMPTY:
        yield EMPTY[part]
    else:
        yield from _entry_faults(items, part)


def _entry_faults(items: Sequence[Mapping[str, Any]], part: str) -> Iterator[str]:
    of = f'of {len(items)} {part}'
    for key, (kind, is_kind) in FIELDS[part].items():
        lacking = sum(key not in item for item in items)
        wrong = [item[key] for item in items if key in item and not is_kind(item[key])]
        if lacking:
            yield f"'{key}' is missing in {lacking} {of}; add it{DEFAULTS.get(key, '')}"
        elif wrong:
            yield (
                f"'{key}' is not {kind} in {len(wrong)} {of} (the first value is {wrong[0]!r}); "
                f'correct or remove these {part}'
            )


def _id_faults(coco: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    for part, items in coco.items():
        repeated = [key for key, count in Counter(i['id'] for i in items).items() if count > 1]
        if repeated:
            yield f'{part} have duplicate ids ({some(repeated)}); make them unique'
    annotations = coco.get('annotations', ())
    for key, part in (('image_id', 'images'), ('category_id', 'categories')):
        known = {item['id'] for item in coco.get(part, ())}
        wrong = [annotation['id'] for annotation in annotations if annotation[key] not in known]
        if wrong:
            yield (
                f"the {key} of annotations {some(wrong)} is not in '{part}'; correct or remove them"
            )
