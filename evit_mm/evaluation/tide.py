"""A detector's errors after TIDE (Bolya et al., arXiv 2008.08115).

Every false detection is of one kind, by the objects of its image:

- localisation: of the right class, but its best IoU with such an object is only 0.1 to 0.5;
- classification: an object of another class at an IoU of at least 0.5;
- duplicate: an object of its class that a surer detection has found already;
- background: an IoU below 0.1 with every object;
- both: what is left, badly placed and of the wrong class.

An object that nothing found is missed unless a localisation or classification error is about it.
Where the paper leaves the order of tests open, it is that of the authors' tidecv.

hotcoco computes how many errors of each kind there are and what they cost; it does not tell which
detection is of which kind.

Shapes: I images, G true objects, D detections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np

from .boxes import Found, Truth, coco_evaluator

FOREGROUND, BACKGROUND = 0.5, 0.1
KINDS = ('classification', 'localisation', 'both', 'duplicate', 'background', 'missed')
NAMES = ('Cls', 'Loc', 'Both', 'Dupe', 'Bkg', 'Miss')  # hotcoco's, in the order of KINDS
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, FALSE_ALARM, MISSED = range(6)
RIGHT, IGNORED = -1, -2


@dataclass(frozen=True)
class Errors:
    """Which detections are right and which are errors, at IoU 0.5.

    Attributes:
        kind: ``(D,)`` place in :data:`KINDS`; RIGHT, or IGNORED where it lies in a crowd.
        about: ``(D,)`` the object that a classification, localisation or duplicate error is about,
            else -1.
        found_of: ``(G,)`` the detection that found an object, else -1.
    """

    kind: np.ndarray
    about: np.ndarray
    found_of: np.ndarray


def find_errors(evaluator: hotcoco.COCOeval, truth: Truth, found: Found) -> Errors:
    """Sort the detections by kind; the evaluator has evaluated all of ``truth`` and ``found``."""
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
    """Return hotcoco's counts and costs of the kinds.

    The cost of a kind is how much AP50 rises when all errors of that kind, and no others, are
    mended. Costs do not add up to what AP50 lacks, since errors hide one another.
    """
    # hotcoco takes a crowd for an object, so crowds go, and with them what lies in them
    evaluator = coco_evaluator(truth, found, ~truth.crowd, errors.kind != IGNORED)
    evaluator.params.rec_thrs = (np.arange(101) / 100).tolist()  # tidecv's; COCO's are a bit off
    return evaluator.tide_errors(FOREGROUND, BACKGROUND)


def _false_kinds(truth: Truth, found: Found, found_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the kind of each detection, were it false, and the object that it is about."""
    kind = np.full(len(found.image), BOTH)
    about = np.full(len(found.image), -1)
    counted = np.flatnonzero(~truth.crowd)
    num_images = len(truth.images)
    objects = _grouped(truth.image[counted], num_images)
    for own, things in zip(_grouped(found.image, num_images), objects, strict=True):
        things = counted[things]
        # the last column stands for no object
        iou = np.zeros((len(own), len(things) + 1))
        iou[:, :-1] = hotcoco.mask.bbox_iou(
            found.box[own], truth.box[things], np.zeros(len(things), bool)
        )
        same = found.label[own, None] == np.append(truth.label[things], -1)
        taken = np.append(found_of[things] >= 0, False)
        place, other, twice = (np.where(those, iou, 0) for those in (same, ~same, same & taken))
        best = place.max(1)
        # from the last test to the first, so that the first that holds has the last word
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
    """Return the places of what is in each image."""
    order = np.argsort(image, kind='stable')
    return np.split(order, np.searchsorted(image[order], np.arange(1, num_images)))
