"""How well a config's anchors can cover the objects of its data set.

An object whose best anchor is below the assigner's ``pos_iou_thr`` is learnt from that one anchor
at most, where the assigner takes low-quality matches, and else not at all.

Shapes: N objects, A anchor shapes of all levels together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmcv import rescale_size


def best_ious(
    boxes: np.ndarray, sizes: np.ndarray, generator: Any, pad_size_divisor: int = 1
) -> np.ndarray:
    """Return each object's best IoU with any anchor on its image's grids.

    Exact without building the grids: an overlap shrinks with the distance of the centres in x and
    in y independently, so that the best place of an anchor shape is the grid's nearest one.

    Args:
        boxes: ``(N, 4)`` corners x1, y1, x2, y2 in the network's input, in pixels.
        sizes: ``(N, 2)`` width and height of each object's image there, before padding.
        generator: mmdet's ``AnchorGenerator``.
        pad_size_divisor: What the preprocessor pads sides to a multiple of.

    Returns:
        ``(N,)`` IoU.
    """
    padded = np.ceil(sizes / pad_size_divisor) * pad_size_divisor
    best = np.zeros(len(boxes))
    for anchors, stride in zip(generator.base_anchors, generator.strides, strict=True):
        steps = np.array(stride, float)
        last = np.ceil(padded / steps) - 1  # (N, 2): the grid's last column and row
        for anchor in np.asarray(anchors, float):
            best = np.maximum(best, _ious_at_nearest(boxes, anchor, steps, last))
    return best


def _ious_at_nearest(
    boxes: np.ndarray, anchor: np.ndarray, steps: np.ndarray, last: np.ndarray
) -> np.ndarray:
    """Return the IoU ``(N,)`` with one anchor shape, each at its nearest place on the grid."""
    low, high = boxes[:, :2], boxes[:, 2:]
    middle = (anchor[:2] + anchor[2:]) / 2
    cell = np.clip(np.rint(((low + high) / 2 - middle) / steps), 0, last)
    shift = cell * steps
    overlap = np.minimum(high, anchor[2:] + shift) - np.maximum(low, anchor[:2] + shift)
    inter = np.clip(overlap, 0, None).prod(1)
    return inter / ((high - low).prod(1) + (anchor[2:] - anchor[:2]).prod() - inter)


def resized_boxes(
    coco: Mapping[str, Any], classes: Sequence[str] | None, pipeline: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the objects that are trained on, as the network sees them.

    Args:
        coco: Content of an annotation file that :func:`evit_mm.data.check_coco` accepts.
        classes: Names that the config trains, None for all.
        pipeline: The data set's; at most one ``Resize`` of a fixed scale.

    Returns:
        Corners ``(N, 4)`` and image sizes ``(N, 2)``, width first; None if the pipeline resizes in
        another way, such as at random.
    """
    resizing = [step for step in pipeline if 'Resize' in str(step.get('type'))]
    resizing += [step for step in pipeline if 'Crop' in str(step.get('type'))]
    fixed = all(str(s['type']).split('.')[-1] == 'Resize' and s.get('scale') for s in resizing)
    if len(resizing) > 1 or not fixed:
        return None
    known = {c['id'] for c in coco['categories'] if classes is None or c['name'] in classes}
    originals = {image['id']: (image['width'], image['height']) for image in coco['images']}
    objects = [a for a in coco['annotations'] if a['category_id'] in known and not a['iscrowd']]
    resized = {key: _resized(size, resizing) for key, size in originals.items()}
    before = np.array([originals[a['image_id']] for a in objects], float).reshape(-1, 2)
    sizes = np.array([resized[a['image_id']] for a in objects], float).reshape(-1, 2)
    boxes = np.array([a['bbox'] for a in objects], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes = np.clip(boxes * np.tile(sizes / before, 2), 0, np.tile(sizes, 2))
    usable = (boxes[:, 2:] - boxes[:, :2]).min(1, initial=math.inf) > 0
    return boxes[usable], sizes[usable]


def _resized(size: tuple[int, int], resizing: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    if not resizing:
        return size
    scale = resizing[0]['scale']
    if resizing[0].get('keep_ratio'):
        return rescale_size(size, scale if isinstance(scale, int) else tuple(scale))
    return (scale, scale) if isinstance(scale, int) else tuple(scale)
