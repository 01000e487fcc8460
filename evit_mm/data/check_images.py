"""A look at folders of images by class before anything long starts.

mmpretrain numbers classes in the order of their folders' names, in each split by itself: a class
that only one split has shifts all labels after it, and nothing fails. Here it is named.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .dataset_configs import find_datasets
from .images import NUM_DECODED, UNDECODABLE, read_image, some, split_tolerated, spread

SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')  # mmpretrain's
TYPES = ('ImageNet', 'CustomDataset')  # mmpretrain's data sets of image folders or lists
NUM_FOUND = 100  # images of a list whose files are looked for


def image_data_faults(cfg: Config, splits: Sequence[str]) -> list[str]:
    """Return what is wrong with the image folders or lists that a classification config reads.

    Args:
        cfg: The config; only ``ImageNet`` and ``CustomDataset`` of mmpretrain on local disks are
            looked at, inside wrappers too.
        splits: Of ``train``, ``val`` and ``test``.

    Returns:
        Faults that must be mended; each begins with its split.
    """
    faults: list[str] = []
    for split in splits:
        for dataset in find_datasets(cfg, split, *TYPES):
            found = _dataset_faults(dataset, _num_classes(cfg), f'{split}_dataloader.dataset')
            if not found and split != 'train':
                found = [*_order_faults(cfg, dataset), *_topk_faults(cfg, split)]
            found, _ = split_tolerated(cfg, split, found)
            faults += [f'{split}: {fault}' for fault in found]
    return list(dict.fromkeys(faults))


def _num_classes(cfg: Config) -> int | None:
    head = cfg.model.get('head')
    return head.get('num_classes', 1000) if isinstance(head, Mapping) else None


def _folder(dataset: Mapping[str, Any]) -> Path:
    prefix = dataset.get('data_prefix') or dataset.get('split') or ''
    if isinstance(prefix, Mapping):
        prefix = prefix.get('img_path') or ''
    return Path(dataset.get('data_root') or '', prefix).expanduser()


def _list_file(dataset: Mapping[str, Any]) -> Path | None:
    """Return the file that lists images and labels, or None where folders are the classes."""
    root = Path(dataset.get('data_root') or '').expanduser()
    if dataset.get('ann_file'):
        return root / dataset['ann_file']
    meta = root / 'meta' / f'{dataset.get("split")}.txt'  # ImageNet's own, which it looks for
    return meta if meta.is_file() else None


def _dataset_faults(dataset: Mapping[str, Any], num_classes: int | None, field: str) -> list[str]:
    folder, list_file = _folder(dataset), _list_file(dataset)
    if not folder.is_dir():
        return [
            f"image folder '{folder}' does not exist; set {field}.data_root and data_prefix, or "
            'lay images out as DATA_ROOT/{train,val}/CLASS/IMAGE'
        ]
    if list_file is not None:
        return _list_faults(list_file, folder, num_classes)
    classes = _class_folders(folder)
    if not classes:
        return [f"'{folder}' has no folder per class; lay images out as {folder}/CLASS/IMAGE"]
    samples = {name: next(_images(folder / name), None) for name in classes}
    empty = [name for name in classes if samples[name] is None]
    if empty:
        return [
            f"'{folder}': no image ({', '.join(SUFFIXES)}) of {some(empty)}; add images, or "
            'remove the folders in every split'
        ]
    named = (dataset.get('metainfo') or {}).get('classes')
    if named is None and str(dataset['type']).endswith('ImageNet'):
        named = range(1000)
    if named is not None and not isinstance(named, str) and len(named) != len(classes):
        return [
            f"'{folder}' has {len(classes)} class folders, but {field} of type {dataset['type']} "
            f'names {len(named)} classes; for classes of your own set {field}.type=CustomDataset'
        ]
    if num_classes not in (None, len(classes)):
        return [
            f"model.head.num_classes is {num_classes} but '{folder}' has {len(classes)} class "
            f'folders; set model.head.num_classes={len(classes)}'
        ]
    return _decoding_faults([samples[name] for name in classes])


def _list_faults(list_file: Path, folder: Path, num_classes: int | None) -> list[str]:
    if not list_file.is_file():
        return [f"list '{list_file}' does not exist; check data_root and ann_file"]
    lines = list_file.read_text(encoding='utf-8').splitlines()
    rows = [line.strip().rsplit(' ', 1) for line in lines]
    wrong = [i for i, row in enumerate(rows, 1) if len(row) != 2 or not row[1].isdecimal()]
    if wrong or not rows:
        what = f'its lines {some(wrong)} are not' if wrong else 'it is empty, lines must be'
        return [f"'{list_file}': {what} 'IMAGE LABEL', the label a number from 0; mend them"]
    top = max(int(label) for _, label in rows)
    if num_classes is not None and top >= num_classes:
        return [
            f"'{list_file}' has the label {top} but model.head.num_classes is {num_classes}; set "
            f'model.head.num_classes={top + 1}, or more'
        ]
    missing = [name for name, _ in spread(rows, NUM_FOUND) if not (folder / name).exists()]
    if missing:
        return [f"'{list_file}' names images that '{folder}' lacks ({some(missing)}); copy them"]
    return _decoding_faults([folder / name for name, _ in rows])


def _decoding_faults(paths: Sequence[Any]) -> list[str]:
    return [
        f"image '{path}' {UNDECODABLE}; replace or remove it"
        for path in spread(paths, NUM_DECODED)
        if read_image(path) is None
    ]


def _order_faults(cfg: Config, dataset: Mapping[str, Any]) -> list[str]:
    """Compare with the training folders, where they are here and both go by folders."""
    train = list(find_datasets(cfg, 'train', *TYPES))
    if len(train) != 1 or _list_file(train[0]) or _list_file(dataset):
        return []
    folder, train_folder = _folder(dataset), _folder(train[0])
    trained, found = set(_class_folders(train_folder)), set(_class_folders(folder))
    if not trained or trained == found:
        return []
    names = some(sorted(trained ^ found))
    return [
        f"'{folder}' and '{train_folder}' differ in their class folders ({names}),"
        ' so the same label would mean different classes; make them the same'
    ]


def _topk_faults(cfg: Config, split: str) -> list[str]:
    evaluators = cfg.get(f'{split}_evaluator') or []
    evaluators = [evaluators] if isinstance(evaluators, Mapping) else evaluators
    number = _num_classes(cfg)
    for evaluator in evaluators:
        topk = evaluator.get('topk')
        top = topk if isinstance(topk, int) else max(topk or (1,))
        if number is not None and top > number:
            return [
                f'{split}_evaluator asks for top-{top} accuracy of {number} classes; set '
                f'{split}_evaluator.topk=1'
            ]
    return []


def _class_folders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def _images(folder: Path) -> Iterator[Path]:
    """Yield images as they are found, since the first of a folder of thousands is enough."""
    subfolders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                subfolders.append(Path(entry.path))
            # mmengine skips hidden files, such as those that macOS leaves
            elif entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith('.'):
                yield Path(entry.path)
    for subfolder in subfolders:
        yield from _images(subfolder)
