"""Detections in COCO's result format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..data.coco import read_coco
from ..data.dataset_configs import dataset_paths
from ..errors import DataError

# the ids of COCO's 80 categories are 1 to 90 without these ten
COCO_ID_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


def coco_ids(cfg: Config, classes: Sequence[str]) -> tuple[dict[Path, int], list[int]]:
    """Return image ids by resolved path, and the category id of each label.

    The ids come from the config's annotation file. If it cannot be read, there are no image ids,
    and category ids are those of COCO for its 80 classes, otherwise 1, 2, and so on.
    """
    paths = dataset_paths(cfg.test_dataloader.dataset)
    with suppress(DataError, KeyError):  # if the file cannot be used, fall back to the ids below
        coco = read_coco(paths['ann_file'], ('images', 'categories'))
        by_name = {category['name']: category['id'] for category in coco['categories']}
        ids = [by_name[name] for name in classes]
        folder = paths['img_dir']
        return {(folder / i['file_name']).resolve(): i['id'] for i in coco['images']}, ids
    if len(classes) == 80 and classes[0] == 'person' and classes[-1] == 'toothbrush':
        return {}, [i for i in range(1, 91) if i not in COCO_ID_GAPS]
    return {}, list(range(1, len(classes) + 1))


def to_coco(
    instances: Any,
    image_id: int | str,
    file_name: str,
    classes: Sequence[str],
    category_ids: Sequence[int],
    further: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Convert the detections of one image to COCO's result format, with names added.

    Args:
        instances: ``bboxes (N, 4)`` as corners in pixels, ``scores (N,)``, ``labels (N,)`` and
            optionally ``masks (N, H, W)``, on the CPU. Masks are encoded as RLE.
        image_id: Id of the image.
        file_name: File name of the image.
        classes: Class names in the order of the labels.
        category_ids: Category id of each label.
        further: Additional fields of each entry.
    """
    from mmdet.structures.mask import encode_mask_results

    columns = (instances.bboxes, instances.scores, instances.labels)
    found = [
        {
            'image_id': image_id,
            'category_id': category_ids[label],
            'bbox': [x1, y1, x2 - x1, y2 - y1],
            'score': score,
            'file_name': file_name,
            'category_name': classes[label],
            **(further or {}),
        }
        for (x1, y1, x2, y2), score, label in zip(*(c.tolist() for c in columns), strict=True)
    ]
    if 'masks' in instances:
        for entry, rle in zip(found, encode_mask_results(instances.masks.numpy()), strict=True):
            entry['segmentation'] = {**rle, 'counts': rle['counts'].decode()}
    return found
