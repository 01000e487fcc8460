"""COCO's evaluation: matched by hotcoco, summarised by pycocotools."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

import hotcoco
import numpy as np

# name and meaning, in the order of COCOeval.stats
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


@dataclass(frozen=True)
class Figures:
    """What COCO's evaluation says; NaN where there is no object.

    Attributes:
        twelve: COCO's figures in the order of :data:`FIGURES`.
        ap: ``(K,)`` of each class.
        ap50: ``(K,)`` at IoU 0.5.
        curves: ``(101,)`` mean precision of the classes at rising recall, by IoU.
    """

    twelve: tuple[float, ...]
    ap: np.ndarray
    ap50: np.ndarray
    curves: dict[str, np.ndarray]


def precision(evaluator: hotcoco.COCOeval) -> np.ndarray:
    """Return the precision after ``accumulate()``, ``(T, R, K, A, M)``.

    These are IoU thresholds, recalls, classes, ranges of the area and numbers of detections; -1
    stands where there is no object.
    """
    if evaluator.eval is None:
        raise ValueError('the evaluator has no result; call accumulate() first')
    return evaluator.eval['precision']


def summarize(evaluator: hotcoco.COCOeval) -> np.ndarray:
    """Print COCO's table and return its twelve figures, after ``accumulate()``.

    hotcoco's own summary takes AP at the last of ``max_dets``; pycocotools takes the one that is
    100, and -1 where there is none. This is pycocotools' summary of hotcoco's arrays.
    """
    from pycocotools.cocoeval import COCOeval

    summary = COCOeval(iouType=evaluator.params.iou_type)
    summary.params.maxDets = evaluator.params.max_dets
    summary.params.iouThrs = np.array(evaluator.params.iou_thrs)
    summary.eval = evaluator.eval
    summary.summarize()
    return summary.stats


def coco_figures(evaluator: hotcoco.COCOeval) -> Figures:
    """Gather COCO's figures, and those of each class, after ``accumulate()``."""
    with contextlib.redirect_stdout(io.StringIO()):
        twelve = summarize(evaluator)
    values = precision(evaluator)[..., 0, -1]  # (T, R, K), objects of all areas
    values = np.where(values < 0, np.nan, values)
    present = values[..., np.isfinite(values[0, 0])]
    curves = {}
    if present.size:
        curves['0.50'] = present[0].mean(1)
        curves['0.75'] = present[5].mean(1)
        curves['0.50 to 0.95'] = present.mean((0, 2))
    return Figures(
        twelve=tuple(np.where(twelve < 0, np.nan, twelve).tolist()),
        ap=values.mean((0, 1)),
        ap50=values[0].mean(0),
        curves=curves,
    )
