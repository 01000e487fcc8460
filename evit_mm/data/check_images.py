"""Check data sets with one image folder per class before a training or test run starts.

In each split, mmpretrain numbers the classes in the order of their folder names. If one split has
an additional class folder, all later labels shift without an error. This check reports it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import DataError
from .dataset_configs import find_datasets
from .images import NUM_DECODED, UNDECODABLE, some, spread
from .pipeline import ImageReader

SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')  # supported by mmpretrain
TYPES = ('ImageNet', 'CustomDataset')  # mmpretrain's data sets of image folders or image lists


def image_data_faults(cfg: Config, split: str) -> list[str]:
    """Return the errors in the image folders of one split of a classifier config."""
    head = cfg.model.get('head')
    num_classes = head.get('num_classes', 1000) if isinstance(head, Mapping) else None
    faults: list[str] = []
    for dataset in find_datasets(cfg, split, *TYPES):
        found = _folder_faults(dataset, num_classes, f'{split}_dataloader.dataset')
        if not found and split != 'train':
            found = [*_order_faults(cfg, dataset), *_topk_faults(cfg, split, num_classes)]
        faults += found
    return faults


def image_folder(dataset: Mapping[str, Any]) -> Path:
    """Return the folder with the images of a data set of mmpretrain."""
    prefix = dataset.get('data_prefix') or dataset.get('split') or ''
    if isinstance(prefix, Mapping):
        prefix = prefix.get('img_path') or ''
    return Path(dataset.get('data_root') or '', prefix).expanduser()


def _list_file(dataset: Mapping[str, Any]) -> Path | None:
    """Return the file with the labels, or None if the folders define the labels."""
    root = Path(dataset.get('data_root') or '').expanduser()
    if dataset.get('ann_file'):
        return root / dataset['ann_file']
    meta = root / 'meta' / f'{dataset.get("split")}.txt'  # the default of ImageNet
    return meta if meta.is_file() else None


def _folder_faults(dataset: Mapping[str, Any], num_classes: int | None, field: str) -> list[str]:
    folder = image_folder(dataset)
    if not folder.is_dir():
        return [
            f"image folder '{folder}' does not exist; set {field}.data_root and data_prefix, or "
            'arrange the images as DATA_ROOT/{train,val}/CLASS/IMAGE'
        ]
    list_file = _list_file(dataset)
    if list_file is not None:
        missing = f"image list '{list_file}' does not exist; check data_root and ann_file"
        return [] if list_file.is_file() else [missing]
    classes = _class_folders(folder)
    if not classes:
        return [f"'{folder}' has no class folders; arrange the images as {folder}/CLASS/IMAGE"]
    samples = {name: _first_image(folder / name) for name in classes}
    empty = [name for name, sample in samples.items() if sample is None]
    if empty:
        return [
            f"'{folder}': no image ({', '.join(SUFFIXES)}) in {some(empty)}; add images, or "
            'remove these folders from every split'
        ]
    if num_classes not in (None, len(classes)):
        return [
            f"model.head.num_classes is {num_classes} but '{folder}' has {len(classes)} class "
            f'folders; set model.head.num_classes={len(classes)}'
        ]
    return list(_decoding_faults(dataset, [path for path in samples.values() if path]))


def _decoding_faults(dataset: Mapping[str, Any], images: Sequence[Path]) -> Iterator[str]:
    read = ImageReader(dataset.get('pipeline') or ())
    for path in spread(images, NUM_DECODED):
        try:
            read(path)
        except DataError as error:
            reason = str(error).partition(UNDECODABLE)[2]
            yield f"image '{path}' {UNDECODABLE}{reason}; replace or remove it"


def _order_faults(cfg: Config, dataset: Mapping[str, Any]) -> Iterator[str]:
    """Compare with the training folders if the folders define the labels of both splits."""
    train = list(find_datasets(cfg, 'train', *TYPES))
    if len(train) != 1 or _list_file(train[0]) or _list_file(dataset):
        return
    folder, train_folder = image_folder(dataset), image_folder(train[0])
    trained, found = set(_class_folders(train_folder)), set(_class_folders(folder))
    if trained and trained != found:
        yield (
            f"'{folder}' and '{train_folder}' have different class folders "
            f'({some(sorted(trained ^ found))}), so the same label would mean different classes; '
            'use the same class folders in both'
        )


def _topk_faults(cfg: Config, split: str, num_classes: int | None) -> Iterator[str]:
    evaluators = cfg.get(f'{split}_evaluator') or []
    for evaluator in [evaluators] if isinstance(evaluators, Mapping) else evaluators:
        topk = evaluator.get('topk') or 1
        top = topk if isinstance(topk, int) else max(topk)
        if num_classes is not None and top > num_classes:
            yield (
                f'{split}_evaluator computes the top-{top} accuracy of only {num_classes} '
                f'classes; set {split}_evaluator.topk=1'
            )


def _class_folders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def _first_image(folder: Path) -> Path | None:
    for parent, _, names in os.walk(folder):
        for name in names:
            # mmengine skips hidden files, for example those that macOS creates
            if name.lower().endswith(SUFFIXES) and not name.startswith('.'):
                return Path(parent, name)
    return None
