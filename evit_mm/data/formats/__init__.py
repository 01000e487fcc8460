"""Recognise the format of a data folder, and convert it to COCO's.

The converted files are in ``DIR/.evit_mm``: ``instances_train.json``, ``instances_val.json`` and
``source.json``, which says what they were made from. The images stay where they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ...errors import DataError
from ...utils.files import read_json_dict, write_json
from ..coco import read_json
from . import coco_json, cvat, label_studio, labelme, voc, yolo
from .samples import (
    UNSPLIT,
    Content,
    Sample,
    Source,
    divide,
    images_in,
    is_image,
    listed_once,
    relative_name,
    split_of,
)

CACHE = '.evit_mm'
RECORD = 'source.json'
OUTPUT = 'work_dirs'  # of trainings that were started in the data folder
LOG, LAST = 'vis_data', 'last_checkpoint'  # of mmengine
VERSION = 3  # of the converted files; increase it when a reader changes what it returns
READ = ('.json', '.xml', '.yaml', '.yml', '.txt', '.data', '.names')  # besides the images
SNIFFED = 5  # JSON files per folder that are opened to recognise a format
JSON_KINDS = {
    'COCO': coco_json.is_coco,
    'LabelMe': labelme.is_labelme,
    'Label Studio': label_studio.is_label_studio,
}
LOOKED = ', '.join(kind.LOOKED for kind in (coco_json, yolo, voc, cvat, labelme, label_studio))


@dataclass(frozen=True)
class Recognised:
    """The format of a data folder.

    Attributes:
        name: Name of the format.
        files: The files that show it, relative to the folder.
        read: Function that reads the folder.
    """

    name: str
    files: list[Path]
    read: Callable[[Source], Content]


def scan(root: Path) -> Source:
    """List the files of a data folder, without hidden files and folders, and without trainings.

    Raises:
        DataError: The folder does not exist.
    """
    if root.is_file():
        raise DataError(f"data set '{root}' is a file; give the folder that contains it")
    if not root.is_dir():
        raise DataError(f"data set '{root}' does not exist; give the folder with its annotations")
    return Source(root, tuple(sorted(_visible(root))))


def _visible(root: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(root, followlinks=True):
        if Path(parent) != root and _is_training(folders, names):
            folders.clear()
            continue
        above = {os.path.realpath(path) for path in [Path(parent), *Path(parent).parents]}
        folders[:] = [
            name
            for name in folders
            if not name.startswith('.')
            and name != OUTPUT
            and os.path.realpath(os.path.join(parent, name)) not in above  # a link would not end
        ]
        inner = Path(parent).relative_to(root)
        for name in names:
            file = inner / name
            if not name.startswith('.') and (is_image(file) or file.suffix.lower() in READ):
                yield file


def _is_training(folders: list[str], names: list[str]) -> bool:
    """Return whether a folder with this content is the work dir of a training, or one of its logs.

    Its JSON files and pictures are no data.
    """
    suffixes = {os.path.splitext(name)[1] for name in names}
    return LOG in folders or LAST in names or {'.pth', '.py'} <= suffixes


def recognise(source: Source) -> Recognised:
    """Return the format of a data folder.

    Raises:
        DataError: No format fits, or several.
    """
    found = []
    jsons, broken = _sniff_jsons(source)
    if coco := coco_json.choose(jsons.get('COCO', [])):
        found.append(Recognised('COCO', coco, lambda s: coco_json.read(s, coco)))
    for name, kind in {'YOLO': yolo, 'Pascal VOC': voc, 'CVAT': cvat}.items():
        if files := kind.find(source):
            found.append(Recognised(name, files, kind.read))
    if files := jsons.get('LabelMe'):
        found.append(Recognised('LabelMe', files[:1], labelme.read))
    if studio := jsons.get('Label Studio'):
        read = label_studio.read
        found.append(Recognised('Label Studio', studio, lambda s: read(s, studio)))
    if len(found) > 1:
        kinds = ' and '.join(f"{kind.name} ('{kind.files[0]}')" for kind in found)
        raise DataError(
            f"'{source.root}' fits several formats: {kinds}; move all but one to another folder"
        )
    if not found:
        if broken:
            raise broken[0]
        raise DataError(
            f"'{source.root}' has no annotations in a known format (looked for {LOOKED}); arrange "
            'the data like one of these'
        )
    return found[0]


def _sniff_jsons(source: Source) -> tuple[dict[str, list[Path]], list[DataError]]:
    """Return the JSON files of each format near the root, and errors of broken ones."""
    found: dict[str, list[Path]] = {}
    broken: list[DataError] = []
    opened: dict[Path, int] = {}
    files = [file for file in source.with_suffix('.json') if len(file.parts) <= 3]
    known = [file for file in files if coco_json.has_usual_name(file)]
    if known:
        found['COCO'] = known
    for file in files:
        # COCO's files can be large, so those beside a file with a usual name are not opened
        if file.parent in {f.parent for f in known} or opened.get(file.parent, 0) >= SNIFFED:
            continue
        opened[file.parent] = opened.get(file.parent, 0) + 1
        try:
            content = read_json(source.root / file)
        except DataError as error:
            broken.append(error)
            continue
        kind = next((name for name, test in JSON_KINDS.items() if test(content)), '')
        found.setdefault(kind, []).append(file)
        if label_studio.is_minimal(content):
            text = f"'{source.root / file}' is Label Studio's JSON-MIN; export the project as JSON"
            broken.append(DataError(text))
    return found, broken


def convert(source: Source, recognised: Recognised) -> tuple[list[Path], list[str]]:
    """Convert a data folder to COCO's format, unless the cache has it.

    Args:
        source: Files of the folder.
        recognised: Their format.

    Returns:
        The annotation files for training and for validation, and sentences on what was left out.

    Raises:
        DataError: A file has errors, or the cache cannot be written.
    """
    kept = _kept(source, recognised)
    if kept is not None:  # also in a folder that cannot be written
        return kept
    folder = source.root / CACHE
    try:
        folder.mkdir(exist_ok=True)
        with FileLock(folder / '.lock'):  # the processes of a distributed training come together
            kept = _kept(source, recognised)
            return _convert(source, recognised) if kept is None else kept
    except OSError as error:
        raise DataError(
            f"the converted annotations cannot be written to '{folder}' ({error.strerror}); make "
            f"'{source.root}' writable, or copy the data set"
        ) from None


def _files(source: Source) -> dict[str, Path]:
    folder = source.root / CACHE
    return {split: folder / f'instances_{split}.json' for split in ('train', 'val')}


def _kept(source: Source, recognised: Recognised) -> tuple[list[Path], list[str]] | None:
    """Return an earlier conversion if its files have not changed since."""
    files = [*_files(source).values()]
    record = read_json_dict(source.root / CACHE / RECORD)
    if not all(file.is_file() for file in files) or 'notes' not in record:
        return None
    same = record.get('digest') == _digest(source, recognised, record.get('outside', []))
    return (files, record['notes']) if same else None


def _convert(source: Source, recognised: Recognised) -> tuple[list[Path], list[str]]:
    images_in.cache_clear()
    content = recognised.read(source)
    _split(content, source)
    outside = sorted(source.outside)
    for path in filter(lambda path: is_image(Path(path)), outside):
        source.notes.add('images are outside the data folder', path)
    note_unused(source, recognised.name, content)
    notes = source.notes.sentences()
    _check_content(content, source.root)
    files = _files(source)
    record = source.root / CACHE / RECORD
    record.unlink(missing_ok=True)  # until both files are there
    for split, file in files.items():
        write_json(file, _as_coco(content.splits[split], content.classes, source.root))
    digest = _digest(source, recognised, outside)
    write_json(record, {'digest': digest, 'outside': outside, 'notes': notes})
    return [*files.values()], notes


def note_unused(source: Source, kind: str, content: Content) -> None:
    """Note the files of a test split, and images without an annotation.

    Args:
        source: Files of the folder.
        kind: Name of the format.
        content: What was read.
    """
    named: dict[str, str] = {}
    for split, samples in content.splits.items():
        named |= {relative_name(sample.path, source.root): split for sample in samples}
    for file in source.files:
        if not is_image(file):
            if coco_json.has_usual_name(file) and coco_json.split_of_file(file) == 'test':
                source.notes.add('annotation files of the test split are not used', file)
        elif named.get(file.as_posix(), split_of(file)) == 'test':
            source.notes.add('images of the test split are not used', file)
        elif file.as_posix() not in named and kind not in ('COCO', 'YOLO'):
            # in these two, other images are not part of the data
            source.notes.add('images have no annotation and were left out', file)


def _split(content: Content, source: Source) -> None:
    """Take each image of a split once, and make a validation split if there is none."""
    unsplit = content.splits.pop(UNSPLIT, [])
    content.splits['train'] = [*content.splits.get('train', []), *unsplit]
    for split in ('train', 'val'):
        content.splits[split] = listed_once(content.splits.get(split, []), source)
    if not content.splits['val']:
        if not content.splits['train']:
            return
        train, val = divide(content.splits['train'], source.root)
        content.splits.update(train=train, val=val)
        source.notes.say(
            f'no validation split found; {len(val)} of {len(train) + len(val)} images were taken '
            'for validation by a hash of their names'
        )


def _check_content(content: Content, root: Path) -> None:
    for split in ('train', 'val'):
        if not content.splits.get(split):
            raise DataError(f"'{root}' has no images for the split '{split}'; add some")
    if not content.classes:
        raise DataError(f"'{root}' has no object with a class and a box; add some")


def _digest(source: Source, recognised: Recognised, outside: list[str]) -> str:
    """Return a hash of the names, sizes and times of all files that a conversion reads."""
    digest = hashlib.sha256(f'{VERSION} {recognised.name}'.encode())
    for path in (*(source.root / file for file in source.files), *map(Path, outside)):
        stat = path.stat() if path.exists() else None
        about = (relative_name(path, source.root), stat and stat.st_size, stat and stat.st_mtime_ns)
        digest.update(json.dumps(about).encode())
    return digest.hexdigest()


def _as_coco(samples: list[Sample], classes: list[str], root: Path) -> Mapping[str, Any]:
    """Return images and objects in COCO's format, with paths relative to the data folder."""
    ids = {name: number for number, name in enumerate(classes, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, sample in enumerate(samples, 1):
        name = relative_name(sample.path, root)
        width, height = sample.size
        images.append({'id': number, 'file_name': name, 'width': width, 'height': height})
        for found in sample.objects:
            rest = {key: value for key, value in found.items() if key != 'name'}
            known = {'image_id': number, 'category_id': ids[found['name']]}
            annotations.append({'id': len(annotations) + 1, **known, **rest})
    categories = [{'id': number, 'name': name} for name, number in ids.items()]
    return {'images': images, 'annotations': annotations, 'categories': categories}
