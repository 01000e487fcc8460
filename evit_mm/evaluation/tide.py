"""Classify the errors of a detector with TIDE (Bolya et al., arXiv 2008.08115).

Each false detection has one kind, which depends on the objects of its image:

- localisation: the class is right, but the best IoU with an object of this class is 0.1 to 0.5.
- classification: the IoU with an object of another class is at least 0.5.
- duplicate: a detection with a higher score has already found the object.
- background: the IoU with every object is at most 0.1.
- both: all other cases, with a wrong class and a wrong position.

An object without a matching detection is missed, unless a localisation or classification error
refers to it. The paper does not define the order of the tests, so this module uses the order of
the authors' tidecv.

hotcoco computes the number and the cost of the errors of each kind, but not the kind of each
detection. This module computes the kind.

Shapes: G ground-truth objects, D detections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np

from .boxes import Found, Truth, coco_evaluator

FOREGROUND, BACKGROUND = 0.5, 0.1
KINDS = ('classification', 'localisation', 'both', 'duplicate', 'background', 'missed')
NAMES = ('Cls', 'Loc', 'Both', 'Dupe', 'Bkg', 'Miss')  # hotcoco's names, in the order of KINDS
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, FALSE_ALARM, MISSED = range(6)
RIGHT, IGNORED = -1, -2


@dataclass(frozen=True)
class Errors:
    """The kind of each detection at IoU 0.5.

    Attributes:
        kind: ``(D,)`` index in :data:`KINDS`, or RIGHT, or IGNORED for a detection in a crowd.
        about: ``(D,)`` index of the object of a classification, localisation or duplicate error,
            or -1.
        found_of: ``(G,)`` index of the detection that matches the object, or -1.
    """

    kind: np.ndarray
    about: np.ndarray
    found_of: np.ndarray


def find_errors(evaluator: hotcoco.COCOeval, truth: Truth, found: Found) -> Errors:
    """Return the kind of each detection. The evaluator must have evaluated all boxes."""
    told = evaluator.image_diagnostics(iou_thr=FOREGROUND)
    found_of = np.full(len(truth.image), -1)
    for thing, detection in told['gt_match'].items():
        found_of[thing - 1] = detection - 1
    kind, about = _false_kinds(truth, found, found_of)
    right = found_of[found_of >= 0]
    ignored = np.ones(len(kind), bool)
    ignored[np.array(list(told['dt_status']), int) - 1] = False
    for name, those in ((RIGHT, right), (IGNORED, ignored)):
        kind[those], about[those] = name, -1
    return Errors(kind, about, found_of)


def tide_errors(truth: Truth, found: Found, errors: Errors) -> dict[str, Any]:
    """Return the number and the cost of the errors of each kind, computed by hotcoco.

    The cost of a kind is the increase of AP50 if all errors of this kind are fixed and the other
    errors remain. The costs do not add up to ``1 - AP50``, because errors can hide other errors.
    """
    # hotcoco counts a crowd as an object here, so crowds and the detections in them are removed
    evaluator = coco_evaluator(truth, found, ~truth.crowd, errors.kind != IGNORED)
    # as in tidecv; COCO's thresholds have rounding errors
    evaluator.params.rec_thrs = (np.arange(101) / 100).tolist()
    return evaluator.tide_errors(FOREGROUND, BACKGROUND)


def _false_kinds(truth: Truth, found: Found, found_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the kind that each detection has if it is false, and the index of its object."""
    kind = np.full(len(found.image), BOTH)
    about = np.full(len(found.image), -1)
    counted = np.flatnonzero(~truth.crowd)
    num_images = len(truth.images)
    objects = _grouped(truth.image[counted], num_images)
    for own, things in zip(_grouped(found.image, num_images), objects, strict=True):
        things = counted[things]
        # the last column means "no object"
        iou = np.zeros((len(own), len(things) + 1))
        iou[:, :-1] = hotcoco.mask.bbox_iou(
            found.box[own], truth.box[things], np.zeros(len(things), bool)
        )
        same = found.label[own, None] == np.append(truth.label[things], -1)
        taken = np.append(found_of[things] >= 0, False)
        place, other, twice = (np.where(those, iou, 0) for those in (same, ~same, same & taken))
        best = place.max(1)
        # run the tests in reverse order, so that an earlier test overrides a later one
        kind[own[iou.max(1) <= BACKGROUND]] = FALSE_ALARM
        for name, values, holds in (
            (DUPLICATE, twice, twice.max(1) >= FOREGROUND),
            (CLASSIFICATION, other, other.max(1) >= FOREGROUND),
            (LOCALISATION, place, (best >= BACKGROUND) & (best <= FOREGROUND)),
        ):
            kind[own[holds]] = name
            about[own[holds]] = np.append(things, -1)[values.argmax(1)][holds]
    return kind, about


def _grouped(image: np.ndarray, num_images: int) -> list[np.ndarray]:
    """Return, for each image, the indices of its entries."""
    order = np.argsort(image, kind='stable')
    return np.split(order, np.searchsorted(image[order], np.arange(1, num_images)))
