"""True and detected boxes of a data set as arrays, and which detection found which object.

Shapes: I images, K classes, G true objects, D detections.
Boxes are ``[x, y, width, height]`` in pixels, as COCO's files have them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError

if TYPE_CHECKING:
    import hotcoco

MAX_PER_IMAGE = 100  # COCO's


@dataclass(frozen=True)
class Truth:
    """What there is in a data set.

    Attributes:
        classes: K names.
        category_ids: The file's id of each class.
        image_ids: The file's id of each image, in its order.
        file_names: I, relative to ``folder``.
        sizes: ``(I, 2)`` width and height.
        folder: Where the images should be.
        image: ``(G,)`` place of each object's image.
        label: ``(G,)`` place of its class.
        box: ``(G, 4)``.
        area: ``(G,)`` COCO's area, that of the mask where the file has one.
        crowd: ``(G,)`` whether it stands for many, so that what lies in it is not counted.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: tuple[Any, ...]
    file_names: tuple[str, ...]
    sizes: np.ndarray
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
        left_out: Detections that are not in these arrays, by the reason.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    score: np.ndarray
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class Matches:
    """Which detection found which object at IoU 0.5.

    Attributes:
        truth_of: ``(D,)`` the object that a detection found, else -1.
        found_of: ``(G,)`` the detection that found an object, else -1.
        ignored: ``(D,)`` neither right nor wrong, since it lies in a crowd.
    """

    truth_of: np.ndarray
    found_of: np.ndarray
    ignored: np.ndarray

    @property
    def hit(self) -> np.ndarray:
        """``(D,)`` right detections."""
        return self.truth_of >= 0


def read_truth(
    coco: Mapping[str, Any],
    name: str | Path,
    folder: str | Path,
    classes: Sequence[str],
    indices: int | Sequence[int] | None = None,
) -> Truth:
    """Read an annotation file's content.

    Args:
        coco: Content in COCO's format.
        name: Its file, for messages.
        folder: Folder that ``file_name`` is relative to.
        classes: Names in the detector's order; those that the file lacks have no objects.
        indices: The images that are evaluated, as mmengine's data sets take them; None for all.

    Raises:
        DataError: It is not in COCO's format.
    """
    try:
        by_name = {str(c['name']): c['id'] for c in coco['categories']}
        images = list(coco['images'])
        if isinstance(indices, int):
            images = images[:indices] if indices >= 0 else images[indices:]
        elif indices is not None:
            images = [images[index] for index in indices]
        place = {image['id']: index for index, image in enumerate(images)}
        label = {by_name[c]: index for index, c in enumerate(classes) if c in by_name}
        kept = [
            a
            for a in coco['annotations']
            if a['image_id'] in place and a['category_id'] in label and not a.get('ignore')
        ]
        box = _boxes(a['bbox'] for a in kept)
        area = np.array([a.get('area') for a in kept], float)  # of None it makes NaN
        return Truth(
            classes=tuple(map(str, classes)),
            # a class that the file lacks gets an id that no object has
            category_ids=tuple(by_name.get(c, -1 - index) for index, c in enumerate(classes)),
            image_ids=tuple(place),
            file_names=tuple(str(image['file_name']) for image in images),
            sizes=np.array([(i['width'], i['height']) for i in images], float).reshape(-1, 2),
            folder=Path(folder),
            image=_places(place[a['image_id']] for a in kept),
            label=_places(label[a['category_id']] for a in kept),
            box=box,
            area=np.where(np.isnan(area), box[:, 2] * box[:, 3], area),
            crowd=np.array([bool(a.get('iscrowd')) for a in kept], bool),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise DataError(f"'{name}' is not in COCO's format ({reason}); export it again") from None


def read_found(results: Sequence[Mapping[str, Any]], truth: Truth, name: str | Path) -> Found:
    """Read results in COCO's format.

    Args:
        results: Each with ``image_id``, ``category_id``, ``bbox`` and ``score``.
        truth: What they are held against.
        name: Their file, for messages.

    Returns:
        The best 100 of each image, by falling score. Those with a figure that is not finite, a box
        without area, or an image or a class that is not evaluated are left out and counted.

    Raises:
        DataError: They are not in COCO's format.
    """
    place = {identity: index for index, identity in enumerate(truth.image_ids)}
    label = {identity: index for index, identity in enumerate(truth.category_ids)}
    try:
        image = _places(place.get(r['image_id'], -1) for r in results)
        labels = _places(label.get(r['category_id'], -1) for r in results)
        box = _boxes(r['bbox'] for r in results)
        score = np.array([r['score'] for r in results], float)
    except (KeyError, TypeError, ValueError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise DataError(
            f"'{name}' has no detections in COCO's format ({reason}); delete it to evaluate again"
        ) from None
    finite = np.isfinite(box).all(1) & np.isfinite(score)
    known = (image >= 0) & (labels >= 0)
    area = (box[:, 2:] > 0).all(1)
    kept = np.flatnonzero(finite & known & area)
    # by image, then by falling score; equal scores stay in the file's order, as in pycocotools
    kept = kept[np.lexsort((-score[kept], image[kept]))]
    rank = np.arange(len(kept)) - np.searchsorted(image[kept], image[kept])
    best = kept[rank < MAX_PER_IMAGE]
    best = best[np.argsort(-score[best], kind='stable')]
    left_out = {
        'with a figure that is not finite': int((~finite).sum()),
        'of an image or class that is not evaluated': int((finite & ~known).sum()),
        'without area': int((finite & known & ~area).sum()),
        f'beyond the best {MAX_PER_IMAGE} of an image': len(kept) - len(best),
    }
    counts = {reason: count for reason, count in left_out.items() if count}
    return Found(image[best], labels[best], box[best], score[best], counts)


def coco_evaluator(
    truth: Truth,
    found: Found,
    objects: np.ndarray | slice = slice(None),
    detections: np.ndarray | slice = slice(None),
    truth_area: np.ndarray | None = None,
    found_area: np.ndarray | None = None,
) -> hotcoco.COCOeval:
    """Hand boxes to hotcoco.

    Images and classes have their places as ids, objects and detections their places plus one.

    Args:
        truth: What there is.
        found: What was found.
        objects: Those that are handed over.
        detections: Those that are handed over; their ids count these.
        truth_area: ``(G,)`` what is taken for the area of an object; None for its area.
        found_area: ``(D,)`` likewise of a detection; None for that of its box.

    Returns:
        An evaluator that has not evaluated yet.
    """
    import hotcoco

    area = truth.area if truth_area is None else truth_area
    gt = hotcoco.COCO.from_arrays(
        [{'id': place} for place in range(len(truth.image_ids))],
        [{'id': place, 'name': str(place)} for place in range(len(truth.classes))],
        truth.image[objects],
        truth.label[objects],
        truth.box[objects],
        ids=np.arange(1, len(truth.image) + 1)[objects],
        area=area[objects],
        iscrowd=truth.crowd[objects],
    )
    rows = np.column_stack([found.image, found.box, found.score, found.label])[detections]
    dt = gt.load_res(rows)
    if found_area is not None:
        dt.update_anns(ids=np.arange(1, len(rows) + 1), area=found_area[detections])
    return hotcoco.COCOeval(gt, dt, 'bbox')


def find_matches(evaluator: hotcoco.COCOeval, truth: Truth, found: Found) -> Matches:
    """Return which detection of an evaluation found which object, by COCO's rules.

    The surest detection comes first and takes the object of its class that it overlaps most; one
    that finds none is not counted where half of it lies in a crowd of its class.
    """
    told = evaluator.image_diagnostics(iou_thr=0.5)
    pairs = np.array(list(told['dt_match'].items()), np.int64).reshape(-1, 2) - 1
    truth_of, found_of = np.full(len(found.image), -1), np.full(len(truth.image), -1)
    truth_of[pairs[:, 0]], found_of[pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    ignored = np.ones(len(found.image), bool)
    ignored[np.array(list(told['dt_status']), np.int64) - 1] = False
    return Matches(truth_of, found_of, ignored)


def _boxes(boxes: Any) -> np.ndarray:
    rows = [tuple(map(float, box)) for box in boxes]
    if any(len(row) != 4 for row in rows):
        raise ValueError('a bbox has not four numbers')
    return np.array(rows, float).reshape(-1, 4)


def _places(values: Any) -> np.ndarray:
    return np.array(list(values), np.int64)
