"""What mmdet's loader trains on, and what COCO's evaluation counts, in an annotation file.

The two differ. The loader skips boxes without area, outside of their image or with ``"ignore": 1``,
and filters images. The evaluation counts the objects of all these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pycocotools.cocoeval import Params

Entry = Mapping[str, Any]

# why the loader skips an annotation, in the order in which it decides
IGNORE, OUTSIDE, EMPTY, OTHER = 'ignore', 'outside', 'empty', 'other class'
# why the loader skips an image: options of CocoDataset
NO_OBJECT, TOO_SMALL, NOT_CHOSEN = 'filter_empty_gt', 'min_size', 'indices'
# pycocotools' area ranges: all, small, medium, large
AREAS = dict(zip(Params('bbox').areaRngLbl, Params('bbox').areaRng, strict=True))
# the recalls at which AP takes the precision
RECALLS = Params('bbox').recThrs
# IoU threshold of mmdet's metrics that have one of their own
THRESHOLDS = {'mAP_50': 0.5, 'mAP_75': 0.75}


@dataclass(frozen=True)
class Counts:
    """The images and annotations that a training or an evaluation uses.

    Attributes:
        categories: Names of the used categories by id, in the order of the file.
        images: Used images.
        used: ``objects`` and ``ignored`` in the order of the file.
        objects: Annotations that count as objects.
        ignored: Annotations of regions where detections are neither right nor wrong: crowds, and in
            an evaluation also objects with an area outside of COCO's range.
        skipped_images: Images that are not used, by reason.
        skipped: Annotations of the used images that are not used, by reason.
    """

    categories: dict[Any, str]
    images: list[Entry]
    used: list[Entry]
    objects: list[Entry]
    ignored: list[Entry]
    skipped_images: dict[str, list[Entry]]
    skipped: dict[str, list[Entry]]

    def per_class(self) -> dict[str, int]:
        """Return the number of objects of each class."""
        numbers = Counter(a['category_id'] for a in self.objects)
        return {name: numbers[key] for key, name in self.categories.items()}

    def per_size(self) -> dict[str, int]:
        """Return the number of small, medium and large objects, by pycocotools' area ranges."""
        areas = [a['area'] for a in self.objects]
        return {
            name: sum(low <= area <= high for area in areas)
            for name, (low, high) in AREAS.items()
            if name != 'all'
        }


def training_counts(
    coco: Mapping[str, Sequence[Entry]],
    classes: Sequence[str] | None = None,
    filter_cfg: Mapping[str, Any] | None = None,
    indices: int | Sequence[int] | None = None,
) -> Counts:
    """Return what mmdet's CocoDataset loads.

    Args:
        coco: Content of an annotation file without errors.
        classes: Class names of the config. None takes the categories of the file.
        filter_cfg: As in CocoDataset. Pass None if ``test_mode=True``, which disables it.
        indices: As in CocoDataset.
    """
    categories = used_categories(coco, classes)
    chosen, skipped_images = _loaded_images(coco, categories, filter_cfg or {}, indices)
    sizes = {image['id']: (image['width'], image['height']) for image in chosen}
    used: list[Entry] = []
    objects: list[Entry] = []
    ignored: list[Entry] = []
    skipped: dict[str, list[Entry]] = {IGNORE: [], OUTSIDE: [], EMPTY: [], OTHER: []}
    for annotation in coco['annotations']:
        if annotation['image_id'] not in sizes:
            continue
        reason = _why_not_loaded(annotation, *sizes[annotation['image_id']], categories)
        if reason:
            skipped[reason].append(annotation)
            continue
        used.append(annotation)
        (ignored if annotation['iscrowd'] else objects).append(annotation)
    return Counts(categories, chosen, used, objects, ignored, skipped_images, skipped)


def evaluation_counts(
    coco: Mapping[str, Sequence[Entry]],
    classes: Sequence[str] | None = None,
    images: Collection[Any] | None = None,
) -> Counts:
    """Return what COCO's evaluation counts.

    Args:
        coco: Content of an annotation file without errors.
        classes: Class names of the config. None takes the categories of the file.
        images: Ids of the images that count. None counts all images of the file.
    """
    categories = used_categories(coco, classes)
    low, high = AREAS['all']
    run = [image for image in coco['images'] if images is None or image['id'] in images]
    ids = {image['id'] for image in run}
    used: list[Entry] = []
    objects: list[Entry] = []
    ignored: list[Entry] = []
    others: list[Entry] = []
    for annotation in coco['annotations']:
        if annotation['image_id'] not in ids:
            continue
        if annotation['category_id'] not in categories:
            others.append(annotation)
            continue
        used.append(annotation)
        out = annotation['iscrowd'] or not low <= annotation['area'] <= high
        (ignored if out else objects).append(annotation)
    not_run = [image for image in coco['images'] if image['id'] not in ids]
    return Counts(categories, run, used, objects, ignored, {NOT_CHOSEN: not_run}, {OTHER: others})


def not_evaluated(iou_thrs: float | Sequence[float] | None) -> list[str]:
    """Return the metrics of mmdet whose IoU threshold is not among those of an evaluator.

    Args:
        iou_thrs: As in CocoMetric. None stands for 0.50, 0.55 to 0.95.
    """
    if iou_thrs is None:
        return []
    return [name for name, own in THRESHOLDS.items() if own not in np.atleast_1d(iou_thrs)]


def option_faults(
    metrics: Sequence[str], iou_thrs: Any, proposal_nums: Sequence[int], metric_items: Sequence[str]
) -> Iterator[str]:
    """Say with which options of CocoMetric COCO's metrics cannot be computed.

    Each sentence starts with the name of the option.
    """
    numbers = tuple(proposal_nums)
    if list(metrics) != ['proposal_fast'] and (len(numbers) < 3 or 100 not in numbers):
        yield (
            f'proposal_nums is {numbers}, with which COCO has no AP; use at least three numbers '
            'that include 100, such as (1, 10, 100)'
        )
    thresholds = [] if iou_thrs is None else np.atleast_1d(iou_thrs).tolist()
    valid = all(isinstance(value, (int, float)) and 0 < value <= 1 for value in thresholds)
    if not valid or (iou_thrs is not None and not thresholds):
        yield (f'iou_thrs is {iou_thrs!r}; use numbers above 0 and up to 1, such as (0.5, 0.75)')
        return
    missing = not_evaluated(iou_thrs)
    wanted = [item for item in metric_items if item in missing]
    if wanted:
        yield (
            f'metric_items has {wanted[0]}, but iou_thrs has no {THRESHOLDS[wanted[0]]}; add it to '
            f'iou_thrs, or remove {wanted[0]}'
        )


def converted_counts(loaded: Counts) -> Counts:
    """Return what CocoMetric without ``ann_file`` counts: the objects that the loader loads.

    It takes width times height of the box as the area.
    """
    used: list[Entry] = [{**a, 'area': a['bbox'][2] * a['bbox'][3]} for a in loaded.used]
    objects = [annotation for annotation in used if not annotation['iscrowd']]
    return replace(loaded, used=used, objects=objects)


def used_categories(
    coco: Mapping[str, Sequence[Entry]], classes: Sequence[str] | None
) -> dict[Any, str]:
    """Return the names of the categories that the config uses by id."""
    categories = {category['id']: category['name'] for category in coco['categories']}
    return {k: name for k, name in categories.items() if classes is None or name in classes}


def is_outside(annotation: Entry, width: int, height: int) -> bool:
    """Return whether a box and its image have no pixel in common."""
    x, y, w, h = annotation['bbox']
    return min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0)


def _why_not_loaded(annotation: Entry, width: int, height: int, categories: Collection[Any]) -> str:
    """Return why CocoDataset.parse_data_info skips an annotation, or an empty string."""
    if annotation.get('ignore'):
        return IGNORE
    if is_outside(annotation, width, height):
        return OUTSIDE if min(annotation['bbox'][2:]) > 0 else EMPTY
    if annotation['area'] <= 0 or min(annotation['bbox'][2:]) < 1:
        return EMPTY
    return '' if annotation['category_id'] in categories else OTHER


def _loaded_images(
    coco: Mapping[str, Sequence[Entry]],
    categories: Collection[Any],
    filter_cfg: Mapping[str, Any],
    indices: int | Sequence[int] | None,
) -> tuple[list[Entry], dict[str, list[Entry]]]:
    """Return the images that CocoDataset.filter_data keeps, and the others by reason."""
    images = list(coco['images'])
    skipped: dict[str, list[Entry]] = {}
    if filter_cfg.get('filter_empty_gt'):
        # annotations that the loader skips for another reason count here
        annotated = {a['image_id'] for a in coco['annotations'] if a['category_id'] in categories}
        skipped[NO_OBJECT] = [image for image in images if image['id'] not in annotated]
        images = [image for image in images if image['id'] in annotated]
    least = filter_cfg.get('min_size', 0)
    skipped[TOO_SMALL] = [i for i in images if min(i['width'], i['height']) < least]
    images = [i for i in images if min(i['width'], i['height']) >= least]
    if indices is not None:
        chosen = chosen_by(images, indices)
        ids = {image['id'] for image in chosen}
        skipped[NOT_CHOSEN] = [image for image in images if image['id'] not in ids]
        images = chosen
    return images, skipped


def chosen_by(images: Sequence[Entry], indices: int | Sequence[int]) -> list[Entry]:
    """Return the images that ``indices`` of mmengine's data sets chooses.

    Raises:
        IndexError: A number in ``indices`` is too large.
    """
    if not isinstance(indices, int):
        return [images[index] for index in indices]
    return list(images[:indices] if indices >= 0 else images[indices:])
