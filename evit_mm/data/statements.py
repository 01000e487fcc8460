"""Sentences on what a training skips and what COCO's evaluation counts, with annotation ids."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import hotcoco
import numpy as np

from ..utils.text import counted
from .coco import ids_of, rotation_of
from .counts import (
    AREAS,
    EMPTY,
    IGNORE,
    NO_OBJECT,
    NOT_CHOSEN,
    OTHER,
    OUTSIDE,
    TOO_SMALL,
    Counts,
    is_outside,
)
from .images import some

Entries = Sequence[Mapping[str, Any]]
BOX_FORMAT = 'check that bbox is [x, y, width, height] in pixels'
LEFT_OUT = {
    IGNORE: 'the flag "ignore"',
    OUTSIDE: 'a place outside of the image',
    EMPTY: 'a lack of area',
    OTHER: 'a category outside of metainfo.classes',
}


def repair_notes(repairs: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Say what :func:`~evit_mm.data.coco.repaired` has repaired."""
    said = {
        'area': "without 'area', where width times height of the box is used",
        'iscrowd': "without 'iscrowd', where 0 is used",
        'bbox': 'with a negative width or height of the box, where the same corners are used',
    }
    for key, places in repairs.items():
        if places:
            what = counted(len(places), 'annotation')
            yield f'{what} {said[key]} ({ids_of(places)}); the file is not changed'


def grouping_notes(coco: Mapping[str, Entries], classes: Sequence[str] | None) -> Iterator[str]:
    """Name categories that only group others, as exports of Roboflow have them."""
    used = {annotation['category_id'] for annotation in coco['annotations']}
    groups = {category.get('supercategory') for category in coco['categories']}
    for category in coco['categories']:
        name = category['name']
        listed = classes is None or name in classes
        if used and listed and name in groups and category['id'] not in used:
            yield (
                f"category '{name}' (id {category['id']}) has no box and is the supercategory of "
                'others, so it only groups them; remove it from metainfo.classes, and reduce '
                'num_classes by one'
            )


def rotation_notes(coco: Mapping[str, Entries]) -> Iterator[str]:
    """Count rotated objects whose box is the one before the rotation, as CVAT exports them."""
    rotated = [annotation['id'] for annotation in coco['annotations'] if rotation_of(annotation)]
    if rotated:
        yield (
            f'{counted(len(rotated), "object")} with attributes.rotation of CVAT '
            f'({ids_of(rotated)}), which writes their boxes as they were before the rotation; '
            'export the task as '
            "'CVAT for images 1.1', or use --data DIR, which takes the upright box around each"
        )


def nothing_to_train_on(counts: Counts, coco: Mapping[str, Entries]) -> Iterator[str]:
    """Say why there is no object to train on."""
    if counts.objects or not coco['images'] or not coco['categories']:
        return
    crowds = ' (boxes with iscrowd 1 do not count)' if counts.ignored else ''
    reasons = {f'filter_cfg.{k}' if k != NOT_CHOSEN else k: v for k, v in _filters(counts).items()}
    reasons |= {text: counts.skipped[key] for key, text in LEFT_OUT.items()}
    lost = ', '.join(f'{len(entries):,} by {name}' for name, entries in reasons.items() if entries)
    lost = f' (skipped: {lost})' if lost else ''
    yield f'there is no object to train on{crowds}{lost}; add at least one for training'


def _filters(counts: Counts) -> dict[str, list[Mapping[str, Any]]]:
    return {key: images for key, images in counts.skipped_images.items() if images}


def training_notes(counts: Counts, coco: Mapping[str, Entries]) -> Iterator[str]:
    """Say what the training does not use."""
    skipped = {key: (entries, _ids(entries)) for key, entries in counts.skipped.items() if entries}
    if IGNORE in skipped:
        entries, ids = skipped[IGNORE]
        yield (
            f'training skips {counted(len(entries), "object")} with "ignore": 1 ({ids}), which an '
            'evaluation counts; remove the flag to train on all objects'
        )
    if EMPTY in skipped:
        entries, ids = skipped[EMPTY]
        boxes = counted(len(entries), 'box')
        yield f'training skips {boxes} without area or with a side below one pixel ({ids})'
    if OUTSIDE in skipped:
        entries, ids = skipped[OUTSIDE]
        boxes = counted(len(entries), 'box')
        yield f'training skips {boxes} outside of the image ({ids}); {BOX_FORMAT}'
    if OTHER in skipped:
        entries, _ = skipped[OTHER]
        all_names = {category['id']: category['name'] for category in coco['categories']}
        others = list(dict.fromkeys(all_names.get(entry['category_id']) for entry in entries))
        yield (
            f'training skips {counted(len(entries), "object")} of categories that '
            f'metainfo.classes does not have ({some(others)})'
        )
    beyond = _beyond(counts.used, image_sizes(coco))
    if beyond:
        boxes = counted(len(beyond), 'box')
        yield (
            f'training clips {boxes} over the edge of the image by more than one pixel '
            f'({_ids(beyond)}); {BOX_FORMAT}'
        )
    why = {
        NO_OBJECT: 'without an annotation of a class (filter_cfg.filter_empty_gt)',
        TOO_SMALL: 'with a side below filter_cfg.min_size',
        NOT_CHOSEN: 'that are not in indices',
    }
    for key, images in _filters(counts).items():
        yield (
            f'training skips {len(images):,} of {counted(len(coco["images"]), "image")} '
            f'{why[key]} ({some([image["file_name"] for image in images])})'
        )
    yield from _twice_note(counts)
    absent = _absent(counts)
    if absent and counts.objects:
        yield f'training has no object of {some(absent)}'


def evaluation_notes(counts: Counts, coco: Mapping[str, Entries]) -> Iterator[str]:
    """Say what COCO's evaluation counts that may surprise."""
    if not counts.objects:
        yield (
            'no box has a class of the config (boxes with iscrowd 1 do not count), so every AP '
            'will be -1; add boxes for the evaluation'
        )
        return
    sizes = image_sizes(coco)
    flagged = [a for a in counts.objects if a.get('ignore')]
    if flagged:
        yield (
            f'evaluation counts {counted(len(flagged), "object")} with "ignore": 1 '
            f"({_ids(flagged)}), because COCO's metrics ignore only crowds; set iscrowd to 1 to "
            'ignore them'
        )
    lost = [
        a for a in counts.objects if min(a['bbox'][2:]) <= 0 or is_outside(a, *sizes[a['image_id']])
    ]
    if lost:
        boxes = counted(len(lost), 'box')
        yield (
            f'evaluation counts {boxes} without area or outside of the image, which no detection '
            f'can match ({_ids(lost)}); {BOX_FORMAT}'
        )
    thin = [a for a in counts.objects if 0 < min(a['bbox'][2:]) < 1]
    if thin:
        boxes = counted(len(thin), 'box')
        yield f'evaluation counts {boxes} with a side below one pixel ({_ids(thin)})'
    negative = [a for a in counts.ignored if not a['iscrowd']]
    if negative:
        yield (
            f'evaluation ignores {counted(len(negative), "object")} whose area is negative or '
            f"above COCO's largest ({_ids(negative)}); correct the area"
        )
    said = {a['id'] for a in lost + thin}
    yield from _area_notes([a for a in counts.objects if a['id'] not in said])
    beyond = _beyond(counts.objects, sizes)
    if beyond:
        boxes = counted(len(beyond), 'box')
        yield (
            f'evaluation compares with {boxes} over the edge of the image by more than one pixel, '
            f'which detections cannot reach ({_ids(beyond)}); {BOX_FORMAT}'
        )
    yield from _twice_note(counts)
    absent = _absent(counts)
    if absent:
        yield f'evaluation has no object of {some(absent)}, so the AP is the mean of the others'


def _area_notes(objects: Entries) -> Iterator[str]:
    """Name objects whose area cannot be right and puts them into another of COCO's sizes."""
    of_box = [a['bbox'][2] * a['bbox'][3] for a in objects]
    same = len(objects) > 1 and len({a['area'] for a in objects}) == 1 and len(set(of_box)) > 1
    limits = [high for name, (_, high) in AREAS.items() if name in ('small', 'medium')]
    wrong: dict[str, list[Mapping[str, Any]]] = {}
    sizes = [np.searchsorted(limits, values) for values in ([a['area'] for a in objects], of_box)]
    for place in np.flatnonzero(sizes[0] != sizes[1]).tolist():
        annotation = objects[place]
        area, (w, h) = annotation['area'], annotation['bbox'][2:]
        if same:
            why = f'is {area} for all objects'
        elif area > (w + 1) * (h + 1):
            why = 'is larger than the box'
        elif area < max(w, h) / 2 and not annotation.get('segmentation'):
            # a mask of several parts can be that small
            why = 'is smaller than that of a line through the box'
        else:
            continue
        wrong.setdefault(why, []).append(annotation)
    for why, entries in wrong.items():
        yield (
            f'evaluation takes {counted(len(entries), "object")} for another size than the box '
            f'has ({_ids(entries)}), because the area {why}, so mAP_s, mAP_m and mAP_l are wrong; '
            'set area to width times height of the box'
        )


def _twice(counts: Counts) -> list[Any]:
    """Return the ids of objects that hotcoco's health check takes for the same object."""
    images = {image['id']: place for place, image in enumerate(counts.images)}
    labels = {category: place for place, category in enumerate(counts.categories)}
    coco = hotcoco.COCO.from_arrays(
        [
            {'id': place, 'width': image['width'], 'height': image['height']}
            for place, image in enumerate(counts.images)
        ],
        [{'id': place, 'name': str(place)} for place in labels.values()],
        [images[a['image_id']] for a in counts.objects],
        [labels[a['category_id']] for a in counts.objects],
        np.array([a['bbox'] for a in counts.objects], float).reshape(-1, 4),
    )
    for warning in coco.healthcheck()['warnings']:
        if warning['code'] == 'near_duplicate':
            return [counts.objects[number - 1]['id'] for number in warning['affected_ids']]
    return []


def _twice_note(counts: Counts) -> Iterator[str]:
    ids = _twice(counts)
    if ids:
        yield (
            f'{counted(len(ids), "object")} with nearly the same box and class as another '
            f'({ids_of(ids)}); remove those that are annotated twice'
        )


def listed_twice(counts: Counts) -> Iterator[str]:
    """Name the files of several images whose objects differ."""
    ids: dict[str, list[Any]] = defaultdict(list)
    for image in counts.images:
        ids[os.path.normpath(image['file_name'])].append(image['id'])
    objects: dict[Any, Counter[Any]] = {
        key: Counter() for own in ids.values() if len(own) > 1 for key in own
    }
    for a in counts.used if objects else ():
        if a['image_id'] in objects:
            objects[a['image_id']][(a['category_id'], *a['bbox'])] += 1
    differ = [
        name
        for name, own in ids.items()
        if len(own) > 1 and any(objects[key] != objects[own[0]] for key in own)
    ]
    if differ:
        yield (
            f'{counted(len(differ), "file")} with several image ids and other objects for each '
            f'({some(differ)}), so objects of the one are background for the other; give the '
            'objects of a file one image id'
        )


def image_sizes(coco: Mapping[str, Entries]) -> dict[Any, tuple[int, int]]:
    """Return width and height of each image in pixels."""
    return {image['id']: (image['width'], image['height']) for image in coco['images']}


def _ids(entries: Entries) -> str:
    return ids_of([entry['id'] for entry in entries])


def _absent(counts: Counts) -> list[str]:
    return [name for name, number in counts.per_class().items() if number == 0]


def _beyond(entries: Entries, sizes: Mapping[Any, tuple[int, int]]) -> list[Mapping[str, Any]]:
    """Return the boxes that extend beyond their image by more than one pixel."""
    found = []
    for entry in entries:
        (x, y, w, h), (width, height) = entry['bbox'], sizes[entry['image_id']]
        far = max(-x, -y, x + w - width, y + h - height) > 1
        if far and not is_outside(entry, width, height):
            found.append(entry)
    return found
