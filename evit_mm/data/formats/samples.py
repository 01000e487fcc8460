"""What all formats share: images with their objects, notes, and the reading of files."""

from __future__ import annotations

import cmath
import functools
import hashlib
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ...errors import DataError
from ..images import IMAGE_SUFFIXES, NamedFiles, difference, folders_apart, some

SPLITS = {
    **dict.fromkeys(('train', 'training'), 'train'),
    **dict.fromkeys(('val', 'valid', 'validation', 'dev'), 'val'),
    **dict.fromkeys(('test', 'testing'), 'test'),
}
UNSPLIT = ''  # images that no file or folder assigns to a split
VAL_SHARE = 0.2
ROTATED = 'rotated boxes were replaced by the upright box around them'
DIGITS = 6  # of a pixel; percentages and fractions give integers with an error near 1e-13
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF values that swap width and height
Box = list[float]


@dataclass
class Sample:
    """An image and its objects.

    Attributes:
        path: Image file.
        size: Width and height in pixels.
        objects: COCO annotations with ``name`` instead of ``category_id``, and without ids.
        file: Annotation file, relative to the data folder, if several can list the image.
    """

    path: Path
    size: tuple[int, int]
    objects: list[dict[str, Any]] = field(default_factory=list)
    file: Path = Path()


@dataclass
class Content:
    """The content of a data folder: the images of each split, and the classes in order.

    Only the splits for training and validation, and :data:`UNSPLIT`, are used.
    """

    splits: dict[str, list[Sample]] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)

    def add(self, split: str, sample: Sample, file: Path = Path()) -> None:
        """Add an image to a split; ``file`` is its annotation file."""
        sample.file = file
        self.splits.setdefault(split, []).append(sample)

    def sort_classes(self) -> None:
        """Take the names of the objects as classes, in alphabetical order."""
        samples = [sample for split in self.splits.values() for sample in split]
        self.classes = sorted({found['name'] for sample in samples for found in sample.objects})


class Notes:
    """What was left out or changed, by kind. Each kind becomes one sentence."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}
        self._said: list[str] = []

    def say(self, sentence: str) -> None:
        """Add a sentence."""
        self._said.append(sentence)

    def add(self, kind: str, place: object) -> None:
        """Add a case; ``place`` is the file, and the object in it."""
        self._places.setdefault(kind, []).append(str(place))

    def sentences(self) -> list[str]:
        """Return one sentence per kind, with the number of cases and the first places."""
        cases = [f'{kind}: {len(v)} ({some(v)})' for kind, v in self._places.items()]
        return [*self._said, *cases]


@dataclass(frozen=True)
class Source:
    """A data folder and its files, without hidden ones such as the ``._`` files of macOS."""

    root: Path
    files: tuple[Path, ...]  # relative to the root, sorted
    notes: Notes = field(default_factory=Notes)
    outside: set[str] = field(default_factory=set)  # files elsewhere that were read

    def reads(self, path: Path) -> None:
        """Remember a file that lies outside the data folder."""
        name = relative_name(path, self.root)
        if os.path.isabs(name):
            self.outside.add(name)

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Return the files with one of these suffixes, in any case."""
        return [file for file in self.files if file.suffix.lower() in suffixes]

    @functools.cached_property
    def named(self) -> NamedFiles:
        """The files by the names that another program or system has written."""
        return NamedFiles(file.as_posix() for file in self.files)

    def find(self, name: str, listed: Path, split: str) -> Path | None:
        """Return the one file that a name means, with a note, or None.

        Args:
            name: Name that an annotation or a list has.
            listed: File that has the name, relative to the root.
            split: Split of the name. By default, it is the one that the folders of ``listed`` name.
        """
        split = split or named_split(listed.parts[:-1])
        files = [file for file in self.named.find(name) if may_mean(name, file, split)]
        files = [file for file in files if (self.root / file).is_file()]  # no broken link
        return self.found(name, self.root / files[0]) if len(files) == 1 else None

    def found(self, name: str, path: Path) -> Path:
        """Note a file that has another name, and return it."""
        file = relative_name(path, self.root)
        kind = f'files were found under names with {difference(name, file)}'
        self.notes.add(kind, f"'{file}' for '{name}'")
        return path

    def sample(self, path: Path, size: Sequence[Any] = (0, 0)) -> Sample | None:
        """Return an image without objects, or None with a note if its size is unknown."""
        self.reads(path)
        width, height = map(_side, size)
        found = (width, height) if width and height else image_size(path)
        if found is None:
            self.notes.add('images cannot be read and were left out', path.name)
            return None
        return Sample(path, found)

    def upright(
        self,
        corners: Sequence[float],
        degrees: float,
        place: object,
        pivot: tuple[float, float] | None = None,
    ) -> list[float]:
        """Return the corners of the upright box around a rotated one, with a note.

        The pivot is the middle of the box by default. Positive angles are clockwise.
        """
        x1, y1, x2, y2 = corners
        middle = complex(*(pivot or ((x1 + x2) / 2, (y1 + y2) / 2)))
        turn = cmath.rect(1, math.radians(degrees))
        points = [middle + turn * (complex(x, y) - middle) for x in (x1, x2) for y in (y1, y2)]
        self.notes.add(ROTATED, place)
        return bounds([side for point in points for side in (point.real, point.imag)])

    def add_object(
        self,
        sample: Sample,
        name: str | None,
        corners: Sequence[float],
        place: object,
        polygon: Sequence[float] = (),
        **fields: Any,
    ) -> None:
        """Add an object with the corners ``(x1, y1, x2, y2)``, or a note that it was left out.

        ``fields`` are those of COCO's annotation.
        """
        x1, x2 = sorted(corners[::2])
        y1, y2 = sorted(corners[1::2])
        if not name:
            self.notes.add('objects without a class were left out', place)
        elif x2 <= x1 or y2 <= y1:
            self.notes.add('objects without area were left out', place)
        else:
            box = [round(value, DIGITS) for value in (x1, y1, x2 - x1, y2 - y1)]
            found = {'name': name, 'bbox': box, 'area': box[2] * box[3], 'iscrowd': 0}
            if len(polygon) >= 6:
                outline = [round(value, DIGITS) for value in polygon]
                found.update(segmentation=[outline], area=polygon_area(outline))
            sample.objects.append(found | fields)


def split_of(file: Path) -> str:
    """Return the split that the folders of a relative path name, or :data:`UNSPLIT`."""
    named = [SPLITS[part.lower()] for part in file.parts[:-1] if part.lower() in SPLITS]
    return named[-1] if named else UNSPLIT


def split_in_name(name: str) -> str:
    """Return the split that a name contains as a word, or :data:`UNSPLIT`."""
    words = re.findall('[a-z]+', name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), UNSPLIT)


def named_split(folders: Sequence[str]) -> str:
    """Return the split that folders name as a word, as in ``train2017`` or ``obj_val_data``."""
    return next(filter(None, map(split_in_name, reversed(folders))), UNSPLIT)


def may_mean(name: str, file: str, split: str) -> bool:
    """Return whether a name of a split can mean a file.

    A file in other folders than the name can only mean it if these folders name no other split.
    """
    of_name, of_file = folders_apart(name, file)
    found = named_split(of_file)
    # the folders further above are those of another computer
    return not found or (found == split and named_split(of_name[-1:]) in (UNSPLIT, split))


def listed_once(samples: Iterable[Sample], source: Source) -> list[Sample]:
    """Return the images of a split, each once, with a note on those that are listed again.

    Raises:
        DataError: An image is listed again with other objects.
    """

    def objects(sample: Sample) -> list[tuple[str, list[float], int]]:
        return sorted((o['name'], o['bbox'], o.get('iscrowd', 0)) for o in sample.objects)

    found: dict[str, Sample] = {}
    for sample in samples:
        name = relative_name(sample.path, source.root)
        first = found.setdefault(name, sample)
        if first is sample:
            continue
        files = ' and '.join(f"'{file}'" for file in dict.fromkeys((first.file, sample.file)))
        if objects(first) != objects(sample):
            raise DataError(
                f"'{source.root}': the image '{name}' is listed twice in {files}, with other "
                'objects each time; keep one of them'
            )
        kind = 'images are listed again with the same objects, and count once'
        source.notes.add(kind, f"'{name}' in {files}")
    return [*found.values()]


def divide(samples: Sequence[Sample], root: Path) -> tuple[list[Sample], list[Sample]]:
    """Divide images into training and validation by a hash of their names.

    An image stays in its split when other images are added or the folder is moved. The copies of
    one image that Roboflow makes (``NAME_jpg.rf.HASH.jpg``) come into the same split.

    Raises:
        DataError: There are fewer than two images.
    """

    def share(sample: Sample) -> float:
        name = relative_name(sample.path, root).partition('.rf.')[0]
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'big') / 2**64

    ordered = sorted(samples, key=share)
    if len(ordered) < 2 or share(ordered[0]) == share(ordered[-1]):
        raise DataError(
            f"'{root}' has no validation images, and {len(ordered)} training images are too few to "
            'take some from; add images'
        )
    val = [sample for sample in samples if share(sample) < VAL_SHARE]
    if not val or len(val) == len(samples):
        middle = share(ordered[0] if not val else ordered[-1])
        val = [s for s in samples if (share(s) <= middle if not val else share(s) < middle)]
    chosen = {id(sample) for sample in val}
    return [sample for sample in samples if id(sample) not in chosen], val


def relative_name(path: Path, root: Path) -> str:
    """Return a path relative to the data folder if it lies there, else the absolute path."""
    full = Path(os.path.abspath(path))
    folder = os.path.abspath(root)
    return (full.relative_to(folder) if full.is_relative_to(folder) else full).as_posix()


def image_size(path: Path) -> tuple[int, int] | None:
    """Return width and height of an image as displayed, with its EXIF rotation applied.

    Only the header is read. None means that the file is not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION) in TURNED
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError):  # all from broken headers
        return None
    return (height, width) if turned else (width, height)


@functools.lru_cache(maxsize=1024)
def images_in(folder: Path) -> Mapping[str, Path]:
    """Return the images of a folder by name, and by name without suffix."""
    if not folder.is_dir():
        return {}
    files = sorted(f for f in folder.iterdir() if is_image(f))
    return {**{file.stem: file for file in reversed(files)}, **{file.name: file for file in files}}


def is_image(file: Path) -> bool:
    """Return whether a file has the suffix of an image and is not hidden."""
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith('.')


def _side(value: Any) -> int:
    """Return a side of an image in pixels, or 0 if a file does not give it."""
    try:
        return max(int(float(value)), 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def numbers(values: Iterable[Any], file: Path, place: str) -> list[float]:
    """Return values as finite numbers.

    Raises:
        DataError: A value is missing or not a finite number.
    """
    found = []
    for value in values:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(
                f"'{file}', {place}: {value!r} is not a finite number; correct or remove the object"
            )
        found.append(number)
    return found


def polygon_area(polygon: Sequence[float]) -> float:
    """Return the area of a polygon ``[x, y, x, y, ...]``, in pixels."""
    x, y = polygon[::2], polygon[1::2]
    return abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))) / 2


def bounds(points: Sequence[float]) -> list[float]:
    """Return the corners ``[x1, y1, x2, y2]`` of the box around points ``[x, y, x, y, ...]``."""
    return [min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])]


def read_xml(file: Path) -> ElementTree.Element:
    """Read an XML file. The tags are without their namespaces.

    ElementTree is safe for a stranger's file: its parser, expat, opens no external entity, and
    since version 2.4.1 it stops when nested entities grow too much.

    Raises:
        DataError: The file is not valid XML.
    """
    try:
        tree = ElementTree.fromstring(file.read_bytes())
    except OSError as error:
        raise DataError(f"'{file}' cannot be read: {error}") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise DataError(f"'{file}' is not valid XML ({error}); export it again") from None
    for element in tree.iter():
        element.tag = _local(element.tag)
    return tree


def _local(tag: str) -> str:
    return tag.rpartition('}')[2]  # {NAMESPACE}TAG


def root_tag(file: Path) -> str:
    """Return the tag of the first element of an XML file, or an empty string."""
    try:
        with open(file, 'rb') as stream:
            for _, element in ElementTree.iterparse(stream, events=('start',)):
                return _local(element.tag)
    except (OSError, ElementTree.ParseError, LookupError, ValueError):
        pass
    return ''
