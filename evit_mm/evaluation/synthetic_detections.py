"""Random ground truth and detections to test COCO's evaluation at full size."""

from __future__ import annotations

from typing import Any

import numpy as np

MAX_PER_IMAGE = 100


def synthetic_detections(
    num_images: int, num_classes: int = 80, seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Generate a COCO-format data set and detections for it.

    The data set is similar to COCO. It has about 7 objects of at most 3 classes per image, common
    and rare classes, 1 % crowds, 41 % small objects and 24 % large objects. The detections are
    shifted copies of the true boxes, some of them twice or with a wrong class, and false boxes.
    There are at most 100 detections per image, and about 50 on average. Scores are rounded to three
    decimals, so some of them are equal.

    Args:
        num_images: Number of images.
        num_classes: Number of categories. Category ids start at 1.
        seed: Random seed.

    Returns:
        The content of the annotation file and the list of results, with boxes as
        ``[x, y, width, height]``.

    Example:
        >>> truth, found = synthetic_detections(10)
        >>> len(truth['images']), sorted(found[0])
        (10, ['bbox', 'category_id', 'image_id', 'score'])
    """
    rng = np.random.default_rng(seed)
    sizes = np.where(rng.random((num_images, 1)) < 0.7, (640, 480), (480, 640))
    common = 1 / np.arange(1, num_classes + 1)
    common /= common.sum()
    present = rng.choice(num_classes, (num_images, 3), p=common)

    image = np.repeat(np.arange(num_images), rng.negative_binomial(2, 2 / 9, num_images))
    boxes = _random_boxes(rng, sizes[image])
    label = present[image, rng.integers(3, size=len(image))]
    truth = {
        'info': {},
        'images': [
            {'id': i, 'width': width, 'height': height, 'file_name': f'{i}.jpg'}
            for i, (width, height) in enumerate(sizes.tolist(), 1)
        ],
        'annotations': _entries(
            image,
            label,
            boxes,
            id=np.arange(1, len(image) + 1),
            area=boxes[:, 2:].prod(1) * rng.uniform(0.4, 0.9, len(image)),
            iscrowd=(rng.random(len(image)) < 0.012).astype(int),
        ),
        'categories': [{'id': i, 'name': f'class {i}'} for i in range(1, num_classes + 1)],
    }

    # 85 % of the objects are found, 30 % are found a second time
    _, hits = np.nonzero(rng.random((2, len(image))) < ((0.85,), (0.3,)))
    moved = _moved(rng, boxes[hits])
    confused = rng.random(len(hits)) < 0.1
    hit_label = np.where(confused, rng.choice(num_classes, len(hits), p=common), label[hits])
    false, false_label, false_boxes = _false_detections(rng, sizes, present, common)
    image = np.concatenate([image[hits], false])
    label = np.concatenate([hit_label, false_label])
    boxes = np.concatenate([moved, false_boxes])
    score = np.concatenate([rng.beta(3, 2, len(hits)), rng.beta(1, 6, len(false))])

    order = np.lexsort((-score, image))
    rank = np.arange(len(order)) - np.searchsorted(image[order], image[order])
    kept = order[rank < MAX_PER_IMAGE]
    return truth, _entries(image[kept], label[kept], boxes[kept], score=score[kept].round(3))


def _false_detections(
    rng: np.random.Generator, sizes: np.ndarray, present: np.ndarray, common: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return random images, classes and boxes; half of the classes occur in the image."""
    image = np.repeat(np.arange(len(sizes)), rng.integers(0, MAX_PER_IMAGE, len(sizes)))
    likely = rng.random(len(image)) < 0.5
    label = np.where(
        likely,
        present[image, rng.integers(3, size=len(image))],
        rng.choice(len(common), len(image), p=common),
    )
    return image, label, _random_boxes(rng, sizes[image])


def _random_boxes(rng: np.random.Generator, sizes: np.ndarray) -> np.ndarray:
    """Return one box ``(x, y, width, height)`` for each image size in ``sizes`` ``(N, 2)``."""
    # with areas of about 0.65 of the box, this log-normal distribution gives 41 % small objects
    # (below 32^2) and 24 % large ones (from 96^2)
    side, ratio = rng.lognormal(3.96, 1.22, len(sizes)), rng.lognormal(0, 0.3, len(sizes))
    extent = np.stack([side * ratio, side / ratio], 1).clip(2, sizes)
    return np.concatenate([rng.random((len(sizes), 2)) * (sizes - extent), extent], 1)


def _moved(rng: np.random.Generator, boxes: np.ndarray) -> np.ndarray:
    """Shift the centres and scale the sides of boxes randomly by about 10 %."""
    extent = boxes[:, 2:] * rng.lognormal(0, 0.1, (len(boxes), 2))
    shift = boxes[:, 2:] * rng.normal(0, 0.1, (len(boxes), 2))
    return np.concatenate([boxes[:, :2] + (boxes[:, 2:] - extent) / 2 + shift, extent], 1)


def _entries(
    image: np.ndarray, label: np.ndarray, boxes: np.ndarray, **further: np.ndarray
) -> list[dict[str, Any]]:
    columns = {
        'image_id': image + 1,
        'category_id': label + 1,
        'bbox': boxes.round(2),
        **further,
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]
