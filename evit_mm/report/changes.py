"""Differences between two runs."""

from __future__ import annotations

import difflib
from typing import NamedTuple

import numpy as np

from ..evaluation.coco_eval import FIGURES
from ..evaluation.tide import KINDS
from .analysis import Analysis
from .pictures import Card, find_mistakes, make_card
from .runs import Run

MAX_IMAGES = 6  # number of improved images, and of worse images


class Change(NamedTuple):
    """One metric in two runs."""

    name: str
    before: float
    after: float

    @property
    def difference(self) -> float:
        """Difference of the two values; NaN if one is unknown."""
        return float(self.after) - float(self.before)


def config_diff(before: Run, after: Run) -> str:
    """Return the unified diff of the configs."""
    old, new = before.config_text.splitlines(), after.config_text.splitlines()
    return '\n'.join(difflib.unified_diff(old, new, before.name, after.name, lineterm=''))


def figure_changes(before: Analysis, after: Analysis) -> list[Change]:
    """Return the COCO metrics of two runs."""
    names = [name for name, _ in FIGURES]
    return list(map(Change, names, before.figures.twelve, after.figures.twelve))


def cost_changes(before: Analysis, after: Analysis) -> list[Change]:
    """Return the cost of each error type in two runs."""
    return list(map(Change, KINDS, before.costs, after.costs))


def class_changes(before: Analysis, after: Analysis) -> list[Change]:
    """Return the AP of the common classes of two runs, the largest loss first."""
    old, new = before.of_classes, after.of_classes
    changes = [Change(name, old[name][1], new[name][1]) for name in old if name in new]
    return sorted(changes, key=lambda change: np.nan_to_num(change.difference))


def image_changes(
    before: Analysis, after: Analysis
) -> tuple[list[tuple[Card, Card]], list[tuple[Card, Card]]]:
    """Return the images with the largest loss and the largest gain of F1, before and after."""
    if before.truth.images != after.truth.images:
        return [], []
    difference = after.f1 - before.f1
    order = np.argsort(difference, kind='stable').tolist()
    worse = [image for image in order[:MAX_IMAGES] if difference[image] < 0]
    better = [image for image in order[: -MAX_IMAGES - 1 : -1] if difference[image] > 0]
    both = [(analysis, find_mistakes(analysis)) for analysis in (before, after)]

    def pair(image: int) -> tuple[Card, Card]:
        first, second = (make_card(image, *entry) for entry in both)
        return first, second

    return list(map(pair, worse)), list(map(pair, better))
