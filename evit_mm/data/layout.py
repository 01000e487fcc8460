"""Find the annotation files and the images of a data folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .coco import read_coco, rotation_of
from .formats import convert, note_unused, recognise, scan
from .formats.coco_json import grouping_classes, image_folders, own_file
from .formats.samples import Content


@dataclass(frozen=True)
class CocoSplit:
    """An annotation file and its image folder."""

    ann_file: Path
    img_dir: Path
    classes: tuple[str, ...]  # in the order of the file
    num_images: int
    num_boxes: dict[str, int]  # per class, without crowds
    first_image: Path
    sizes: tuple[tuple[int, int], ...]  # width and height of each image


@dataclass(frozen=True)
class DataFolder:
    """What a data folder contains.

    Attributes:
        format: Name of its format, for example ``'YOLO'``.
        train: Training split.
        val: Validation split.
        notes: Sentences on what the conversion to COCO's format left out or changed.
    """

    format: str
    train: CocoSplit
    val: CocoSplit
    notes: tuple[str, ...] = ()


def find_data(root: str | Path) -> DataFolder:
    """Recognise the format of a data folder, and find its training and validation split.

    COCO's own layout is read as it is: ``annotations/instances_{train,val}.json`` or
    ``annotations/instances_{train,val}2017.json``, with the images in a folder named after the
    split, in ``images/``, or in ``root`` itself, if nothing of it needs a change. Everything else
    is converted once. See :mod:`evit_mm.data.formats`.

    Raises:
        DataError: The format is not known or not clear, or a file has errors.
    """
    root = Path(root)
    source = scan(root)
    recognised = recognise(source)
    train, val = (own_file(source.files, split) for split in ('train', 'val'))
    if recognised.name == 'COCO' and train and val:
        contents = {root / file: read_coco(root / file) for file in (train, val)}
        found = [_find(root, file, coco) for file, coco in contents.items()]
        own = [split for split in found if split is not None]
        annotations = [a for coco in contents.values() for a in coco['annotations']]
        changed = grouping_classes(list(contents.values())) or any(map(rotation_of, annotations))
        if len(own) == 2:
            _check_classes(*own)
        if len(own) == 2 and own[0].classes == own[1].classes and not changed:
            note_unused(source, 'COCO', Content())
            return DataFolder('COCO', own[0], own[1], tuple(source.notes.sentences()))
    converted, notes = convert(source, recognised)
    splits = [_in_folder(root, file, read_coco(file)) for file in converted]
    return DataFolder(recognised.name, splits[0], splits[1], tuple(notes))


def _check_classes(train: CocoSplit, val: CocoSplit) -> None:
    """Refuse splits of which each has a class that the other lacks: one name is wrong."""
    if {*train.classes} - {*val.classes} and {*val.classes} - {*train.classes}:
        raise DataError(
            f"'{train.ann_file}' has the categories {train.classes}, but '{val.ann_file}' has "
            f'{val.classes}; use the same names in both files'
        )


def _find(root: Path, ann_file: Path, coco: dict[str, Any]) -> CocoSplit | None:
    """Return a split in COCO's own layout, if one folder has all of its images."""
    names = [image['file_name'] for image in coco['images']]
    folders = [root / folder for folder in image_folders(ann_file.relative_to(root))]
    img_dir = next((f for f in folders if all((f / name).is_file() for name in names)), None)
    return None if img_dir is None else _in_folder(img_dir, ann_file, coco)


def _in_folder(img_dir: Path, ann_file: Path, coco: dict[str, Any]) -> CocoSplit:
    images, first = coco['images'], coco['images'][0]
    classes = {category['id']: category['name'] for category in coco['categories']}
    boxes = Counter(a['category_id'] for a in coco['annotations'] if not a['iscrowd'])
    return CocoSplit(
        ann_file=ann_file,
        img_dir=img_dir,
        classes=tuple(classes.values()),
        num_images=len(images),
        num_boxes={name: boxes[identity] for identity, name in classes.items()},
        first_image=img_dir / first['file_name'],
        sizes=tuple((image['width'], image['height']) for image in images),
    )


def dataset_config(split: CocoSplit, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the ``CocoDataset`` options for the paths and classes of a split."""
    return {
        'data_root': '',
        'ann_file': str(split.ann_file),
        'data_prefix': {'img': str(split.img_dir)},
        'metainfo': {'classes': split.classes},
        'pipeline': pipeline,
    }
