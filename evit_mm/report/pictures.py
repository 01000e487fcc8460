"""Selection of the worst images, and their thumbnails with boxes."""

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

SIDE = 320  # longer side of a thumbnail in pixels
QUALITY = 60
WORST = 30  # worst images; the page adds images per class and error type for the filters
PER_CLASS, PER_KIND = 3, 6
MAX_BOXES = 40  # boxes on one picture


@dataclass
class Box:
    """A rectangle on a picture.

    Attributes:
        bbox: ``[x, y, width, height]`` in the image's pixels.
        label: Text beside the box.
        state: Type of the box, which selects its colour.
        title: Tooltip.
        score: Score of the detection, or of the detection that found the object, or None.
    """

    bbox: list[float]
    label: str
    state: str
    title: str
    score: float | None


@dataclass
class Card:
    """One image with its objects and detections.

    Attributes:
        name: File name.
        path: File.
        f1: F1 at the working score.
        size: Width and height in pixels.
        truth: Objects.
        found: Detections, highest score first.
        mistakes: Distinct pairs of error type and class, as indices.
        counts: Number of mistakes by error type.
        thumbnail: Index in the thumbnails of the page, or None.
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
    """Return the cards of at most ``limit`` images, the worst first."""
    mistakes = find_mistakes(analysis)
    images = choose(analysis.f1, mistakes, limit)
    return [make_card(image, analysis, mistakes) for image in images]


def find_mistakes(analysis: Analysis) -> np.ndarray:
    """Return the false detections and the missed objects at the working score.

    The shape is ``(M, 3)``. A row contains the indices of the image, the error type and the class.
    """
    truth, found, errors = analysis.truth, analysis.found, analysis.errors
    sure = found.score >= analysis.working_score
    wrong = sure & (errors.kind >= 0)
    # the last entry stands for "no detection"
    missed = ~truth.crowd & ~np.append(sure, False)[errors.found_of]
    half_found = wrong & np.isin(errors.kind, (CLASSIFICATION, LOCALISATION))
    missed[errors.about[half_found]] = False
    false = np.column_stack([found.image, errors.kind, found.label])
    objects = np.column_stack([truth.image, np.full(len(missed), MISSED), truth.label])
    return np.concatenate([false[wrong], objects[missed]])


def choose(f1: np.ndarray, mistakes: np.ndarray, limit: int) -> list[int]:
    """Return at most ``limit`` images: the worst images, and some of each error type and class.

    The images are sorted by ascending F1, and then by descending number of mistakes.
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
    """Collect the boxes of one image."""
    truth = analysis.truth
    entry = truth.images[image]
    objects = np.flatnonzero(truth.image == image)
    # objects that were not found come first, because the number of boxes is limited
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
    """Set the thumbnails of the cards, with at most ``room`` bytes in total.

    Returns:
        The thumbnails as ``data:`` URLs, and the images that cannot be read.
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
        state, text = 'ignored', 'crowd, not counted'
    elif detection >= 0:
        score = float(analysis.found.score[detection])
        state = 'right' if score >= analysis.working_score else 'missed'
        text = f'found with score {score:.2f}'
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
        state, text = 'ignored', 'inside a crowd, not counted'
    elif kind < 0:
        state, text = 'right', 'correct'
    else:
        state, text = KINDS[kind], f'{KINDS[kind]} error'
        if about >= 0 and truth.label[about] != found.label[detection]:
            text += f', the object is {truth.classes[truth.label[about]]}'
    return Box(found.box[detection].tolist(), label, state, f'{label}: {text}', score)
