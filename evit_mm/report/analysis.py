"""Everything the page says of one run's detections."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.boxes import Found, Truth, coco_evaluator
from ..evaluation.coco_eval import Figures, coco_figures
from ..evaluation.tide import IGNORED, NAMES, RIGHT, Errors, find_errors, tide_errors


@dataclass
class Analysis:
    """What there is to say of a run's detections.

    Attributes:
        truth: What there is.
        found: What was found.
        figures: COCO's figures.
        errors: The kind of each error.
        tide: hotcoco's counts and costs of the kinds.
        calibration: hotcoco's, of ten equally wide bins of the score, at IoU 0.5.
        working_score: Score from which detections count where they are shown or counted one by
            one; the figures, the curves and the costs take all of them.
        confusion: ``(K + 1, K + 1)`` from the working score on: rows are what there is, columns
            what was found; the last row are detections of nothing, the last column objects not
            found.
        f1: ``(I,)`` of each image from the working score on; 1 where there is nothing to find and
            nothing found.
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

    @property
    def of_classes(self) -> dict[str, tuple[int, float, float]]:
        """Number of objects, AP and AP50 by name."""
        figures = zip(self.truth.objects, self.figures.ap, self.figures.ap50, strict=True)
        return dict(zip(self.truth.classes, figures, strict=True))

    @property
    def costs(self) -> list[float]:
        """Points of AP50 that each kind of error costs, in the order of ``tide.KINDS``."""
        return [100 * self.tide['delta_ap'][name] for name in NAMES]


def analyse_detections(truth: Truth, found: Found) -> Analysis:
    """Evaluate and analyse what a detector found."""
    evaluator = coco_evaluator(truth, found)
    evaluator.accumulate()
    errors = find_errors(evaluator, truth, found)
    score = working_score(truth, found, errors)
    # what lies in a crowd is neither right nor wrong
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
    )


def working_score(truth: Truth, found: Found, errors: Errors) -> float:
    """Return the score from which detections, taken together, have the largest F1; 0 for none.

    It is cut to whole hundredths, as the page's slider has them.
    """
    counted = errors.kind != IGNORED
    score, hit = found.score[counted], errors.kind[counted] == RIGHT
    if not hit.any():
        return 0.0
    f1 = 2 * np.cumsum(hit) / (np.arange(1, len(hit) + 1) + truth.objects.sum())
    last = np.append(score[1:] != score[:-1], True)  # equal scores are taken together
    best = score[np.argmax(np.where(last, f1, -1))]
    return math.floor(100 * best) / 100
