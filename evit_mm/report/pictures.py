"""Selection of the worst images, and their thumbnails with boxes."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.pictures import to_picture
from ..data.pipeline import ImageReader
from ..errors import EvitError
from ..evaluation.tide import CLASSIFICATION, IGNORED, KINDS, LOCALISATION, MISSED
from .analysis import Analysis

SIDES = 640, 480, 320  # longer side of a thumbnail in pixels; the page takes the first that fits
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
        wrong: For an object, the type and the score of the best detection that found it with a
            wrong class or an inaccurate box, or None.
    """

    bbox: list[float]
    label: str
    state: str
    title: str
    score: float | None
    wrong: tuple[str, float] | None = None


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
        counts: Number of mistakes by error type at the working score.
        objects: ``[class, score, wrong score]`` of each counted object: the best detection that
            found it, and the best one with a wrong class or an inaccurate box. A score is -1 if
            there is no detection. Unlike ``truth``, the list is complete.
        detections: ``[error type, class, score]`` of each counted detection. The type is -1 for a
            correct detection. Unlike ``found``, the list is complete.
        read: Reader of the image.
        thumbnail: Index in the thumbnails of the page, or None.
    """

    name: str
    path: Path
    f1: float
    size: tuple[float, float]
    truth: list[Box]
    found: list[Box]
    counts: dict[str, int]
    objects: list[list[float]]
    detections: list[list[float]]
    read: ImageReader = field(default_factory=ImageReader)
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
    wrong = _wrong_detections(analysis, detections)
    kinds = mistakes[mistakes[:, 0] == image, 1].tolist()
    return Card(
        name=entry['file_name'],
        path=truth.folder / entry['file_name'],
        f1=float(analysis.f1[image]),
        size=(entry['width'], entry['height']),
        truth=[_true_box(analysis, thing, wrong) for thing in objects[:MAX_BOXES].tolist()],
        found=[_found_box(analysis, detection) for detection in detections[:MAX_BOXES].tolist()],
        counts={KINDS[kind]: number for kind, number in sorted(Counter(kinds).items())},
        objects=[
            [
                int(truth.label[thing]),
                _score(analysis, analysis.errors.found_of[thing]),
                _score(analysis, wrong.get(thing, -1)),
            ]
            for thing in objects[~truth.crowd[objects]].tolist()
        ],
        detections=[
            [int(kind), int(analysis.found.label[detection]), _score(analysis, detection)]
            for detection in detections.tolist()
            if (kind := analysis.errors.kind[detection]) != IGNORED
        ],
        read=analysis.read,
    )


def _wrong_detections(analysis: Analysis, detections: np.ndarray) -> dict[int, int]:
    """Return the best classification or localisation error of each object that has one."""
    errors = analysis.errors
    half_found = np.isin(errors.kind[detections], (CLASSIFICATION, LOCALISATION))
    best: dict[int, int] = {}
    for detection in detections[half_found].tolist():  # the highest score first
        best.setdefault(int(errors.about[detection]), detection)
    return best


def _score(analysis: Analysis, detection: int) -> float:
    """Return the score of a detection with four decimals, or -1 for the index -1.

    The score is rounded down, so that it does not reach a threshold of the slider by rounding.
    """
    if detection < 0:
        return -1
    return math.floor(1e4 * float(analysis.found.score[detection]) + 1e-6) / 1e4


def add_thumbnails(cards: Sequence[Card], room: int) -> tuple[list[str], list[Path]]:
    """Set the thumbnails of the cards, with at most ``room`` bytes in total.

    All thumbnails have the largest of :data:`SIDES` at which they fit. If the smallest one does not
    fit either, the last cards have no thumbnail.

    Returns:
        The thumbnails as ``data:`` URLs, and the images that cannot be read.
    """
    pictures = {path: _read(card) for path, card in {card.path: card for card in cards}.items()}
    readable = {path: picture for path, picture in pictures.items() if picture is not None}
    for side in SIDES:
        drawn = {path: _encode(picture, side) for path, picture in readable.items()}
        if sum(map(len, drawn.values())) <= room:
            break
    places: dict[Path, int] = {}
    addresses: list[str] = []
    for path, address in drawn.items():
        if len(address) <= room:
            room -= len(address)
            places[path] = len(addresses)
            addresses.append(address)
    for card in cards:
        card.thumbnail = places.get(card.path)
    return addresses, [path for path in pictures if path not in readable]


def _read(card: Card) -> Image.Image | None:
    try:
        picture = Image.fromarray(to_picture(card.read(card.path))[..., ::-1])
    except EvitError:
        return None
    picture.thumbnail((SIDES[0], SIDES[0]))
    return picture


def _encode(picture: Image.Image, side: int) -> str:
    smaller = picture.copy()
    smaller.thumbnail((side, side))
    file = io.BytesIO()
    smaller.save(file, 'webp', quality=QUALITY)
    return f'data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}'


def _true_box(analysis: Analysis, thing: int, wrong: Mapping[int, int]) -> Box:
    truth, errors = analysis.truth, analysis.errors
    name = truth.classes[truth.label[thing]]
    box = Box(truth.box[thing].tolist(), name, 'missed', f'{name}: missed', None)
    if truth.crowd[thing]:
        box.state, box.title = 'ignored', f'{name}: crowd, not counted'
        return box
    texts = []
    if (right := errors.found_of[thing]) >= 0:
        box.score = _score(analysis, right)
        texts.append(f'found with score {box.score:.2f}')
    if (half := wrong.get(thing, -1)) >= 0:
        box.wrong = kind, score = KINDS[errors.kind[half]], _score(analysis, half)
        texts.append(f'{kind} error of a detection with score {score:.2f}')
        if score >= analysis.working_score:
            box.state = kind
    if box.score is not None and box.score >= analysis.working_score:
        box.state = 'right'
    if texts:
        box.title = f'{name}: {", ".join(texts)}'
    return box


def _found_box(analysis: Analysis, detection: int) -> Box:
    truth, found, errors = analysis.truth, analysis.found, analysis.errors
    score = _score(analysis, detection)
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
