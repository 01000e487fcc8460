"""Non-maximum suppression and the overlap of boxes.

Shapes: N boxes, M other boxes. Boxes are ``(x1, y1, x2, y2)``, rotated ones
``(x, y, width, height, angle in radians)``, quadrilaterals ``(x1, y1, ..., x4, y4)``. An ``offset``
of 1 counts the last pixel of a box as part of it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .precision import full_precision

NAIVE, LINEAR, GAUSSIAN = range(3)  # soft-NMS methods as mmcv numbers them
ALL_PAIRS = 2048  # boxes up to which soft-NMS of equal scores computes all overlaps at once
CHOSEN = -1.0  # below every minimum, also after many factors
IN_CACHE = 32  # boxes whose overlaps are computed together
SHARED_EDGE = 1e-9  # relative distance up to which two edges of polygons count as one


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes ``(N, 4)`` to keep, the highest score first.

    A box is dropped if its overlap with a kept one is larger than ``iou_threshold``.
    """
    with full_precision(bboxes, scores.reshape(-1)) as (boxes, values):
        if offset:
            boxes = boxes + boxes.new_tensor((0, 0, offset, offset))
        # the order of equal scores is torch's, as in mmcv; torchvision's own sort keeps it
        values, order = values.sort(descending=True)
        # mmcv compares float32 numbers: an overlap of exactly 0.3 is not above a threshold of 0.3
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
    """Lower the scores of boxes that overlap better ones (arXiv 1704.04503), on the CPU.

    Boxes whose score falls below ``min_score`` are dropped. Returns the indices of the others, and
    writes their boxes and new scores into ``dets``: ``(N, 5)``. ``iou_threshold`` is the overlap
    from which the naive and the linear method act, ``sigma`` the width of the Gaussian one.
    """
    with full_precision(boxes, scores.reshape(-1)) as (exact, values):
        factors = _Factors(exact.numpy(), iou_threshold, sigma, method, offset)
        found = None
        # a minimum of 0 keeps boxes whose scores have become 0, all equal
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
    """What a chosen box multiplies the others' scores by."""

    def __init__(
        self, boxes: np.ndarray, iou_threshold: float, sigma: float, method: int, offset: int
    ) -> None:
        self.columns, self.offset = np.ascontiguousarray(boxes.T), offset
        self.threshold, self.sigma, self.method = np.float32(iou_threshold), sigma, method
        self.degenerate = not (boxes[:, :2] < boxes[:, 2:]).all()

    def rows(self) -> np.ndarray:
        """Return the factors that each box has for each: ``(N, N)``."""
        every = np.arange(self.columns.shape[1])
        rows = np.empty((len(every), len(every)), self.columns.dtype)
        for start in range(0, len(every), IN_CACHE):
            some = every[start : start + IN_CACHE]
            rows[some] = self.of(some, every)
        return rows

    def of(self, chosen: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return the factors that chosen boxes, by index, have for others."""
        factors = _overlaps_of(self.columns[:, chosen], self.columns[:, others], self.offset)
        if self.degenerate:
            # two boxes without an area overlap by 0 / 0, with which mmcv makes the scores NaN
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
    """Return the overlaps of boxes ``(4, M)`` with others ``(4, N)``: ``(M, N)``."""
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
    """As :func:`_pick`, for the naive method, whose factors are 0 and 1.

    Not by :func:`nms`, which would sort once more and compare the boxes below the minimum too.
    """
    scores, order = scores.sort(descending=True)
    count = max(1, int((scores >= min_score).sum()))  # mmcv always keeps the best one
    compared = scores[: count + 1]
    if (compared[1:] == compared[:-1]).any():
        return None
    scores, order = scores[:count], order[:count]
    # mmcv drops a box from the threshold on, torchvision above it
    threshold = torch.tensor(np.float32(iou_threshold)).to(boxes)
    threshold = torch.nextafter(threshold, torch.full_like(threshold, -1))
    kept = torch.ops.torchvision.nms(boxes[order], scores, float(threshold))
    return order[kept].numpy(), scores[kept].numpy()


def _pick(
    scores: np.ndarray, factors: _Factors, min_score: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the boxes in the order in which they are chosen, and their scores.

    None if two boxes have the best score: which of them comes first is then decided by mmcv's way
    of moving boxes around.
    """
    order, kept = [], []
    names, left = np.arange(len(scores)), scores
    while len(left):
        # factors of the boxes that probably come next, for those that are left
        some = np.argpartition(left, -min(len(left), IN_CACHE))[-IN_CACHE:]
        rows = dict(zip(some.tolist(), factors.of(names[some], names), strict=True))
        best = int(left.argmax())
        if best not in rows:
            return None  # another one of the same score is
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
    """As :func:`_pick`, with boxes swapped as in mmcv, which takes the first of equal scores."""
    left, count = scores.copy(), len(scores)
    rows = factors.rows() if count <= ALL_PAIRS else None
    every = np.arange(count)
    order = np.arange(count)  # the box at each place
    for place in range(count):
        if place >= count:
            break
        # a score that is not a number is never larger, nor is one larger than it
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
            # the last box that is good enough takes the place of one that is not
            while count > low and left[count - 1] < min_score:
                count -= 1
            if low >= count:
                break
            count -= 1
            left[low], order[low] = left[count], order[count]
    return order[:count], left[:count]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return for each box that is kept its index, then those of the boxes that it suppresses.

    ``dets`` is ``(N, 5)``, boxes and scores, on the CPU. A box is suppressed from the threshold on.
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
    """Group items, best first, with the later ones that are close to them.

    The result calls an item by its name. ``are_close`` takes the places of some and of other items
    and returns ``(some, others)`` bool.
    """
    groups = []
    free = np.arange(len(names))
    while len(free):
        these = names[free]
        firsts = these[:IN_CACHE].tolist()
        close = are_close(free[:IN_CACHE], free)
        has_others = (np.count_nonzero(close, axis=1) > 1).tolist()  # all are close to themselves
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
    """Write the overlaps of boxes into ``ious``: ``(N, M)``, or ``(N,)`` of pairs if ``aligned``.

    Mode 0 divides the intersection by the union, 1 by the area of ``bboxes1``.
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
    """Write the overlaps of rotated boxes into ``ious``; arguments as :func:`bbox_overlaps`."""
    first, second = _corners_of_rotated(bboxes1), _corners_of_rotated(bboxes2)
    ious.copy_(_polygon_overlaps(first, second, aligned, mode_flag).view_as(ious))


def box_iou_quadri(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool
) -> None:
    """Write the overlaps of convex quadrilaterals into ``ious``, as :func:`bbox_overlaps`."""
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
    """Return the indices of the rotated boxes to keep, the highest score first.

    ``dets_sorted`` is ``(N, 5)`` by falling score, as ``order`` says, perhaps with the class in a
    sixth column. A box is dropped from the threshold on. In mmcv's kernels, too, boxes of different
    classes suppress each other.
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
    """As :func:`nms_rotated` for convex quadrilaterals: ``(N, 8)``, perhaps with the class."""
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
    """Return overlaps of convex quadrilaterals, corners ``(N, 4, 2)`` and ``(M, 4, 2)`` float64."""
    first, area1 = _counter_clockwise(first)
    second, area2 = _counter_clockwise(second)
    shape = (len(first),) if aligned else (len(first), len(second))
    rows = torch.arange(len(first), device=first.device)
    cols = torch.arange(len(second), device=first.device)
    if not aligned:
        rows, cols = (grid.flatten() for grid in torch.meshgrid(rows, cols, indexing='ij'))
    # most pairs are apart, as their upright bounds show
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
    """Return quadrilaterals ``(N, 4, 2)`` in one direction of rotation, and their areas."""
    area = _cross(corners, corners.roll(-1, 1)).sum(1) / 2
    return torch.where((area < 0)[:, None, None], corners.flip(1), corners), area.abs()


def _intersection(first: Tensor, second: Tensor) -> Tensor:
    """Return the areas common to pairs of convex quadrilaterals, by Green's theorem.

    The boundary of the common part consists of what each polygon's edges have inside the other
    one. An edge that both share is taken from the first. Corners ``(P, 4, 2)`` counter-clockwise.
    """
    middle = (first.mean(1, keepdim=True) + second.mean(1, keepdim=True)) / 2
    first, second = first - middle, second - middle  # small numbers, little rounding
    width = SHARED_EDGE * first.abs().amax((1, 2)).maximum(second.abs().amax((1, 2)))
    inside = _integral_inside(first, second, -width) + _integral_inside(second, first, width)
    return (inside / 2).clamp_(min=0)


def _integral_inside(edges: Tensor, polygon: Tensor, depth: Tensor) -> Tensor:
    """Integrate x dy - y dx along the part of polygons' edges that lies inside other polygons.

    A point counts that lies at least ``depth (P,)`` inside.
    """
    start, step = edges, edges.roll(-1, 1) - edges
    sides = polygon.roll(-1, 1) - polygon
    sides = sides / sides.norm(dim=2, keepdim=True).clamp_min(1e-300)
    # distance of the edges' starts (dim 1) from the polygon's sides (dim 2), and its change
    distance = _cross(sides[:, None], start[:, :, None] - polygon[:, None]) - depth[:, None, None]
    change = _cross(sides[:, None], step[:, :, None])
    crossing = -distance / torch.where(change == 0, torch.ones_like(change), change)
    parallel_outside = ((change == 0) & (distance < 0)).any(2)
    enter = crossing.masked_fill(change <= 0, 0).amax(2).clamp_(0, 1)
    leave = crossing.masked_fill(change >= 0, 1).amin(2).clamp_(0, 1)
    length = (leave - enter).clamp_(min=0).masked_fill_(parallel_outside, 0)
    # x dy - y dx of a straight piece is its length times the cross product with its direction
    return (_cross(start, step) * length).sum(1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
