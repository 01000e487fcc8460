"""Everything the page says of one run's detections, and what differs between two runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.boxes import Found, Matches, Truth, find_matches
from ..evaluation.statistics import (
    FIGURES,
    Figures,
    coco_figures,
    confusion,
    evaluate,
    working_score,
)
from ..evaluation.tide import KINDS, Errors, analyse, cost_of_images

SHOWN_EACH_WAY = 12  # classes, and half as many images, that became better, and worse


@dataclass
class Analysis:
    """What there is to say of a run's detections; see the functions that make each part.

    Attributes:
        working_score: Score from which detections count where they are shown or counted one by
            one; the AP, the curves and the costs take all of them.
        calibration: What hotcoco tells of ten equally wide bins of the score, at IoU 0.5.
        image_cost: ``(I,)`` AP at IoU 0.5 that the mistakes in each image cost.
    """

    truth: Truth
    found: Found
    matches: Matches
    errors: Errors
    figures: Figures
    calibration: Mapping[str, Any]
    working_score: float
    confusion: np.ndarray
    image_cost: np.ndarray


@dataclass
class Change:
    """One thing in two runs: its name, what it was and what it became."""

    name: str
    before: Any
    after: Any

    @property
    def difference(self) -> float:
        """What was gained, NaN where one is not known."""
        return float(self.after) - float(self.before)


def analyse_detections(truth: Truth, found: Found) -> Analysis:
    """Evaluate and analyse what a detector found."""
    evaluator = evaluate(truth, found)
    matches = find_matches(evaluator, truth, found)
    errors = analyse(truth, found, matches)
    # in whole hundredths, as the page's slider has them
    score = math.floor(100 * working_score(found, matches, truth)) / 100
    return Analysis(
        truth=truth,
        found=found,
        matches=matches,
        errors=errors,
        figures=coco_figures(evaluator, truth, found),
        calibration=evaluator.calibration(n_bins=10, iou_threshold=0.5),
        working_score=score,
        confusion=confusion(truth, found, matches, score),
        image_cost=cost_of_images(truth, found, errors, matches),
    )


def config_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Return the entries of two flattened configs that differ; None for one that is absent."""
    names = dict.fromkeys([*before, *after])
    changes = [Change(name, before.get(name), after.get(name)) for name in names]
    return [c for c in changes if c.name != 'work_dir' and c.before != c.after]


def figure_changes(before: Analysis, after: Analysis) -> list[Change]:
    """Return COCO's figures in two runs."""
    values = zip(FIGURES, before.figures.twelve, after.figures.twelve, strict=True)
    return [Change(name, old, new) for (name, _), old, new in values]


def cost_changes(before: Analysis, after: Analysis) -> list[Change]:
    """Return what each kind of error costs in two runs, in points of AP50."""
    values = zip(KINDS, before.errors.cost, after.errors.cost, strict=True)
    return [Change(kind, 100 * old, 100 * new) for kind, old, new in values]


def class_changes(before: Analysis, after: Analysis) -> list[Change]:
    """Return the AP of the classes that both have, those that lost most first."""
    old = dict(zip(before.truth.classes, before.figures.ap.tolist(), strict=True))
    new = dict(zip(after.truth.classes, after.figures.ap.tolist(), strict=True))
    changes = [Change(name, old[name], new[name]) for name in old if name in new]
    return sorted(
        (c for c in changes if math.isfinite(c.difference)), key=lambda change: change.difference
    )


def image_changes(before: Analysis, after: Analysis) -> tuple[list[int], list[int]]:
    """Return the images whose mistakes cost more than before, and those where they cost less.

    Those that changed most come first. Both runs must have been evaluated on the same images.
    """
    change = after.image_cost - before.image_cost
    order = np.argsort(-change, kind='stable')
    worse = [i for i in order.tolist() if change[i] > 0]
    better = [i for i in order[::-1].tolist() if change[i] < 0]
    return worse[: SHOWN_EACH_WAY // 2], better[: SHOWN_EACH_WAY // 2]


def both_ends(changes: Sequence[Change]) -> tuple[list[Change], list[Change]]:
    """Return the changes for the worse and for the better, the largest first, so many of each."""
    worse = [change for change in changes if change.difference < 0]
    better = [change for change in reversed(changes) if change.difference > 0]
    return worse[:SHOWN_EACH_WAY], better[:SHOWN_EACH_WAY]
