"""COCO's figures, cut by class, size and shape; confusion; calibration.

Shapes: K classes, D detections, T = 10 IoU thresholds from 0.5 to 0.95, R = 101 recalls. A figure
that does not exist, for want of an object, is NaN.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .boxes import Found, Matches, Pairs, Truth, assign

# name, and what it is called for people, in the order of COCOeval.stats
FIGURES = (
    ('AP', 'IoU 0.50 to 0.95'),
    ('AP50', 'IoU 0.50'),
    ('AP75', 'IoU 0.75'),
    ('AP small', 'area below 32² px'),
    ('AP medium', 'area 32² to 96² px'),
    ('AP large', 'area above 96² px'),
    ('AR 1', '1 detection an image'),
    ('AR 10', '10 detections an image'),
    ('AR 100', '100 detections an image'),
    ('AR small', 'area below 32² px'),
    ('AR medium', 'area 32² to 96² px'),
    ('AR large', 'area above 96² px'),
)
SIDES = (0, 16, 32, 64, 96, 192, 1e5)  # square roots of areas
SIDE_NAMES = ('below 16²', '16² to 32²', '32² to 64²', '64² to 96²', '96² to 192²', 'above 192²')
RATIOS = (0, 1 / 3, 2 / 3, 3 / 2, 3, 1e9)  # width / height
RATIO_NAMES = (
    'taller than 3:1',
    'tall, 3:1 to 3:2',
    'about square',
    'wide, 3:2 to 3:1',
    'wider than 3:1',
)
OWN_RANGES = 4  # COCO's: all, small, medium, large
CALIBRATION_BINS = 10


@dataclass(frozen=True)
class Figures:
    """What COCO's evaluation says.

    Attributes:
        twelve: COCO's figures in the order of :data:`FIGURES`.
        ap: ``(K,)`` of each class.
        ap50: ``(K,)`` at IoU 0.5.
        curves: ``(K, R)`` precision at IoU 0.5.
        mean_curves: ``(R,)`` mean precision over the classes, at IoU 0.5, at 0.75 and over all.
        by_size: AP, and objects, by range of the area.
        by_ratio: The same by range of width / height.
    """

    twelve: tuple[float, ...]
    ap: np.ndarray
    ap50: np.ndarray
    curves: np.ndarray
    mean_curves: dict[str, np.ndarray]
    by_size: list[tuple[str, float, int]]
    by_ratio: list[tuple[str, float, int]]


@dataclass(frozen=True)
class Calibration:
    """How often detections of a score are right, at IoU 0.5.

    Attributes:
        count: Detections in each of ten equally wide bins of the score.
        score: Their mean score, NaN where there is none.
        right: The share of them that is right.
        error: Expected calibration error: the mean gap between the two, weighted by the count; NaN
            without detections.
    """

    count: np.ndarray
    score: np.ndarray
    right: np.ndarray
    error: float


def coco_figures(truth: Truth, found: Found) -> Figures:
    """Evaluate as COCO does, by pycocotools or, where it is installed, faster-coco-eval."""
    areas = [side**2 for side in SIDES]
    ratio, found_ratio = _ratios(truth.box), _ratios(found.box)
    by_area = _evaluate(truth, found, truth.area, found.box[:, 2:].prod(1), areas)
    # COCO's ranges of the area serve for any number that truth and detections have
    by_ratio = _evaluate(truth, found, ratio, found_ratio, RATIOS)

    precision = _without_holes(by_area.eval['precision'][..., -1])  # (T, R, K, areas)
    ap = _mean(precision[..., 0], (0, 1))
    known = np.isfinite(precision[0, 0, :, 0])
    means = {
        name: _mean(precision[chosen][:, :, known, 0], (0, 2))
        for name, chosen in (('0.50', [0]), ('0.75', [5]), ('0.50 to 0.95', slice(None)))
    }
    counted = ~truth.crowd
    sizes = _mean(precision[..., OWN_RANGES:], (0, 1, 2))
    shapes = _without_holes(by_ratio.eval['precision'][..., OWN_RANGES:, -1])
    objects = np.histogram(truth.area[counted], areas)[0], np.histogram(ratio[counted], RATIOS)[0]
    return Figures(
        twelve=tuple(float(x) if x >= 0 else float('nan') for x in by_area.stats),
        ap=ap,
        ap50=_mean(precision[0, :, :, 0], 0),
        curves=precision[0, :, :, 0].T,
        mean_curves=means,
        by_size=_rows(SIDE_NAMES, sizes, objects[0]),
        by_ratio=_rows(RATIO_NAMES, _mean(shapes, (0, 1, 2)), objects[1]),
    )


def calibration(found: Found, matches: Matches) -> Calibration:
    """Compare scores with the share of right detections; those in crowds are not counted."""
    counted = ~matches.ignored
    score, hit = found.score[counted], matches.hit[counted]
    place = np.clip((score * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)
    count = np.bincount(place, minlength=CALIBRATION_BINS)
    total = np.where(count, count, np.nan)
    mean_score = np.bincount(place, score, CALIBRATION_BINS) / total
    right = np.bincount(place, hit, CALIBRATION_BINS) / total
    gap = np.nansum(np.abs(mean_score - right) * count)
    return Calibration(count, mean_score, right, gap / len(score) if len(score) else float('nan'))


def working_score(found: Found, matches: Matches, truth: Truth) -> float:
    """Return the score from which detections, taken together, have the largest F1; 0 for none."""
    counted = ~matches.ignored
    score, hit = found.score[counted], matches.hit[counted]
    if not hit.any():
        return 0.0
    right = np.cumsum(hit)
    f1 = 2 * right / (np.arange(1, len(hit) + 1) + truth.objects.sum())
    last = np.append(score[1:] != score[:-1], True)  # equal scores are taken together
    return float(score[np.argmax(np.where(last, f1, -1))])


def confusion(
    truth: Truth, found: Found, pairs: Pairs, matches: Matches, score: float
) -> np.ndarray:
    """Count which class was taken for which, at IoU 0.5 and from a score on.

    Detections of the right class come first, as in :func:`~evit_mm.evaluation.boxes.match`; each of
    the others takes, the surest first, the free object that it overlaps most.

    Returns:
        ``(K + 1, K + 1)``: rows are what there is, columns what was found; the last row are
        detections of nothing, the last column objects not found.
    """
    nothing = len(truth.classes)
    sure = found.score >= score
    right = np.flatnonzero(sure & matches.hit)
    free = ~truth.crowd
    free[matches.truth_of[right]] = False
    left = sure & ~matches.hit & ~matches.ignored
    allowed = left[pairs.found] & free[pairs.truth] & (pairs.iou >= 0.5)
    wrong_of = assign(pairs, allowed, len(found.image), len(truth.image))
    wrong = np.flatnonzero(wrong_of >= 0)
    free[wrong_of[wrong]] = False
    false = np.flatnonzero(left & (wrong_of < 0))
    unfound = np.flatnonzero(free)

    table = np.zeros((nothing + 1, nothing + 1), int)
    np.add.at(table, (found.label[right], found.label[right]), 1)
    np.add.at(table, (truth.label[wrong_of[wrong]], found.label[wrong]), 1)
    np.add.at(table[nothing], found.label[false], 1)
    np.add.at(table[:, nothing], truth.label[unfound], 1)
    return table


def _evaluate(
    truth: Truth,
    found: Found,
    truth_area: np.ndarray,
    found_area: np.ndarray,
    limits: Sequence[float],
) -> Any:
    """Run COCO's evaluation with the ranges between these areas behind its own four."""
    from pycocotools.coco import COCO

    evaluator_type = _evaluator()
    gt, dt = COCO(), COCO()
    images = [{'id': i} for i in range(len(truth.image_ids))]
    categories = [{'id': i} for i in range(len(truth.classes))]
    crowd = truth.crowd.astype(int)
    columns = [truth.image, truth.label, truth.box, truth_area, crowd]
    gt.dataset = {'images': images, 'categories': categories, 'annotations': _entries(*columns)}
    zeros = np.zeros(len(found.image), int)
    columns = [found.image, found.label, found.box, found_area, zeros]
    entries = _entries(*columns)
    for entry, score in zip(entries, found.score.tolist(), strict=True):
        entry['score'] = score
    dt.dataset = {'images': images, 'categories': categories, 'annotations': entries}
    with contextlib.redirect_stdout(io.StringIO()):
        for api in (gt, dt):
            api.createIndex()
        evaluator = evaluator_type(gt, dt, 'bbox')
        parameters = evaluator.params
        ranges = [list(pair) for pair in zip(limits, limits[1:], strict=False)]
        parameters.areaRng = [*parameters.areaRng, *ranges]
        parameters.areaRngLbl = [*parameters.areaRngLbl, *map(str, ranges)]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _evaluator() -> type:
    from pycocotools.cocoeval import COCOeval

    from ..errors import ConfigError

    try:
        from .coco_metric import fast_evaluator

        return fast_evaluator()
    except ConfigError:
        return COCOeval


def _entries(
    image: np.ndarray, label: np.ndarray, box: np.ndarray, area: np.ndarray, crowd: np.ndarray
) -> list[dict[str, Any]]:
    rows = zip(*(column.tolist() for column in (image, label, box, area, crowd)), strict=True)
    names = ('image_id', 'category_id', 'bbox', 'area', 'iscrowd')
    return [{'id': i, **dict(zip(names, row, strict=True))} for i, row in enumerate(rows, 1)]


def _ratios(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2] / np.maximum(boxes[:, 3], 1e-9)


def _without_holes(values: np.ndarray) -> np.ndarray:
    return np.where(np.asarray(values) < 0, np.nan, values)


def _mean(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Mean of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    number = known.sum(axis)
    return np.where(known, values, 0).sum(axis) / np.where(number, number, np.nan)


def _rows(
    names: Sequence[str], values: np.ndarray, numbers: np.ndarray
) -> list[tuple[str, float, int]]:
    return list(zip(names, values.tolist(), numbers.tolist(), strict=True))


def rounded(values: Any, digits: int = 4) -> list[float | None]:
    """Return numbers for JSON: rounded, None for what is not finite."""
    array = np.array(values, float)  # of None it makes NaN
    return [round(x, digits) if np.isfinite(x) else None for x in array.tolist()]
