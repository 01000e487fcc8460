"""Everything the page says of one run's detections, and what differs between two runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
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

    name: Any
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
    names = [name for name, _ in FIGURES]
    return list(map(Change, names, before.figures.twelve, after.figures.twelve))


def cost_changes(before: Analysis, after: Analysis) -> list[Change]:
    """Return what each kind of error costs in two runs, in points of AP50."""
    costs = (100 * np.array(run.errors.cost) for run in (before, after))
    return list(map(Change, KINDS, *costs))


def class_changes(before: Analysis, after: Analysis) -> list[Change]:
    """Return the AP of the classes that both have."""
    old, new = (dict(zip(a.truth.classes, a.figures.ap, strict=True)) for a in (before, after))
    return [Change(name, old[name], new[name]) for name in old if name in new]


def image_changes(before: Analysis, after: Analysis) -> list[Change]:
    """Return what the mistakes in each image cost, by its place, in runs on the same images."""
    return list(map(Change, count(), before.image_cost, after.image_cost))


def both_ends(changes: Sequence[Change], most: int) -> tuple[list[Change], list[Change]]:
    """Return the changes that lost something and those that gained, the largest first."""
    lost = [change for change in changes if change.difference < 0]
    gained = [change for change in changes if change.difference > 0]
    return (
        sorted(lost, key=lambda change: change.difference)[:most],
        sorted(gained, key=lambda change: -change.difference)[:most],
    )
