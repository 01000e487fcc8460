"""COCO's evaluation, with matching by hotcoco and a summary by pycocotools."""

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
    """The metrics of COCO's evaluation. A metric is NaN if there is no object for it.

    Attributes:
        twelve: COCO's twelve metrics in the order of :data:`FIGURES`.
        ap: ``(K,)`` AP of each class.
        ap50: ``(K,)`` AP of each class at IoU 0.5.
        curves: For each IoU range, ``(101,)`` precision over ascending recall, averaged over the
            classes.
    """

    twelve: tuple[float, ...]
    ap: np.ndarray
    ap50: np.ndarray
    curves: dict[str, np.ndarray]


def precision(evaluator: hotcoco.COCOeval) -> np.ndarray:
    """Return the precision ``(T, R, K, A, M)`` of an evaluator after ``accumulate()``.

    The dimensions are IoU thresholds, recall thresholds, classes, area ranges and maximum numbers
    of detections. The value is -1 where there is no object.
    """
    if evaluator.eval is None:
        raise ValueError('the evaluator has no result; call accumulate() first')
    return evaluator.eval['precision']


def summarize(evaluator: hotcoco.COCOeval) -> np.ndarray:
    """Print COCO's table and return its twelve metrics. Call ``accumulate()`` first.

    This function runs the summary of pycocotools on the arrays of hotcoco, because the two
    summaries differ. pycocotools computes AP with 100 detections per image, or returns -1 if 100 is
    not in ``max_dets``. hotcoco uses the last entry of ``max_dets``.
    """
    from pycocotools.cocoeval import COCOeval

    summary = COCOeval(iouType=evaluator.params.iou_type)
    summary.params.maxDets = evaluator.params.max_dets
    summary.params.iouThrs = np.array(evaluator.params.iou_thrs)
    summary.eval = evaluator.eval
    summary.summarize()
    return summary.stats


def coco_figures(evaluator: hotcoco.COCOeval) -> Figures:
    """Return COCO's metrics over all classes and per class. Call ``accumulate()`` first."""
    with contextlib.redirect_stdout(io.StringIO()):
        twelve = summarize(evaluator)
    values = precision(evaluator)[..., 0, -1]  # (T, R, K), all areas
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
