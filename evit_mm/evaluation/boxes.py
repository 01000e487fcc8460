"""True and detected boxes of a data set as arrays.

Shapes: I images, K classes, G true objects, D detections.
Boxes are ``[x, y, width, height]`` in pixels, as COCO's files have them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np

from ..errors import DataError


@dataclass(frozen=True)
class Truth:
    """What there is in a data set.

    Attributes:
        classes: K names.
        category_ids: The file's id of each class, None where the file lacks it.
        images: I entries of the file.
        folder: Folder that their ``file_name`` is relative to.
        image: ``(G,)`` place of each object's image.
        label: ``(G,)`` place of its class.
        box: ``(G, 4)``.
        area: ``(G,)`` COCO's area, that of the mask where the file has one.
        crowd: ``(G,)`` whether it stands for many, so that what lies in it is not counted.
    """

    classes: tuple[str, ...]
    category_ids: tuple[Any, ...]
    images: list[dict[str, Any]]
    folder: Path
    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    area: np.ndarray
    crowd: np.ndarray

    @property
    def objects(self) -> np.ndarray:
        """``(K,)`` objects of each class, crowds left out."""
        return np.bincount(self.label[~self.crowd], minlength=len(self.classes))


@dataclass(frozen=True)
class Found:
    """What a detector found, by falling score.

    Attributes:
        image: ``(D,)`` place of each detection's image.
        label: ``(D,)`` place of its class.
        box: ``(D, 4)``.
        score: ``(D,)``.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    score: np.ndarray


def read_truth(
    content: bytes | str,
    name: str | Path,
    folder: str | Path,
    classes: Sequence[str],
    indices: int | Sequence[int] | None = None,
) -> Truth:
    """Read an annotation file's content, or raise a DataError that names the file.

    Classes are in the detector's order; those that the file lacks have no objects. ``indices``
    chooses images as mmengine's data sets do.
    """
    try:
        coco = json.loads(content)
        images = coco['images']
        if isinstance(indices, int):
            images = images[:indices] if indices >= 0 else images[indices:]
        elif indices is not None:
            images = [images[index] for index in indices]
        place = {image['id']: index for index, image in enumerate(images)}
        category_of = {category['name']: category['id'] for category in coco['categories']}
        category_ids = tuple(map(category_of.get, classes))
        label = {identity: index for index, identity in enumerate(category_ids)}
        kept = [
            a for a in coco['annotations'] if a['image_id'] in place and a['category_id'] in label
        ]
        return Truth(
            classes=tuple(classes),
            category_ids=category_ids,
            images=images,
            folder=Path(folder),
            image=np.array([place[a['image_id']] for a in kept], int),
            label=np.array([label[a['category_id']] for a in kept], int),
            box=np.array([a['bbox'] for a in kept], float).reshape(-1, 4),
            area=np.array([a['area'] for a in kept], float),
            crowd=np.array([a.get('iscrowd', 0) for a in kept], bool),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise DataError(
            f"annotation file '{name}' is not in COCO format ({reason}); export it again"
        ) from None


def read_found(results: Sequence[Mapping[str, Any]], truth: Truth) -> Found:
    """Read results in COCO's format, found on the images of ``truth``."""
    place = {image['id']: index for index, image in enumerate(truth.images)}
    label = {identity: index for index, identity in enumerate(truth.category_ids)}
    # equal scores stay in the file's order, as in pycocotools
    results = sorted(results, key=lambda result: -result['score'])
    return Found(
        image=np.array([place[r['image_id']] for r in results], int),
        label=np.array([label[r['category_id']] for r in results], int),
        box=np.array([r['bbox'] for r in results], float).reshape(-1, 4),
        score=np.array([r['score'] for r in results], float),
    )


def coco_evaluator(
    truth: Truth,
    found: Found,
    objects: np.ndarray | slice = slice(None),
    detections: np.ndarray | slice = slice(None),
) -> hotcoco.COCOeval:
    """Evaluate boxes, or some of them, by hotcoco.

    Images and classes have their places as ids, objects and detections count from 1.
    """
    gt = hotcoco.COCO.from_arrays(
        [{'id': place} for place in range(len(truth.images))],
        [{'id': place, 'name': str(place)} for place in range(len(truth.classes))],
        truth.image[objects],
        truth.label[objects],
        truth.box[objects],
        area=truth.area[objects],
        iscrowd=truth.crowd[objects],
    )
    rows = np.column_stack([found.image, found.box, found.score, found.label])
    evaluator = hotcoco.COCOeval(gt, gt.load_res(rows[detections]), 'bbox')
    evaluator.evaluate()
    return evaluator
