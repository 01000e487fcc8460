"""What the evaluators of a config count, and options with which their figures are wrong."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..utils.text import counted
from .coco import DEFAULTS, AnnotationFile, ids_of, read_annotations
from .counts import (
    NO_OBJECT,
    NOT_CHOSEN,
    RECALLS,
    THRESHOLDS,
    TOO_SMALL,
    Counts,
    converted_counts,
    evaluation_counts,
    not_evaluated,
    training_counts,
)
from .dataset_configs import HOT_METRIC, TOLERANT, dataset_paths, type_name
from .images import some
from .statements import evaluation_notes

Entries = Sequence[Mapping[str, Any]]
MOST = 100  # detections of a class in an image that mAP counts, whatever proposal_nums is


def loaded_counts(
    dataset: Mapping[str, Any], coco: Mapping[str, Entries], classes: Sequence[str] | None
) -> Counts:
    """Return what the loader of a ``CocoDataset`` config loads.

    Raises:
        DataError: ``indices`` is invalid or contains an image that does not exist.
    """
    filter_cfg = None if dataset.get('test_mode') else dataset.get('filter_cfg')
    indices = dataset.get('indices')
    try:
        return training_counts(coco, classes, filter_cfg, indices)
    except IndexError:
        number = counted(len(coco['images']), 'image')
        raise DataError(
            f'indices is {indices}, but the file has only {number}; correct it'
        ) from None
    except TypeError:
        raise DataError(
            f'indices is {indices!r}; use a number of images or a list of their places'
        ) from None


def evaluated_counts(dataset: Mapping[str, Any], evaluators: Sequence[Mapping[str, Any]]) -> Counts:
    """Return what the first evaluator with COCO's metrics counts on a data set.

    Without an evaluator, all objects of the loaded images count.

    Raises:
        DataError: The annotation file cannot be read or has errors.
    """
    paths = dataset_paths(dataset)
    ann_file, classes = paths['ann_file'], paths['classes']
    file = read_annotations(ann_file, type_name(dataset) == TOLERANT)
    if file.faults:
        raise DataError('\n'.join(f"'{ann_file}': {fault}" for fault in file.faults))
    loaded = loaded_counts(dataset, file.coco, classes)
    for evaluator in evaluators[:1]:
        found = _counted(evaluator, file, ann_file, classes, loaded)
        if found is not None:
            return found[1]
    return evaluation_counts(file.coco, classes, _ids(loaded.images))


def check_evaluator(
    evaluator: Mapping[str, Any],
    file: AnnotationFile,
    ann_file: str | Path,
    classes: Sequence[str] | None,
    loaded: Counts,
    split: str,
) -> tuple[list[str], list[str], Counts | None]:
    """Check an evaluator with COCO's metrics.

    Args:
        evaluator: Config of the evaluator.
        file: Annotation file of the data set.
        ann_file: Path of this file.
        classes: Class names of the config.
        loaded: What the data set loads.
        split: ``val`` or ``test``.

    Returns:
        Errors, notes, and what the evaluator counts. This is None if it cannot be known.
    """
    own, where = type_name(evaluator) == HOT_METRIC, f'{split}_evaluator'
    faults = list(option_faults(evaluator, file.coco, where))
    notes = list(option_notes(evaluator, where))
    found = _counted(evaluator, file, ann_file, classes, loaded)
    if found is None:
        if '://' not in evaluator['ann_file']:
            faults.append(
                f"{where}.ann_file is '{evaluator['ann_file']}' but {split}_dataloader reads "
                f"'{ann_file}'; set it to '{ann_file}'"
            )
        return faults, notes, None
    file, counts = found
    alone = own or not evaluator.get('ann_file')  # the evaluated images alone count
    notes += _filter_notes(loaded, alone)
    if evaluator.get('ann_file'):
        notes += _subset_notes(loaded, file.coco, own)
        faults += _id_faults(counts, where) if type_name(evaluator) == 'CocoMetric' else ()
        notes += _id_notes(counts) if own else ()
    if file.labelled:
        notes += evaluation_notes(counts, file.coco)
        notes += _limit_notes(counts, evaluator, where)
    else:
        notes.append("there are no 'annotations', so every AP will be -1")
    return faults, notes, counts


def detector_notes(cfg: Mapping[str, Any], counts: Counts) -> Iterator[str]:
    """Say that a detector cannot find all objects of an image, given what the evaluator counts."""
    test_cfg = (cfg.get('model') or {}).get('test_cfg') or {}
    for key, options in (('test_cfg', test_cfg), ('test_cfg.rcnn', test_cfg.get('rcnn'))):
        most = options.get('max_per_img') if isinstance(options, Mapping) else None
        numbers = Counter(a['image_id'] for a in counts.objects)
        crowded = [number for number in numbers.values() if number > (most or 0) > 0]
        if crowded and most:
            share = sum(min(number, most) for number in numbers.values()) / len(counts.objects)
            yield (
                f'model.{key}.max_per_img is {most}, but {_have(crowded, "image")} more objects '
                f'(up to {max(crowded)}), so at most {share:.1%} of the objects can be found; '
                'increase it'
            )


def _counted(
    evaluator: Mapping[str, Any],
    file: AnnotationFile,
    ann_file: str | Path,
    classes: Sequence[str] | None,
    loaded: Counts,
) -> tuple[AnnotationFile, Counts] | None:
    """Return the file of an evaluator and what the evaluator counts.

    Returns None if the file is remote, or does not belong to the data set.
    """
    path, own = evaluator.get('ann_file'), type_name(evaluator) == HOT_METRIC
    if not path:
        return file, converted_counts(loaded)
    if '://' in path:
        return None
    same = _is_same(path, ann_file)
    if not same or file.tolerant != own:
        try:
            coco, file = file.coco, read_annotations(path, tolerant=own)
        except DataError:
            return None
        if not same and not _agree(file.coco, coco, loaded):
            return None
    images = _ids(loaded.images) if own else None
    return file, evaluation_counts(file.coco, classes, images)


def _ids(entries: Entries) -> set[Any]:
    return {entry['id'] for entry in entries}


def repair_faults(file: AnnotationFile, evaluators: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Name the missing fields that the readers need and do not fill in."""
    pycocotools = [e for e in evaluators if type_name(e) != HOT_METRIC]
    fixes = [f"set type='{TOLERANT}' in the data set"] * (not file.tolerant)
    fixes += ["set type='HotCocoMetric' in the evaluator"] * bool(pycocotools)
    for key, places in file.repairs.items():
        needed = {'area': fixes, 'iscrowd': pycocotools, 'bbox': []}[key]
        if places and needed:
            number = counted(len(file.coco['annotations']), 'annotation')
            yield (
                f"'{key}' is missing in {len(places)} of {number} ({some(places)}); add it "
                f'({DEFAULTS[key]}), or {" and ".join(fixes)}'
            )


def _is_same(one: str | Path, other: str | Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _agree(one: Mapping[str, Entries], other: Mapping[str, Entries], loaded: Counts) -> bool:
    """Return whether two files say the same about the loaded images, or one has no annotations."""
    ids = _ids(loaded.images)
    said = []
    for coco in (one, other):
        boxes: dict[Any, list[float]] = defaultdict(lambda: [0, 0, 0, 0, 0])
        images: dict[Any, Any] = {
            i['id']: (i['file_name'], i['width'], i['height']) for i in coco['images']
        }
        names = {category['id']: category['name'] for category in coco['categories']}
        for a in coco['annotations']:
            if a['image_id'] in ids:
                x, y, w, h = a['bbox']
                row = (1, min(x, x + w), min(y, y + h), max(x, x + w), max(y, y + h))
                key = a['image_id'], names[a['category_id']]
                boxes[key] = [sum(pair) for pair in zip(boxes[key], row, strict=True)]
        said.append(({key: images.get(key) for key in ids}, boxes))
    (images, boxes), (other_images, other_boxes) = said
    if images != other_images or not (boxes and other_boxes):
        return images == other_images
    # the mean box of a class in an image may differ by rounding
    return boxes.keys() == other_boxes.keys() and all(
        own[0] == other_boxes[key][0]
        and all(abs(a - b) <= own[0] for a, b in zip(own, other_boxes[key], strict=True))
        for key, own in boxes.items()
    )


def option_faults(
    evaluator: Mapping[str, Any], coco: Mapping[str, Entries], where: str
) -> Iterator[str]:
    """Name options with which COCO's AP is wrong."""
    numbers, metrics = _proposal_nums(evaluator), _metrics(evaluator)
    if metrics != ['proposal_fast'] and (len(numbers) < 3 or 100 not in numbers):
        yield (
            f'{where}.proposal_nums is {numbers}, with which COCO has no AP; use at least three '
            'numbers that include 100, such as (1, 10, 100)'
        )
    ids = [category['id'] for category in coco['categories']]
    is_sorted = all(isinstance(key, int) for key in ids) and ids == sorted(ids)
    if type_name(evaluator) == 'CocoMetric' and evaluator.get('classwise') and not is_sorted:
        yield (
            f'{where}.classwise=True, but the categories are not in the order of their ids, so '
            "CocoMetric would swap the AP of the classes; set type='HotCocoMetric', or sort the "
            'categories by id'
        )
    missing = not_evaluated(evaluator.get('iou_thrs'))
    wanted = [item for item in evaluator.get('metric_items') or () if item in missing]
    if wanted:
        yield (
            f'{where}.metric_items has {wanted[0]}, but iou_thrs has no {THRESHOLDS[wanted[0]]}; '
            f'add it to iou_thrs, or remove {wanted[0]}'
        )
    thresholds = evaluator.get('iou_thrs')
    # with an array, only its table of classes is wrong, which takes thresholds by place
    fails = not isinstance(thresholds, np.ndarray) or evaluator.get('classwise')
    plain = type_name(evaluator) == 'CocoMetric' and metrics != ['proposal_fast']
    if plain and thresholds is not None and fails:
        yield (
            f'{where}.iou_thrs is set, with which CocoMetric ends in an error or in wrong figures; '
            "set type='HotCocoMetric'"
        )


def option_notes(evaluator: Mapping[str, Any], where: str) -> Iterator[str]:
    """Name options with which metrics of COCO have another meaning or do not exist."""
    if not {'bbox', 'segm'} & set(_metrics(evaluator)):
        return
    third = sorted(_proposal_nums(evaluator))[2:3]
    if third and third[0] < MOST:
        yield (
            f'{where}.proposal_nums has {third[0]} in the third place by size, so mAP_50, mAP_75, '
            f'mAP_s, mAP_m and mAP_l count only {third[0]} detections of a class in an image, and '
            f'mAP counts {MOST}; use three numbers, such as (1, 10, 100)'
        )
    missing = not_evaluated(evaluator.get('iou_thrs'))
    if missing:
        lacking = ' and no '.join(str(THRESHOLDS[name]) for name in missing)
        yield f'{where}.iou_thrs has no {lacking}, so there is no {" and no ".join(missing)}'


def _metrics(evaluator: Mapping[str, Any]) -> list[str]:
    metrics = evaluator.get('metric') or 'bbox'
    return [metrics] if isinstance(metrics, str) else list(metrics)


def _proposal_nums(evaluator: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(evaluator.get('proposal_nums', (100, 300, 1000)))


def _have(images: Sequence[Any], noun: str) -> str:
    return f'{counted(len(images), noun)} {"has" if len(images) == 1 else "have"}'


def _limit_notes(counts: Counts, evaluator: Mapping[str, Any], where: str) -> Iterator[str]:
    """Say that COCO counts fewer detections of a class in an image than there are objects."""
    numbers = Counter((a['category_id'], a['image_id']) for a in counts.objects)
    crowded = {image: number for (_, image), number in numbers.items() if number > MOST}
    if not crowded or not {'bbox', 'segm'} & set(_metrics(evaluator)):
        return
    every, found = Counter[Any](), Counter[Any]()
    for (category, _), number in numbers.items():
        every[category] += number
        found[category] += min(number, MOST)
    bounds = [np.mean(found[key] / every[key] >= RECALLS) for key in every]
    most = max(numbers.values())
    nums = sorted(_proposal_nums(evaluator))
    text = (
        f'mAP counts at most {MOST} detections of a class in an image, but '
        f'{_have(list(crowded), "image")} more objects of one class (up to {most}), so mAP cannot '
        f'exceed {np.mean(bounds):.3f}'
    )
    if len(nums) < 3 or nums[2] < most:
        text += f'; for a mAP_50 that counts all, set proposal_nums=(1, 100, {most}) in {where}'
    yield text


def _id_faults(counts: Counts, where: str) -> Iterator[str]:
    ids = [annotation['id'] for annotation in counts.used]
    wrong = [key for key in ids if key == 0 or not isinstance(key, int)]
    if wrong:
        yield (
            f'{where}: pycocotools cannot match an object whose id is 0 or not a number '
            f"({ids_of(wrong)}), so the AP would be too low; set {where}.type='HotCocoMetric', or "
            'number the annotations from 1'
        )


def _id_notes(counts: Counts) -> Iterator[str]:
    if any(annotation['id'] == 0 for annotation in counts.objects):
        yield (
            'annotation 0 has the id 0, which pycocotools cannot match; HotCocoMetric matches it, '
            'so the AP of other programs may be lower'
        )


def _filter_notes(loaded: Counts, alone: bool) -> Iterator[str]:
    """Say which images a data set without test_mode=True leaves out of an evaluation."""
    every = len(_ids(loaded.images)) + sum(map(len, loaded.skipped_images.values()))
    effects = {
        NO_OBJECT: (
            'without an annotation of a class (filter_cfg.filter_empty_gt), so detections on them '
            'do not count and the AP is too high'
        ),
        TOO_SMALL: (
            'with a side below filter_cfg.min_size, so their objects and detections do not count'
            if alone
            else 'with a side below filter_cfg.min_size, but CocoMetric counts their objects as '
            'not found, so the AP is too low'
        ),
    }
    for key, effect in effects.items():
        images = loaded.skipped_images.get(key)
        if images:
            yield (
                f'evaluation skips {len(images):,} of {counted(every, "image")} {effect} '
                f'({some([image["file_name"] for image in images])}); set test_mode=True in the '
                'data set'
            )


def _subset_notes(loaded: Counts, coco: Mapping[str, Entries], own: bool) -> Iterator[str]:
    run, every = len(_ids(loaded.images)), len(coco['images'])
    filtered = sum(len(i) for key, i in loaded.skipped_images.items() if key != NOT_CHOSEN)
    if run + filtered >= every:
        return
    number = counted(every, 'image')
    if own:
        yield f'evaluation takes only {run:,} of {number}, and only their objects count'
    else:
        yield (
            f'evaluation takes only {run:,} of {number}, but CocoMetric counts every object of the '
            "others as not found, so the AP is too low; set type='HotCocoMetric'"
        )
