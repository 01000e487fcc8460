"""Analysis of the detections of one run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.pipeline import ImageReader
from ..evaluation.boxes import Found, Truth, coco_evaluator
from ..evaluation.coco_eval import Figures, coco_figures
from ..evaluation.tide import IGNORED, NAMES, RIGHT, Errors, find_errors, tide_errors


@dataclass
class Analysis:
    """The analysis of the detections of one run.

    Attributes:
        truth: Ground truth.
        found: Detections.
        figures: COCO metrics.
        errors: Type of each error.
        tide: Number and cost of each error type, from hotcoco.
        calibration: Calibration at IoU 0.5 with ten equal bins of the score, from hotcoco.
        working_score: Score threshold for pictures, confusion matrix and F1. The metrics, the
            curves and the costs use all detections.
        confusion: ``(K + 1, K + 1)`` at the working score. Rows are true classes, and columns are
            detected classes. The last row counts detections on the background, and the last column
            counts objects that were not found.
        f1: ``(I,)``, F1 of each image at the working score; 1 if there are neither objects nor
            detections.
        read: Reader of the images.
    """

    truth: Truth
    found: Found
    figures: Figures
    errors: Errors
    tide: Mapping[str, Any]
    calibration: Mapping[str, Any]
    working_score: float
    confusion: np.ndarray
    f1: np.ndarray
    read: ImageReader = field(default_factory=ImageReader)

    @property
    def of_classes(self) -> dict[str, tuple[int, float, float]]:
        """Number of objects, AP and AP50 by name."""
        figures = zip(self.truth.objects, self.figures.ap, self.figures.ap50, strict=True)
        return dict(zip(self.truth.classes, figures, strict=True))

    @property
    def costs(self) -> list[float]:
        """AP50 points lost to each error type, in the order of ``tide.KINDS``."""
        return [100 * self.tide['delta_ap'][name] for name in NAMES]


def analyse_detections(truth: Truth, found: Found, read: ImageReader | None = None) -> Analysis:
    """Evaluate and analyse the detections of a run."""
    evaluator = coco_evaluator(truth, found)
    evaluator.accumulate()
    errors = find_errors(evaluator, truth, found)
    score = working_score(truth, found, errors)
    # detections inside a crowd are neither correct nor wrong
    counted = (found.score >= score) & (errors.kind != IGNORED)
    sure = coco_evaluator(truth, found, detections=counted)
    of_images = sure.image_diagnostics(iou_thr=0.5)['img_summary']
    return Analysis(
        truth=truth,
        found=found,
        figures=coco_figures(evaluator),
        errors=errors,
        tide=tide_errors(truth, found, errors),
        calibration=evaluator.calibration(n_bins=10, iou_threshold=0.5),
        working_score=score,
        confusion=sure.confusion_matrix(iou_thr=0.5)['matrix'].astype(int),
        f1=np.array([of_images.get(i, {'f1': 1.0})['f1'] for i in range(len(truth.images))]),
        read=read or ImageReader(),
    )


def working_score(truth: Truth, found: Found, errors: Errors) -> float:
    """Return the score threshold with the largest F1 over all classes.

    The value is rounded down to hundredths, the step of the slider on the page. It is 0 if no
    detection is correct.
    """
    counted = errors.kind != IGNORED
    score, hit = found.score[counted], errors.kind[counted] == RIGHT
    if not hit.any():
        return 0.0
    f1 = 2 * np.cumsum(hit) / (np.arange(1, len(hit) + 1) + truth.objects.sum())
    last = np.append(score[1:] != score[:-1], True)  # a threshold cannot split equal scores
    best = score[np.argmax(np.where(last, f1, -1))]
    return math.floor(100 * best) / 100
