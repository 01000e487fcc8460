"""The worst images: which to show, and their thumbnails with boxes."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.images import read_image
from ..evaluation.tide import CLASSIFICATION, IGNORED, KINDS, LOCALISATION, MISSED
from .analysis import Analysis

SIDE = 320  # of a thumbnail, pixels
QUALITY = 60
WORST = 30  # of all; beside them some of each class and kind, so that the filters find something
PER_CLASS, PER_KIND = 3, 6
MAX_BOXES = 40  # drawn on one picture


@dataclass
class Box:
    """A rectangle on a picture.

    Attributes:
        bbox: ``[x, y, width, height]`` in the image's pixels.
        label: Written beside it.
        state: What it is, which chooses its colour.
        title: What is read on pointing at it.
        score: Of the detection, or of that which found the object; None where nothing did.
    """

    bbox: list[float]
    label: str
    state: str
    title: str
    score: float | None


@dataclass
class Card:
    """One image with what there is and what was found.

    Attributes:
        name: File name.
        path: The file.
        f1: Its F1 from the working score on.
        size: Width and height in pixels.
        truth: Objects.
        found: Detections, the surest first.
        mistakes: ``kind`` and ``label`` of each, as places, once.
        counts: Mistakes by kind.
        thumbnail: Its place among the page's thumbnails, None where there is none.
    """

    name: str
    path: Path
    f1: float
    size: tuple[float, float]
    truth: list[Box]
    found: list[Box]
    mistakes: list[tuple[int, int]]
    counts: dict[str, int]
    thumbnail: int | None = None


def worst_cards(analysis: Analysis, limit: int) -> list[Card]:
    """Return at most so many images, the worst first."""
    mistakes = find_mistakes(analysis)
    images = choose(analysis.f1, mistakes, limit)
    return [make_card(image, analysis, mistakes) for image in images]


def find_mistakes(analysis: Analysis) -> np.ndarray:
    """List the false detections from the working score on, and the objects that these miss.

    A row of the ``(M, 3)`` has the places of image, kind, and class detected or missed.
    """
    truth, found, errors = analysis.truth, analysis.found, analysis.errors
    sure = found.score >= analysis.working_score
    wrong = sure & (errors.kind >= 0)
    # the last place stands for no detection, which is not sure
    missed = ~truth.crowd & ~np.append(sure, False)[errors.found_of]
    half_found = wrong & np.isin(errors.kind, (CLASSIFICATION, LOCALISATION))
    missed[errors.about[half_found]] = False
    false = np.column_stack([found.image, errors.kind, found.label])
    objects = np.column_stack([truth.image, np.full(len(missed), MISSED), truth.label])
    return np.concatenate([false[wrong], objects[missed]])


def choose(f1: np.ndarray, mistakes: np.ndarray, limit: int) -> list[int]:
    """Choose at most so many images: the worst of all, and of each kind and class some.

    They come by rising F1, and those of equal F1 by falling number of mistakes.
    """
    number = np.bincount(mistakes[:, 0], minlength=len(f1))
    order = [image for image in np.lexsort((-number, f1)).tolist() if f1[image] < 1]
    chosen = dict.fromkeys(order[:WORST])
    for column, most in ((1, PER_KIND), (2, PER_CLASS)):
        for value in np.unique(mistakes[:, column]):
            images = set(mistakes[mistakes[:, column] == value, 0].tolist())
            chosen.update(dict.fromkeys([image for image in order if image in images][:most]))
    return sorted(list(chosen)[:limit], key=order.index)


def make_card(image: int, analysis: Analysis, mistakes: np.ndarray) -> Card:
    """Gather what is drawn on one image."""
    truth = analysis.truth
    entry = truth.images[image]
    objects = np.flatnonzero(truth.image == image)
    # where there are too many, those that were not found are shown
    objects = objects[np.argsort(analysis.errors.found_of[objects] >= 0, kind='stable')]
    detections = np.flatnonzero(analysis.found.image == image)
    own = mistakes[mistakes[:, 0] == image, 1:].tolist()
    counts = Counter(kind for kind, _ in own)
    return Card(
        name=entry['file_name'],
        path=truth.folder / entry['file_name'],
        f1=float(analysis.f1[image]),
        size=(entry['width'], entry['height']),
        truth=[_true_box(analysis, thing) for thing in objects[:MAX_BOXES].tolist()],
        found=[_found_box(analysis, detection) for detection in detections[:MAX_BOXES].tolist()],
        mistakes=sorted({(kind, label) for kind, label in own}),
        counts={KINDS[kind]: counts[kind] for kind in sorted(counts)},
    )


def add_thumbnails(cards: Iterable[Card], room: int) -> tuple[list[str], list[Path]]:
    """Give cards their thumbnails, until a number of bytes is spent.

    Returns these as ``data:`` addresses, and the images that cannot be read.
    """
    places: dict[Path, int | None] = {}
    addresses: list[str] = []
    unreadable: list[Path] = []
    for card in cards:
        if card.path not in places:
            places[card.path] = None
            address = _thumbnail(card.path)
            if address is None:
                unreadable.append(card.path)
            elif len(address) <= room:
                room -= len(address)
                places[card.path] = len(addresses)
                addresses.append(address)
        card.thumbnail = places[card.path]
    return addresses, unreadable


def _thumbnail(path: Path) -> str | None:
    pixels = read_image(path)
    if pixels is None:
        return None
    picture = Image.fromarray(pixels[..., ::-1])
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, 'webp', quality=QUALITY)
    return f'data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}'


def _true_box(analysis: Analysis, thing: int) -> Box:
    truth, errors = analysis.truth, analysis.errors
    name, score = truth.classes[truth.label[thing]], None
    detection = errors.found_of[thing]
    if truth.crowd[thing]:
        state, text = 'ignored', 'a crowd, not counted'
    elif detection >= 0:
        score = float(analysis.found.score[detection])
        state = 'right' if score >= analysis.working_score else 'missed'
        text = f'found with a score of {score:.2f}'
    else:
        state = 'missed'
        text = 'not found'
    return Box(truth.box[thing].tolist(), name, state, f'{name}: {text}', score)


def _found_box(analysis: Analysis, detection: int) -> Box:
    truth, found, errors = analysis.truth, analysis.found, analysis.errors
    score = float(found.score[detection])
    label = f'{truth.classes[found.label[detection]]} {score:.2f}'
    kind, about = errors.kind[detection], errors.about[detection]
    if kind == IGNORED:
        state, text = 'ignored', 'in a crowd, not counted'
    elif kind < 0:
        state, text = 'right', 'right'
    else:
        state, text = KINDS[kind], f'{KINDS[kind]} error'
        if about >= 0 and truth.label[about] != found.label[detection]:
            text += f', it is {truth.classes[truth.label[about]]}'
    return Box(found.box[detection].tolist(), label, state, f'{label}: {text}', score)
