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

Shapes: K classes, G true objects, D detections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .boxes import Found, Matches, Pairs, Truth

FOREGROUND, BACKGROUND = 0.5, 0.1
KINDS = ('classification', 'localisation', 'both', 'duplicate', 'background', 'missed')
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, FALSE_ALARM, MISSED = range(6)
RIGHT, IGNORED = -1, -2
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
        cost: How much it rises by mending each kind, in the order of :data:`KINDS`.
        false_positives: How much it rises where every false detection goes.
        false_negatives: How much it rises where no unfound object is counted.
    """

    kind: np.ndarray
    about: np.ndarray
    missed: np.ndarray
    ap: float
    cost: tuple[float, ...]
    false_positives: float
    false_negatives: float

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of errors of each kind."""
        false = [int((self.kind == kind).sum()) for kind in range(MISSED)]
        return (*false, int(self.missed.sum()))


def analyse(truth: Truth, found: Found, pairs: Pairs, matches: Matches) -> Errors:
    """Sort the errors by kind and find what each kind costs.

    Args:
        truth: What there is.
        found: What was found.
        pairs: Pairs with an IoU of at least tb.
        matches: The matches at tf.
    """
    kind, about = _kinds(truth, found, pairs, matches)
    unfound = (matches.found_of < 0) & ~truth.crowd
    mended = _surest(kind, about, unfound)
    missed = unfound.copy()
    missed[about[mended]] = False

    base = _mean_ap(truth, found.label, matches.hit, kind != IGNORED, truth.objects)
    cost = []
    for wanted in range(len(KINDS)):
        of_kind = kind == wanted
        label, hit, objects = found.label, matches.hit, truth.objects
        kept = (kind != IGNORED) & ~of_kind
        if wanted in (CLASSIFICATION, LOCALISATION):
            right = mended[of_kind[mended]]
            label, hit = label.copy(), hit.copy()
            label[right], hit[right], kept[right] = truth.label[about[right]], True, True
        if wanted == MISSED:
            objects = objects - np.bincount(truth.label[missed], minlength=len(objects))
        cost.append(_gain(_mean_ap(truth, label, hit, kept, objects), base))
    only_right = _mean_ap(truth, found.label, matches.hit, matches.hit, truth.objects)
    counted = truth.objects - np.bincount(truth.label[unfound], minlength=len(truth.classes))
    all_found = _mean_ap(truth, found.label, matches.hit, kind != IGNORED, counted)
    return Errors(
        kind, about, missed, base, tuple(cost), _gain(only_right, base), _gain(all_found, base)
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


def _kinds(
    truth: Truth, found: Found, pairs: Pairs, matches: Matches
) -> tuple[np.ndarray, np.ndarray]:
    num_found = len(found.image)
    same = found.label[pairs.found] == truth.label[pairs.truth]
    taken = matches.found_of[pairs.truth] >= 0
    place, place_iou = _best(pairs, same, num_found)
    other, other_iou = _best(pairs, ~same, num_found)
    used, used_iou = _best(pairs, same & taken, num_found)

    # from the last test to the first, so that the first that holds has the last word
    kind = np.full(num_found, BOTH)
    about = np.full(num_found, -1)
    kind[np.maximum(place_iou, other_iou) <= BACKGROUND] = FALSE_ALARM
    for name, thing, holds in (
        (DUPLICATE, used, used_iou >= FOREGROUND),
        (CLASSIFICATION, other, other_iou >= FOREGROUND),
        (LOCALISATION, place, (place_iou >= BACKGROUND) & (place_iou <= FOREGROUND)),
    ):
        kind[holds], about[holds] = name, thing[holds]
    right = matches.hit
    kind[right], kind[matches.ignored] = RIGHT, IGNORED
    about[right | matches.ignored] = -1
    return kind, about


def _best(pairs: Pairs, allowed: np.ndarray, num_found: int) -> tuple[np.ndarray, np.ndarray]:
    """Return of each detection the object of the largest IoU, and that IoU (-1 and 0 for none)."""
    places = np.flatnonzero(allowed)
    places = places[np.lexsort((-pairs.iou[places], pairs.found[places]))]
    detection, first = np.unique(pairs.found[places], return_index=True)
    thing, iou = np.full(num_found, -1), np.zeros(num_found)
    thing[detection], iou[detection] = pairs.truth[places[first]], pairs.iou[places[first]]
    return thing, iou


def _surest(kind: np.ndarray, about: np.ndarray, unfound: np.ndarray) -> np.ndarray:
    """Return the surest localisation or classification error about each object not found."""
    places = np.flatnonzero(np.isin(kind, (CLASSIFICATION, LOCALISATION)))
    places = places[unfound[about[places]]]
    _, first = np.unique(about[places], return_index=True)  # detections are by falling score
    return places[first]


def _mean_ap(
    truth: Truth, label: np.ndarray, hit: np.ndarray, kept: np.ndarray, objects: np.ndarray
) -> float:
    """Return the mean AP over the classes that have objects; ``objects`` may count fewer."""
    values = []
    for index in np.flatnonzero(truth.objects):
        own = kept & (label == index)
        found_nothing = not own.any()
        values.append(
            average_precision(np.flatnonzero(hit[own]), int(objects[index]), found_nothing)
        )
    return float(np.mean(values)) if values else float('nan')


def _gain(mended: float, base: float) -> float:
    return max(mended - base, 0.0)  # the 101 points may lose a hair
