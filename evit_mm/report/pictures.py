"""The worst images: which to show, and their thumbnails with boxes."""

from __future__ import annotations

import base64
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..data.images import read_image
from ..evaluation.tide import IGNORED, KINDS, MISSED
from .analysis import Analysis

SIDE = 320  # of a thumbnail, pixels
QUALITY = 60
MAX_IMAGES = 90
WORST = 30  # of all; beside them some of each class and kind, so that the filters find something
PER_CLASS, PER_KIND = 3, 6
MAX_BOXES = 40  # drawn on one picture


@dataclass
class Box:
    """A rectangle on a picture.

    Attributes:
        corner: Its upper left corner in the image's pixels.
        size: Width and height.
        label: Written beside it.
        state: What it is, which chooses its colour.
        title: What is read on pointing at it.
        score: Of the detection, or of that which found the object; None where nothing did.
    """

    corner: tuple[float, float]
    size: tuple[float, float]
    label: str
    state: str
    title: str
    score: float | None = None


@dataclass
class Card:
    """One image with what there is and what was found.

    Attributes:
        name: File name.
        path: The file.
        cost: AP50 points that its mistakes cost.
        size: Width and height in pixels.
        truth: Objects.
        found: Detections, the surest first.
        mistakes: ``kind`` and ``label`` of each, as places, once.
        counts: Mistakes by kind.
        thumbnail: Its place among the page's thumbnails, None where there is none.
    """

    name: str
    path: Path
    cost: float
    size: tuple[float, float]
    truth: list[Box]
    found: list[Box]
    mistakes: list[tuple[int, int]]
    counts: dict[str, int]
    thumbnail: int | None = None


@dataclass
class Mistakes:
    """Mistakes of a run, one a row.

    Attributes:
        image: ``(M,)`` place of the image.
        kind: ``(M,)`` place in :data:`~evit_mm.evaluation.tide.KINDS`.
        label: ``(M,)`` the class detected, or missed.
        other: ``(M,)`` of a classification error the true class, else the same.
    """

    image: np.ndarray
    kind: np.ndarray
    label: np.ndarray
    other: np.ndarray


def mistakes_of(analysis: Analysis) -> Mistakes:
    """List the missed objects, and the false detections from the working score on."""
    truth, found, errors = analysis.truth, analysis.found, analysis.errors
    wrong = np.flatnonzero((errors.kind >= 0) & (found.score >= analysis.working_score))
    missed = np.flatnonzero(errors.missed)
    about = errors.about[wrong]
    other = np.where(about >= 0, np.append(truth.label, -1)[about], found.label[wrong])
    return Mistakes(
        image=np.concatenate([found.image[wrong], truth.image[missed]]),
        kind=np.concatenate([errors.kind[wrong], np.full(len(missed), MISSED)]),
        label=np.concatenate([found.label[wrong], truth.label[missed]]),
        other=np.concatenate([other, truth.label[missed]]),
    )


def choose(cost: np.ndarray, mistakes: Mistakes, limit: int = MAX_IMAGES) -> list[int]:
    """Choose the images to show, the worst first.

    Args:
        cost: ``(I,)`` what the mistakes of each image cost.
        mistakes: Those that count.
        limit: At most so many.

    Returns:
        Places of images: the worst of all, and of each kind and class some.
    """
    order = [i for i in np.argsort(-cost, kind='stable').tolist() if cost[i] > 0]
    rank = {image: place for place, image in enumerate(order)}
    chosen = dict.fromkeys(order[: min(WORST, limit)])
    for column, number in ((mistakes.kind, PER_KIND), (mistakes.label, PER_CLASS)):
        for value in np.unique(column):
            images = np.unique(mistakes.image[column == value]).tolist()
            worst = sorted((i for i in images if i in rank), key=rank.__getitem__)[:number]
            chosen.update(dict.fromkeys(worst))
    # a class more or less goes before one of the worst
    return sorted(list(chosen)[:limit], key=rank.__getitem__)


def make_card(image: int, analysis: Analysis, mistakes: Mistakes) -> Card:
    """Gather what is drawn on one image."""
    truth = analysis.truth
    objects = np.flatnonzero(truth.image == image)
    # where there are too many, those that were not found are shown
    objects = objects[np.argsort(analysis.matches.found_of[objects] >= 0, kind='stable')]
    detections = np.flatnonzero(analysis.found.image == image)
    own = mistakes.image == image
    kinds = mistakes.kind[own].tolist()
    labels = [*mistakes.label[own].tolist(), *mistakes.other[own].tolist()]
    return Card(
        name=truth.file_names[image],
        path=truth.folder / truth.file_names[image],
        cost=100 * float(analysis.image_cost[image]),
        size=tuple(truth.sizes[image].tolist()),
        truth=[_true_box(analysis, thing) for thing in objects[:MAX_BOXES].tolist()],
        found=[_found_box(analysis, detection) for detection in detections[:MAX_BOXES].tolist()],
        mistakes=sorted(set(zip(kinds * 2, labels, strict=True))),
        counts={KINDS[kind]: number for kind, number in sorted(Counter(kinds).items())},
    )


class Thumbnails:
    """Small pictures as ``data:`` addresses, each made once, until a number of bytes is spent.

    Attributes:
        addresses: Of the pictures so far.
        unreadable: Paths of images that cannot be read.
    """

    def __init__(self, budget: int) -> None:
        self.left = budget
        self.addresses: list[str] = []
        self.unreadable: list[str] = []
        self._places: dict[Path, int | None] = {}

    def add(self, path: Path) -> int | None:
        """Return the place of an image's thumbnail, None where it is unreadable or too much."""
        if path not in self._places:
            self._places[path] = self._make(path) if self.left > 0 else None
        return self._places[path]

    def _make(self, path: Path) -> int | None:
        pixels = read_image(path) if path.is_file() else None
        if pixels is None:
            self.unreadable.append(str(path))
            return None
        scale = min(1.0, SIDE / max(pixels.shape[:2]))
        size = [max(1, round(extent * scale)) for extent in pixels.shape[1::-1]]
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        _, encoded = cv2.imencode('.webp', small, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
        address = f'data:image/webp;base64,{base64.b64encode(encoded.tobytes()).decode()}'
        if len(address) > self.left:
            return None
        self.left -= len(address)
        self.addresses.append(address)
        return len(self.addresses) - 1


def _true_box(analysis: Analysis, thing: int) -> Box:
    truth, detection = analysis.truth, int(analysis.matches.found_of[thing])
    name, score = truth.classes[truth.label[thing]], None
    if truth.crowd[thing]:
        state, text = 'ignored', 'a crowd, not counted'
    elif detection >= 0:
        score = float(analysis.found.score[detection])
        state = 'right' if score >= analysis.working_score else 'missed'
        text = f'found with a score of {score:.2f}'
    else:
        state = 'missed'
        text = 'missed' if analysis.errors.missed[thing] else 'found badly or misnamed'
    x, y, width, height = truth.box[thing].tolist()
    return Box((x, y), (width, height), name, state, f'{name}: {text}', score)


def _found_box(analysis: Analysis, detection: int) -> Box:
    truth, found, errors = analysis.truth, analysis.found, analysis.errors
    label = f'{truth.classes[found.label[detection]]} {found.score[detection]:.2f}'
    kind, about = errors.kind[detection], errors.about[detection]
    if kind == IGNORED:
        state, text = 'ignored', 'in a crowd, not counted'
    elif kind < 0:
        state, text = 'right', 'right'
    else:
        state, text = KINDS[kind], f'{KINDS[kind]} error'
        if about >= 0 and truth.label[about] != found.label[detection]:
            text += f', it is {truth.classes[truth.label[about]]}'
    x, y, width, height = found.box[detection].tolist()
    score = float(found.score[detection])
    return Box((x, y), (width, height), label, state, f'{label}: {text}', score)
