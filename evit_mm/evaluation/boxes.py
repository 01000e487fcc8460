"""Ground-truth boxes and detected boxes of a data set as arrays.

Shapes: I images, K classes, G ground-truth objects, D detections.
Boxes are ``[x, y, width, height]`` in pixels, as in COCO files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np

from ..data.counts import Counts
from ..data.dataset_configs import dataset_paths
from ..data.evaluators import evaluated_counts


@dataclass(frozen=True)
class Truth:
    """The ground truth of a data set.

    Attributes:
        classes: K class names.
        category_ids: Category id of each class, or None if the file does not contain the class.
        images: I image entries of the file.
        folder: Folder that contains the images; ``file_name`` is relative to it.
        image: ``(G,)`` index of the image of each object.
        label: ``(G,)`` index of the class of each object.
        box: ``(G, 4)`` boxes.
        area: ``(G,)`` areas from the file.
        crowd: ``(G,)`` whether an object is a crowd. Detections inside a crowd are ignored.
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
        """``(K,)`` number of objects of each class, without crowds."""
        return np.bincount(self.label[~self.crowd], minlength=len(self.classes))


@dataclass(frozen=True)
class Found:
    """The detections of a detector, sorted by descending score.

    Attributes:
        image: ``(D,)`` index of the image of each detection.
        label: ``(D,)`` index of the class of each detection.
        box: ``(D, 4)`` boxes.
        score: ``(D,)`` scores.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    score: np.ndarray


def truth_of(counts: Counts, folder: str | Path, classes: Sequence[str]) -> Truth:
    """Return what an evaluation counts as arrays.

    Args:
        counts: Images and objects that count.
        folder: Folder that contains the images.
        classes: Class names in the order of the detector. A class that is not in the file has no
            objects.
    """
    place = {image['id']: index for index, image in enumerate(counts.images)}
    category_of = {name: key for key, name in counts.categories.items()}
    category_ids = tuple(map(category_of.get, classes))
    label = {identity: index for index, identity in enumerate(category_ids)}
    kept = [a for a in counts.used if a['category_id'] in label]
    return Truth(
        classes=tuple(classes),
        category_ids=category_ids,
        images=[dict(image) for image in counts.images],
        folder=Path(folder),
        image=np.array([place[a['image_id']] for a in kept], int),
        label=np.array([label[a['category_id']] for a in kept], int),
        box=np.array([a['bbox'] for a in kept], float).reshape(-1, 4),
        area=np.array([a['area'] for a in kept], float),
        crowd=np.array([a['iscrowd'] for a in kept], bool),
    )


def evaluated_truth(dataset: Mapping[str, Any], evaluators: Sequence[Mapping[str, Any]]) -> Truth:
    """Return what an evaluation counts, given the configs of its data set and its evaluators."""
    paths = dataset_paths(dataset)
    counts = evaluated_counts(dataset, evaluators)
    return truth_of(counts, paths['img_dir'], paths['classes'])


def read_found(results: Sequence[Mapping[str, Any]], truth: Truth) -> Found:
    """Convert results in COCO format for the images of ``truth``."""
    place = {image['id']: index for index, image in enumerate(truth.images)}
    label = {identity: index for index, identity in enumerate(truth.category_ids)}
    # a stable sort keeps the file order of equal scores, as in pycocotools
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
    """Evaluate all or some boxes with hotcoco.

    The ids of images and classes are their indices. The ids of objects and detections start at 1.
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
