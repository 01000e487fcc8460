"""What a detector's errors cost, after TIDE (Bolya et al., arXiv 2008.08115).

Every false detection is of one kind, by the objects of its image (tf = 0.5, tb = 0.1):

- localisation: of the right class, but its best IoU with such an object is only from tb to tf;
- classification: an object of another class at an IoU of at least tf;
- duplicate: an object of its class that a surer detection has found already;
- background: an IoU below tb with every object;
- both: what is left, badly placed and of the wrong class.

An object that nothing found is missed unless a localisation or classification error is about it.
The cost of a kind is how much AP at tf rises when all errors of that kind, and no others, are
mended: a wrong class or place becomes right (of several about one object only the surest; where the
object is found already, or another kind has the surest, it goes), false detections of the other
kinds go, and missed objects are not counted. Where the paper leaves the order of tests open, it is
that of the authors' tidecv. Costs do not add up to what AP lacks, since errors hide one another.

hotcoco computes the counts and costs. It does not tell which detection is of which kind, nor what
an image costs.

Shapes: I images, K classes, G true objects, D detections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .boxes import Found, Matches, Truth, coco_evaluator

FOREGROUND, BACKGROUND = 0.5, 0.1
KINDS = ('classification', 'localisation', 'both', 'duplicate', 'background', 'missed')
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, FALSE_ALARM, MISSED = range(6)
RIGHT, IGNORED = -1, -2
NAMES = ('Cls', 'Loc', 'Both', 'Dupe', 'Bkg', 'Miss')  # hotcoco's, in the order of KINDS
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Errors:
    """Errors and their cost.

    Attributes:
        kind: ``(D,)`` place in :data:`KINDS`, or RIGHT or IGNORED.
        about: ``(D,)`` the object that a classification, localisation or duplicate error is about,
            else -1.
        missed: ``(G,)`` missed objects.
        ap: AP at tf of the detector as it is, from 0 to 1; NaN where there is no object.
        counts: Number of errors of each kind, in the order of :data:`KINDS`.
        cost: How much AP rises by mending each kind.
        false_positives: How much it rises where every false detection goes.
        false_negatives: How much it rises where no unfound object is counted.
    """

    kind: np.ndarray
    about: np.ndarray
    missed: np.ndarray
    ap: float
    counts: tuple[int, ...]
    cost: tuple[float, ...]
    false_positives: float
    false_negatives: float


def analyse(truth: Truth, found: Found, matches: Matches) -> Errors:
    """Sort the errors by kind and find what each kind costs."""
    kind, about = _kinds(truth, found, matches)
    missed = (matches.found_of < 0) & ~truth.crowd
    missed[about[np.isin(kind, (CLASSIFICATION, LOCALISATION))]] = False

    # hotcoco takes a crowd for an object, so crowds go, and with them what lies in them
    evaluator = coco_evaluator(truth, found, ~truth.crowd, ~matches.ignored)
    evaluator.params.rec_thrs = (np.arange(101) / 100).tolist()  # tidecv's; COCO's are a bit off
    evaluator.evaluate()
    told = evaluator.tide_errors(FOREGROUND, BACKGROUND)
    gained = told['delta_ap']
    # a class in which nothing was detected is right once its missed objects are not counted, while
    # hotcoco gives it an AP of 0
    present = truth.objects > 0
    empty = present & (np.bincount(found.label[~matches.ignored], minlength=len(present)) == 0)
    all_missed = empty & (np.bincount(truth.label[missed], minlength=len(present)) == truth.objects)
    gained['Miss'] += all_missed.sum() / max(present.sum(), 1)
    gained['FN'] += empty.sum() / max(present.sum(), 1)
    return Errors(
        kind=kind,
        about=about,
        missed=missed,
        ap=told['ap_base'] if present.any() else float('nan'),
        counts=tuple(told['counts'][name] for name in NAMES),
        cost=tuple(float(gained[name]) for name in NAMES),
        false_positives=gained['FP'],
        false_negatives=float(gained['FN']),
    )


def cost_of_images(truth: Truth, found: Found, errors: Errors, matches: Matches) -> np.ndarray:
    """Return how much AP at tf rises when the mistakes in one image are taken away.

    That is, its false detections go and its unfound objects are not counted.

    Returns:
        ``(I,)`` from 0 to 1.
    """
    gained = np.zeros(len(truth.image_ids))
    present = np.flatnonzero(truth.objects)
    unfound = (matches.found_of < 0) & ~truth.crowd
    for label in present:
        own = np.flatnonzero((found.label == label) & (errors.kind != IGNORED))
        hit = matches.hit[own]
        ranks = np.flatnonzero(hit)
        objects = int(truth.objects[label])
        base = average_precision(ranks, objects)
        wrong = np.flatnonzero(~hit)
        wrong = wrong[np.argsort(found.image[own[wrong]], kind='stable')]
        wrong_image = found.image[own[wrong]]
        missing = np.bincount(
            truth.image[unfound & (truth.label == label)], minlength=len(truth.image_ids)
        )
        for image in np.union1d(np.flatnonzero(missing), wrong_image):
            first, last = np.searchsorted(wrong_image, [image, image + 1])
            left = ranks - np.searchsorted(wrong[first:last], ranks)
            gone = last - first
            empty = len(own) == gone
            better = average_precision(left, objects - missing[image], empty)
            gained[image] += better - base
    return np.maximum(gained, 0) / max(len(present), 1)


def average_precision(ranks: np.ndarray, objects: int, nothing_found: bool = False) -> float:
    """Return COCO's average precision of one class: 101 points of the precision's envelope.

    Args:
        ranks: ``(H,)`` rising places of the right detections among all, by falling score.
        objects: Objects to find.
        nothing_found: There is no detection at all; where there is no object either, that is right.

    Returns:
        From 0 to 1.
    """
    if objects <= 0:
        return float(nothing_found)
    hits = np.arange(1, len(ranks) + 1)
    precision = np.maximum.accumulate((hits / (ranks + 1))[::-1])[::-1]
    places = np.searchsorted(hits / objects, RECALLS)
    return float(precision[places[places < len(ranks)]].sum()) / len(RECALLS)


def _kinds(truth: Truth, found: Found, matches: Matches) -> tuple[np.ndarray, np.ndarray]:
    """Return the kind of each detection, and the object that it is about."""
    from hotcoco.mask import bbox_iou

    kind = np.full(len(found.image), BOTH)
    about = np.full(len(found.image), -1)
    counted = np.flatnonzero(~truth.crowd)
    num_images = len(truth.image_ids)
    objects = _grouped(truth.image[counted], num_images)
    for own, things in zip(_grouped(found.image, num_images), objects, strict=True):
        things = counted[things]
        # the last column stands for no object
        iou = np.zeros((len(own), len(things) + 1))
        iou[:, :-1] = bbox_iou(found.box[own], truth.box[things], np.zeros(len(things), bool))
        same = found.label[own, None] == np.append(truth.label[things], -1)
        taken = np.append(matches.found_of[things] >= 0, False)
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
    for name, those in ((RIGHT, matches.hit), (IGNORED, matches.ignored)):
        kind[those], about[those] = name, -1
    return kind, about


def _grouped(image: np.ndarray, num_images: int) -> list[np.ndarray]:
    """Return the places of what is in each image."""
    order = np.argsort(image, kind='stable')
    return np.split(order, np.searchsorted(image[order], np.arange(1, num_images)))
