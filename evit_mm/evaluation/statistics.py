"""COCO's figures, cut by class, size and shape; confusion.

Shapes: K classes, D detections, T = 10 IoU thresholds from 0.5 to 0.95, R = 101 recalls. A figure
that does not exist, for want of an object, is NaN.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .boxes import Found, Matches, Truth, coco_evaluator
from .coco_eval import precision, summarize

if TYPE_CHECKING:
    import hotcoco

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
AREAS = tuple(side**2 for side in SIDES)
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


def evaluate(truth: Truth, found: Found) -> hotcoco.COCOeval:
    """Evaluate as COCO does, and within ranges of the area too."""
    evaluator = coco_evaluator(truth, found)
    _evaluate(evaluator, AREAS)
    return evaluator


def coco_figures(evaluator: hotcoco.COCOeval, truth: Truth, found: Found) -> Figures:
    """Gather the figures of :func:`evaluate`, and those within ranges of width / height."""
    with contextlib.redirect_stdout(io.StringIO()):
        twelve = summarize(evaluator)
    curves = _without_holes(precision(evaluator)[..., -1])  # (T, R, K, areas)
    known = np.isfinite(curves[0, 0, :, 0])
    means = {
        name: _mean(curves[chosen][:, :, known, 0], (0, 2))
        for name, chosen in (('0.50', [0]), ('0.75', [5]), ('0.50 to 0.95', slice(None)))
    }
    # COCO's ranges of the area serve for any number that truth and detections have
    ratio = _ratios(truth.box)
    shapes = coco_evaluator(truth, found, truth_area=ratio, found_area=_ratios(found.box))
    _evaluate(shapes, RATIOS)
    shape_curves = _without_holes(precision(shapes)[..., -1])
    return Figures(
        twelve=tuple(float(x) if x >= 0 else float('nan') for x in twelve),
        ap=_mean(curves[..., 0], (0, 1)),
        ap50=_mean(curves[0, :, :, 0], 0),
        curves=curves[0, :, :, 0].T,
        mean_curves=means,
        by_size=_rows(SIDE_NAMES, curves, truth.area, AREAS, truth),
        by_ratio=_rows(RATIO_NAMES, shape_curves, ratio, RATIOS, truth),
    )


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


def confusion(truth: Truth, found: Found, matches: Matches, score: float) -> np.ndarray:
    """Count which class was taken for which, at IoU 0.5 and from a score on.

    Detections of the right class come first, as COCO matches them; each of the others takes, the
    surest first, the free object that it overlaps most. hotcoco's own table of everything would let
    a sure detection of the wrong class take the object of one of the right class, and take what
    lies in a crowd for wrong.

    Returns:
        ``(K + 1, K + 1)``: rows are what there is, columns what was found; the last row are
        detections of nothing, the last column objects not found.
    """
    sure = found.score >= score
    right = np.flatnonzero(sure & matches.hit)
    free = ~truth.crowd
    free[matches.truth_of[right]] = False
    rest = coco_evaluator(truth, found, free, sure & ~matches.hit & ~matches.ignored)
    table = rest.confusion_matrix(iou_thr=0.5)['matrix'].astype(int)
    np.add.at(table, (found.label[right], found.label[right]), 1)
    return table


def _evaluate(evaluator: hotcoco.COCOeval, limits: Sequence[float]) -> None:
    """Evaluate with the ranges between these areas behind COCO's own four."""
    parameters = evaluator.params
    ranges = [list(pair) for pair in zip(limits, limits[1:], strict=False)]
    labels = [*parameters.area_rng_lbl, *map(str, ranges)]  # each range adds an empty label
    parameters.area_rng = [*parameters.area_rng, *ranges]
    parameters.area_rng_lbl = labels
    evaluator.evaluate()
    evaluator.accumulate()


def _ratios(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2] / np.maximum(boxes[:, 3], 1e-9)


def _rows(
    names: Sequence[str],
    curves: np.ndarray,
    values: np.ndarray,
    limits: Sequence[float],
    truth: Truth,
) -> list[tuple[str, float, int]]:
    """Return AP, and objects, of each range of a quantity."""
    ap = _mean(curves[..., OWN_RANGES:], (0, 1, 2))
    objects = np.histogram(values[~truth.crowd], limits)[0]
    return list(zip(names, ap.tolist(), objects.tolist(), strict=True))


def _without_holes(values: np.ndarray) -> np.ndarray:
    return np.where(np.asarray(values) < 0, np.nan, values)


def _mean(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Mean of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    number = known.sum(axis)
    return np.where(known, values, 0).sum(axis) / np.where(number, number, np.nan)
