"""Non-maximum suppression and the IoU of boxes.

Shapes: boxes N, other boxes M. Boxes are ``(x1, y1, x2, y2)``, rotated boxes are
``(x, y, width, height, angle in radians)``, and quadrilaterals are ``(x1, y1, ..., x4, y4)``. With
``offset`` 1, the last pixel belongs to the box.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .precision import full_precision

NAIVE, LINEAR, GAUSSIAN = range(3)  # mmcv's numbers of the soft-NMS methods
ALL_PAIRS = 2048  # maximum number of boxes for which soft-NMS computes all IoUs at once
CHOSEN = -1.0  # score of a selected box, negative and so below every minimum score
IN_CACHE = 32  # number of boxes for which IoUs are computed at the same time
SHARED_EDGE = 1e-9  # relative distance below which two polygon edges are equal


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes ``(N, 4)`` to keep, by decreasing score.

    A box is dropped if its IoU with a kept box is larger than ``iou_threshold``.
    """
    with full_precision(bboxes, scores.reshape(-1)) as (boxes, values):
        if offset:
            boxes = boxes + boxes.new_tensor((0, 0, offset, offset))
        # torch's sort determines the order of equal scores, as in mmcv. The sort in torchvision is
        # stable and keeps this order.
        values, order = values.sort(descending=True)
        # mmcv compares in float32, where an IoU of 0.3 is not above a threshold of 0.3
        threshold = float(np.float32(iou_threshold))
        return order[torch.ops.torchvision.nms(boxes[order], values, threshold)]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Apply soft-NMS (arXiv 1704.04503) on the CPU, and return the indices of the kept boxes.

    Soft-NMS lowers the score of a box that overlaps a box with a higher score. Boxes with a score
    below ``min_score`` are dropped. The kept boxes and their new scores are written into ``dets``:
    ``(N, 5)``. The naive and the linear method use ``iou_threshold``, and the Gaussian method uses
    ``sigma``.
    """
    with full_precision(boxes, scores.reshape(-1)) as (exact, values):
        factors = _Factors(exact.numpy(), iou_threshold, sigma, method, offset)
        found = None
        # with a minimum score of 0, boxes with the equal score 0 are kept
        simple = min_score > 0 and (method != GAUSSIAN or sigma > 0)
        if simple and exact.isfinite().all() and values.isfinite().all():
            if method == NAIVE and not offset and not factors.degenerate:
                found = _pick_by_nms(exact, values, iou_threshold, min_score)
            else:
                found = _pick(values.numpy(), factors, min_score)
        if found is None:
            found = _pick_in_order_of_mmcv(values.numpy(), factors, min_score)
    order, left = found
    kept = torch.from_numpy(order)
    dets[: len(kept), :4] = boxes[kept]
    dets[: len(kept), 4] = torch.from_numpy(left).to(dets)
    return kept


class _Factors:
    """Factors by which a selected box multiplies the scores of other boxes."""

    def __init__(
        self, boxes: np.ndarray, iou_threshold: float, sigma: float, method: int, offset: int
    ) -> None:
        self.columns, self.offset = np.ascontiguousarray(boxes.T), offset
        self.threshold, self.sigma, self.method = np.float32(iou_threshold), sigma, method
        self.degenerate = not (boxes[:, :2] < boxes[:, 2:]).all()

    def rows(self) -> np.ndarray:
        """Return the factors of all pairs of boxes: ``(N, N)``."""
        every = np.arange(self.columns.shape[1])
        rows = np.empty((len(every), len(every)), self.columns.dtype)
        for start in range(0, len(every), IN_CACHE):
            some = every[start : start + IN_CACHE]
            rows[some] = self.of(some, every)
        return rows

    def of(self, chosen: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return the factors of the boxes ``chosen`` for the boxes ``others``, given by index."""
        factors = _overlaps_of(self.columns[:, chosen], self.columns[:, others], self.offset)
        if self.degenerate:
            # the IoU of two boxes without area is 0 / 0, which makes the scores NaN in mmcv
            np.nan_to_num(factors, copy=False)
        if self.method == GAUSSIAN:
            factors *= factors
            with np.errstate(invalid='ignore', divide='ignore'):
                factors /= -self.sigma
            return np.exp(factors, out=factors)
        if self.method == LINEAR:
            factors *= factors >= self.threshold
        else:
            factors[...] = factors >= self.threshold
        return np.subtract(1, factors, out=factors)


def _overlaps_of(chosen: np.ndarray, others: np.ndarray, offset: int) -> np.ndarray:
    """Return the IoUs of boxes ``(4, M)`` and boxes ``(4, N)``: ``(M, N)``."""
    left, top, right, bottom = chosen[..., None]
    x1, y1, x2, y2 = others
    width, height = np.minimum(right, x2), np.minimum(bottom, y2)
    with np.errstate(invalid='ignore', divide='ignore'):
        width -= np.maximum(left, x1)
        height -= np.maximum(top, y1)
        if offset:
            width += offset
            height += offset
        inter = np.maximum(width, 0, out=width)
        inter *= np.maximum(height, 0, out=height)
        union = (right - left + offset) * (bottom - top + offset)
        union = union + (x2 - x1 + offset) * (y2 - y1 + offset)
        union -= inter
        return np.divide(inter, union, out=inter)


def _pick_by_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, min_score: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the result of :func:`_pick` for the naive method, whose factors are 0 and 1.

    :func:`nms` is not used, because it sorts again and also compares the boxes below the minimum.
    """
    scores, order = scores.sort(descending=True)
    count = max(1, int((scores >= min_score).sum()))  # mmcv always keeps the best box
    compared = scores[: count + 1]
    if (compared[1:] == compared[:-1]).any():
        return None
    scores, order = scores[:count], order[:count]
    # mmcv drops a box if IoU >= threshold, torchvision if IoU > threshold
    threshold = torch.tensor(np.float32(iou_threshold)).to(boxes)
    threshold = torch.nextafter(threshold, torch.full_like(threshold, -1))
    kept = torch.ops.torchvision.nms(boxes[order], scores, float(threshold))
    return order[kept].numpy(), scores[kept].numpy()


def _pick(
    scores: np.ndarray, factors: _Factors, min_score: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the boxes in the order of selection, and their scores.

    The result is None if two boxes have the best score. Then the order depends on how mmcv moves
    boxes, see :func:`_pick_in_order_of_mmcv`.
    """
    order, kept = [], []
    names, left = np.arange(len(scores)), scores
    while len(left):
        # factors of the boxes that are probably selected next, for the remaining boxes
        some = np.argpartition(left, -min(len(left), IN_CACHE))[-IN_CACHE:]
        rows = dict(zip(some.tolist(), factors.of(names[some], names), strict=True))
        best = int(left.argmax())
        if best not in rows:
            return None  # another box has the same score
        while best in rows:
            score = left[best]
            if order and score < min_score:
                break
            later = left[best + 1 :]
            if len(later) and later[later.argmax()] == score:
                return None
            order.append(names[best])
            kept.append(score)
            left = left * rows[best]
            left[best] = CHOSEN
            best = int(left.argmax())
        good = left >= min_score
        names, left = names[good], left[good]
    return np.array(order, np.int64), np.array(kept, scores.dtype)


def _pick_in_order_of_mmcv(
    scores: np.ndarray, factors: _Factors, min_score: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the result of :func:`_pick` for any scores, with boxes swapped as in mmcv."""
    left, count = scores.copy(), len(scores)
    rows = factors.rows() if count <= ALL_PAIRS else None
    every = np.arange(count)
    order = np.arange(count)  # the box at each position
    for place in range(count):
        if place >= count:
            break
        # comparisons with NaN are false, so NaN scores are neither replaced nor selected
        best = place
        if not np.isnan(left[place]):
            best += int(np.nanargmax(left[place:count]))
        order[[place, best]] = order[[best, place]]
        left[[place, best]] = left[[best, place]]
        rest = left[place + 1 : count]
        chosen = order[place]
        row = factors.of(chosen[None], every)[0] if rows is None else rows[chosen]
        rest *= row[order[place + 1 : count]]
        for low in place + 1 + np.flatnonzero(rest < min_score):
            # the last box with a sufficient score replaces a dropped box
            while count > low and left[count - 1] < min_score:
                count -= 1
            if low >= count:
                break
            count -= 1
            left[low], order[low] = left[count], order[count]
    return order[:count], left[:count]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return one list per kept box: its index and the indices of the boxes that it suppresses.

    ``dets`` contains boxes and scores, ``(N, 5)``, on the CPU. A box is suppressed if its IoU is at
    least ``iou_threshold``.
    """
    with full_precision(dets) as (exact,):
        order = exact[:, 4].argsort(descending=True)
        columns, threshold = np.ascontiguousarray(exact[order, :4].T), np.float32(iou_threshold)

    def are_close(some: np.ndarray, others: np.ndarray) -> np.ndarray:
        return _overlaps_of(columns[:, some], columns[:, others], 0) >= threshold

    return _greedy(order.numpy(), are_close)


def _greedy(
    names: np.ndarray, are_close: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> list[list[int]]:
    """Group each item with the later items that are close to it. The items are sorted, best first.

    The result contains the names of the items. ``are_close`` receives the positions of some items
    and of other items, and returns a bool array ``(some, others)``.
    """
    groups = []
    free = np.arange(len(names))
    while len(free):
        these = names[free]
        firsts = these[:IN_CACHE].tolist()
        close = are_close(free[:IN_CACHE], free)
        has_others = (np.count_nonzero(close, axis=1) > 1).tolist()  # every item is close to itself
        alone = np.ones(len(free), bool)
        for place, first in enumerate(firsts):
            if alone[place]:
                alone[place] = False
                group = [first]
                if has_others[place]:
                    taken = np.flatnonzero(close[place] & alone)
                    alone[taken] = False
                    group += these[taken].tolist()
                groups.append(group)
        free = free[alone]
    return groups


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Write the IoUs of boxes into ``ious``: ``(N, M)``, or ``(N,)`` for pairs if ``aligned``.

    Mode 0 divides the intersection by the union. Mode 1 divides it by the area of ``bboxes1``.
    """
    with full_precision(bboxes1, bboxes2) as (first, second):
        if not aligned:
            first = first[:, None]
        ax1, ay1, ax2, ay2 = first.unbind(-1)
        bx1, by1, bx2, by2 = second.unbind(-1)
        area = (ax2 - ax1 + offset) * (ay2 - ay1 + offset)
        inter = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).add_(offset).clamp_(min=0)
        inter *= torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).add_(offset).clamp_(min=0)
        if mode == 0:
            area = (area + (bx2 - bx1 + offset) * (by2 - by1 + offset)).sub_(inter)
        ious.copy_(inter.div_(area))


def box_iou_rotated(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool
) -> None:
    """Write the IoUs of rotated boxes into ``ious``. See :func:`bbox_overlaps`."""
    first, second = _corners_of_rotated(bboxes1), _corners_of_rotated(bboxes2)
    ious.copy_(_polygon_overlaps(first, second, aligned, mode_flag).view_as(ious))


def box_iou_quadri(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool
) -> None:
    """Write the IoUs of convex quadrilaterals into ``ious``. See :func:`bbox_overlaps`."""
    first, second = _corners_of_quadri(bboxes1), _corners_of_quadri(bboxes2)
    ious.copy_(_polygon_overlaps(first, second, aligned, mode_flag).view_as(ious))


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """Return the indices of the rotated boxes to keep, by decreasing score.

    ``dets_sorted`` is ``(N, 5)``, sorted by decreasing score as in ``order``. A sixth column with
    the class is ignored. A box is dropped if its IoU with a kept box is at least ``iou_threshold``.
    As in mmcv's kernels, boxes of different classes suppress each other.
    """
    return _suppress(_corners_of_rotated(dets_sorted[:, :5]), order, iou_threshold)


def nms_quadri(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """Return the indices of the convex quadrilaterals to keep. See :func:`nms_rotated`.

    ``dets_sorted`` is ``(N, 8)``. A ninth column with the class is ignored.
    """
    return _suppress(_corners_of_quadri(dets_sorted[:, :8]), order, iou_threshold)


def _suppress(corners: Tensor, order: Tensor, iou_threshold: float) -> Tensor:
    def are_close(some: np.ndarray, others: np.ndarray) -> np.ndarray:
        overlaps = _polygon_overlaps(corners[some], corners[others], False, 0).float()
        return (overlaps >= float(np.float32(iou_threshold))).cpu().numpy()

    return order[[group[0] for group in _greedy(np.arange(len(corners)), are_close)]]


def _corners_of_quadri(boxes: Tensor) -> Tensor:
    """Return the corners of quadrilaterals: ``(N, 8) -> (N, 4, 2)`` float64."""
    return boxes.double().unflatten(1, (4, 2))


def _corners_of_rotated(boxes: Tensor) -> Tensor:
    """Return the corners of rotated boxes: ``(N, 5) -> (N, 4, 2)`` float64."""
    x, y, width, height, angle = boxes.double().unbind(1)
    cos, sin = angle.cos() / 2, angle.sin() / 2
    along = torch.stack((cos * width, sin * width), 1)
    across = torch.stack((-sin * height, cos * height), 1)
    centre = torch.stack((x, y), 1)
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return torch.stack([centre + a * along + b * across for a, b in signs], 1)


def _polygon_overlaps(first: Tensor, second: Tensor, aligned: bool, mode: int) -> Tensor:
    """Return the IoUs of convex quadrilaterals with corners ``(N, 4, 2)`` and ``(M, 4, 2)``."""
    first, area1 = _counter_clockwise(first)
    second, area2 = _counter_clockwise(second)
    shape = (len(first),) if aligned else (len(first), len(second))
    rows = torch.arange(len(first), device=first.device)
    cols = torch.arange(len(second), device=first.device)
    if not aligned:
        rows, cols = (grid.flatten() for grid in torch.meshgrid(rows, cols, indexing='ij'))
    # most pairs do not intersect, which their axis-aligned bounds show
    low = torch.maximum(first.amin(1)[rows], second.amin(1)[cols])
    high = torch.minimum(first.amax(1)[rows], second.amax(1)[cols])
    near = (high > low).all(1) & (area1[rows] >= 1e-14) & (area2[cols] >= 1e-14)
    pairs = near.nonzero()[:, 0]
    rows, cols = rows[pairs], cols[pairs]
    inter = _intersection(first[rows], second[cols])
    base = area1[rows] + (area2[cols] - inter if mode == 0 else 0)
    overlaps = first.new_zeros(near.shape)
    overlaps[pairs] = inter / base
    return overlaps.view(shape)


def _counter_clockwise(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Return quadrilaterals ``(N, 4, 2)`` in counter-clockwise order, and their areas."""
    area = _cross(corners, corners.roll(-1, 1)).sum(1) / 2
    return torch.where((area < 0)[:, None, None], corners.flip(1), corners), area.abs()


def _intersection(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection areas of pairs of convex quadrilaterals, with Green's theorem.

    The corners are ``(P, 4, 2)`` in counter-clockwise order. The boundary of the intersection
    consists of the parts of each polygon's edges that are inside the other polygon. A shared edge
    counts only for the first polygon.
    """
    middle = (first.mean(1, keepdim=True) + second.mean(1, keepdim=True)) / 2
    first, second = first - middle, second - middle  # small coordinates reduce rounding errors
    width = SHARED_EDGE * first.abs().amax((1, 2)).maximum(second.abs().amax((1, 2)))
    inside = _integral_inside(first, second, -width) + _integral_inside(second, first, width)
    return (inside / 2).clamp_(min=0)


def _integral_inside(edges: Tensor, polygon: Tensor, depth: Tensor) -> Tensor:
    """Integrate x dy - y dx along the parts of ``edges`` that are inside ``polygon``.

    A point is inside if its distance from every side is at least ``depth (P,)``.
    """
    start, step = edges, edges.roll(-1, 1) - edges
    sides = polygon.roll(-1, 1) - polygon
    sides = sides / sides.norm(dim=2, keepdim=True).clamp_min(1e-300)
    # distance of the edge starts (dim 1) from the polygon sides (dim 2), and its change per edge
    distance = _cross(sides[:, None], start[:, :, None] - polygon[:, None]) - depth[:, None, None]
    change = _cross(sides[:, None], step[:, :, None])
    crossing = -distance / torch.where(change == 0, torch.ones_like(change), change)
    parallel_outside = ((change == 0) & (distance < 0)).any(2)
    enter = crossing.masked_fill(change <= 0, 0).amax(2).clamp_(0, 1)
    leave = crossing.masked_fill(change >= 0, 1).amin(2).clamp_(0, 1)
    length = (leave - enter).clamp_(min=0).masked_fill_(parallel_outside, 0)
    # for a straight line, x dy - y dx is the cross product of start and step times the length
    return (_cross(start, step) * length).sum(1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
