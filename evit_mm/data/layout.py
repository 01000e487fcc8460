"""Find the annotation files and image folders of a COCO-format data set."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .coco import read_coco


@dataclass(frozen=True)
class CocoSplit:
    """An annotation file and its image folder."""

    ann_file: Path
    img_dir: Path
    classes: tuple[str, ...]  # in the order of the file
    num_images: int
    num_boxes: dict[str, int]  # per class, without crowds
    first_image: Path
    first_size: tuple[int, int]  # width, height


def find_splits(root: str | Path) -> tuple[CocoSplit, CocoSplit]:
    """Find the training and the validation split of a COCO-format data set.

    The annotation files are ``annotations/instances_{train,val}.json`` or
    ``annotations/instances_{train,val}2017.json``. The images are in a folder named after the
    split, in ``images/``, or in ``root`` itself.

    Raises:
        DataError: A file or folder is missing, or the splits have different categories.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            f"data set '{root}' does not exist; give the folder that contains annotations/"
        )
    train, val = _find(root, 'train'), _find(root, 'val')
    if train.classes != val.classes:
        raise DataError(
            f"'{train.ann_file}' has the categories {train.classes}, but '{val.ann_file}' has "
            f'{val.classes}; use the same categories in the same order in both files'
        )
    return train, val


def _find(root: Path, split: str) -> CocoSplit:
    names = [f'instances_{split}.json', f'instances_{split}2017.json']
    files = [root / 'annotations' / name for name in names]
    ann_file = next((file for file in files if file.is_file()), None)
    if ann_file is None:
        raise DataError(
            f"'{root}' has no {split} annotations; add {names[0]} or {names[1]} to "
            f"'{root / 'annotations'}'"
        )
    coco = read_coco(ann_file)
    images = coco['images']
    classes = {category['id']: category['name'] for category in coco['categories']}
    first = images[0]
    stem = ann_file.stem.removeprefix('instances_')
    folders = [root / stem, root / 'images' / stem, root / 'images', root]
    img_dir = next((f for f in folders if (f / first['file_name']).is_file()), None)
    if img_dir is None:
        looked = ', '.join(f"'{folder}'" for folder in folders)
        raise DataError(
            f"image '{first['file_name']}' of '{ann_file}' does not exist; put the images in one "
            f'of the folders {looked}'
        )
    boxes = Counter(a['category_id'] for a in coco['annotations'] if not a['iscrowd'])
    return CocoSplit(
        ann_file=ann_file,
        img_dir=img_dir,
        classes=tuple(classes.values()),
        num_images=len(images),
        num_boxes={name: boxes[identity] for identity, name in classes.items()},
        first_image=img_dir / first['file_name'],
        first_size=(first['width'], first['height']),
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
