"""Pascal VOC: one XML file per image, in ``Annotations`` or beside the images."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from ...errors import DataError
from ..coco import read_text
from ..images import with_slashes
from .samples import (
    UNSPLIT,
    Content,
    Sample,
    Source,
    images_in,
    is_image,
    numbers,
    read_xml,
    root_tag,
    split_of,
)

LOOKED = 'Annotations/*.xml or *.xml beside the images (Pascal VOC)'
IMAGE_FOLDERS = ('JPEGImages', 'images', 'Images', 'imgs', '')
FLAG = re.compile(r'\s+-?[01]$')
CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def find(source: Source) -> list[Path]:
    """Return the first annotation file."""
    files = source.with_suffix('.xml')
    # files of other formats are few
    return next(([file] for file in files[:20] if root_tag(source.root / file) == 'annotation'), [])


def read(source: Source) -> Content:
    """Read a Pascal VOC data set."""
    content = Content()
    folders: dict[Path, list[Path]] = {}
    for file in source.with_suffix('.xml'):
        folder = file.parent
        while folder.name and 'Annotations' in folder.parts:  # also Annotations/train
            folder = folder.parent
        folders.setdefault(folder, []).append(file)
    for folder, files in folders.items():
        stems = {_stem(file, folder) for file in files}
        listed = dict(_listed(source.root / folder / 'ImageSets' / 'Main', stems))
        has_lists = bool(listed)
        for file in files:
            split = listed.pop(_stem(file, folder), None) if has_lists else split_of(file)
            if split is None:
                source.notes.add('annotation files are in no list of ImageSets/Main', file.name)
                if image := _image(source.root, file, folder, ''):
                    content.add('unlisted', Sample(image, (0, 0)))
            elif (sample := _sample(source, file, folder, split)) is not None:
                content.add(split, sample, file)
        if listed:
            missing = ', '.join(sorted(listed)[:5])
            raise DataError(
                f"'{source.root / folder / 'ImageSets' / 'Main'}' lists {len(listed)} images "
                f'without an annotation file ({missing}); add Annotations/NAME.xml, or remove them '
                'from the list'
            )
    content.sort_classes()
    return content


def _stem(file: Path, folder: Path) -> str:
    parts = file.with_suffix('').relative_to(folder).parts
    return '/'.join(parts[1:] if parts[0] == 'Annotations' else parts)


def _listed(folder: Path, stems: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the names in the lists, each with its split. trainval is used without the others.

    Args:
        folder: Folder of the lists.
        stems: Names of the annotation files.
    """
    lists = {name: folder / f'{name}.txt' for name in ('train', 'val', 'test')}
    if not lists['train'].is_file():
        lists = {UNSPLIT: folder / 'trainval.txt', 'test': lists['test']}
    for split, file in lists.items():
        for line in read_text(file).splitlines() if file.is_file() else ():
            if name := with_slashes(line):
                yield next((n for n in _meant(name) if n in stems), name), split


def _meant(line: str) -> Iterator[str]:
    """Yield the names that a line of a list may mean.

    Lists can have a flag after the name, as the lists of a class in the challenge, the suffix of
    the image, and its folder.
    """
    for name in (line, FLAG.sub('', line)):
        yield name
        path = PurePosixPath(name)
        path = path.with_suffix('') if is_image(Path(name)) or path.suffix == '.xml' else path
        for start in range(len(path.parts)):
            yield '/'.join(path.parts[start:])


def _sample(source: Source, file: Path, folder: Path, split: str) -> Sample | None:
    path = source.root / file
    tree = read_xml(path)
    if tree.tag != 'annotation':
        return None
    name = with_slashes(tree.findtext('filename') or '')
    image = _image(source.root, file, folder, name) or source.find(name, file, split)
    if image is None:
        raise DataError(
            f"'{path}': image '{tree.findtext('filename')}' does not exist; put '{file.stem}.jpg' "
            f"into '{source.root / folder / 'JPEGImages'}' or beside the annotation file"
        )
    sample = source.sample(image, [tree.findtext(f'size/{side}') for side in ('width', 'height')])
    for number, found in enumerate(tree.iterfind('object') if sample else (), 1):
        assert sample is not None
        place = f'object {number}'
        box = found.find('bndbox')
        if box is None:
            source.notes.add('objects without a box were left out', f'{file.name}, {place}')
            continue
        corners = numbers((box.findtext(corner) for corner in CORNERS), path, place)
        if _counts_from_one(tree):
            corners = [corners[0] - 1, corners[1] - 1, *corners[2:]]
        elif corners[0] > corners[2] or corners[1] > corners[3]:
            source.notes.add('boxes had swapped corners', f'{file.name}, {place}')
        difficult = (found.findtext('difficult') or '0').strip() == '1'
        place = f'{file.name}, {place}'
        if difficult:
            kind = "difficult objects became crowds, which as in VOC's evaluation do not count"
            source.notes.add(kind, place)
        label = (found.findtext('name') or '').strip()
        source.add_object(sample, label, corners, place, iscrowd=int(difficult))
    return sample


def _counts_from_one(tree: ElementTree.Element) -> bool:
    """Return whether the corners are pixels that count from 1, as in the data of the challenge.

    Annotation programs write coordinates that start at 0, and another database.
    """
    return (tree.findtext('source/database') or '').strip().startswith('The VOC')


def _image(root: Path, file: Path, folder: Path, name: str) -> Path | None:
    """Return the image of an annotation file: the one of the same name, else the named one."""
    inner = Path(_stem(file, folder)).parent
    places = [root / folder / place / inner for place in IMAGE_FOLDERS]
    places += [(root / file).parent, *(root / folder / place for place in IMAGE_FOLDERS)]
    for wanted in (file.stem, Path(name).name, Path(name).stem):
        for place in places:
            if wanted in images_in(place):
                return images_in(place)[wanted]
    return None
