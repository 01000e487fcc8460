"""A look at a COCO-format data set before anything long starts.

mmdet silently skips classes that the annotation file lacks, numbers labels in the file's order,
and drops boxes without area; each of these ends in a low AP hours later. Here they are named.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
from mmengine.config import Config
from mmengine.logging import print_log
from rich.console import Console
from rich.progress import track

from ..errors import DataError
from .images import UNDECODABLE, read_image, some, split_tolerated

NUM_DECODED = 8  # images opened per split; enough to see a systematic fault


def check_config_data(cfg: Config, splits: Sequence[str] = ('train', 'val')) -> None:
    """Check every COCO data set that a config's dataloaders read, and its evaluator's file.

    Args:
        cfg: The config; only ``CocoDataset`` on local disks is looked at, inside wrappers too.
        splits: Of ``train``, ``val`` and ``test``.

    Raises:
        DataError: Something would fail or silently go wrong; all findings are in the message.
    """
    faults, notes = config_data_faults(cfg, splits)
    for note in notes:
        print_log(note, logger='current', level=logging.WARNING)
    if faults:
        lines = '\n  '.join(faults)
        raise DataError(f'the data set does not fit ({cfg.filename}):\n  {lines}')


def config_data_faults(
    cfg: Config, splits: Sequence[str], num_decoded: int | None = NUM_DECODED
) -> tuple[list[str], list[str]]:
    """Return what :func:`check_coco` says of each data set, and where the config differs from it.

    Args:
        cfg: As in :func:`check_config_data`.
        splits: As in :func:`check_config_data`.
        num_decoded: As in :func:`check_coco`.

    Returns:
        Faults that must be mended, and notes on what will be left out; each begins with its split.
    """
    faults: list[str] = []
    notes: list[str] = []
    seen: set[str] = set()
    for split in splits:
        for dataset in coco_datasets(cfg, split):
            key = repr((dataset, split == 'train'))
            remote = any('://' in str(dataset.get(name)) for name in ('data_root', 'ann_file'))
            if key in seen or remote:
                continue
            seen.add(key)
            paths = dataset_paths(dataset)
            found, noted = check_coco(**paths, training=split == 'train', num_decoded=num_decoded)
            found, tolerated = split_tolerated(cfg, split, found)
            found += (*_num_classes_faults(cfg, dataset), *_evaluator_faults(cfg, split))
            faults += [f'{split}: {fault}' for fault in found]
            notes += [f'{split}: {note}' for note in (*noted, *tolerated)]
    return list(dict.fromkeys(faults)), notes


def coco_datasets(cfg: Config, split: str) -> Iterator[Mapping[str, Any]]:
    """Yield the configs of the ``CocoDataset`` that a split's dataloader reads, out of wrappers."""
    loader = cfg.get(f'{split}_dataloader')
    yield from _coco_datasets(loader['dataset'] if loader else None)


def check_coco(
    ann_file: str | Path,
    img_dir: str | Path,
    classes: Sequence[str] | None = None,
    training: bool = False,
    scale: tuple[int, int] | None = None,
    with_mask: bool = False,
    num_decoded: int | None = NUM_DECODED,
) -> tuple[list[str], list[str]]:
    """Check one annotation file in COCO's format and its images.

    Args:
        ann_file: JSON with ``images``, ``annotations`` and ``categories``.
        img_dir: Folder that ``file_name`` is relative to.
        classes: Names that the config trains, in its order; None for COCO's own.
        training: The file is for training, where no box at all is an error.
        scale: What images are resized to with their ratio kept, as in mmdet's Resize.
        with_mask: Masks are loaded too, so that every object needs a segmentation.
        num_decoded: Images to open, evenly chosen; None opens all of them, with a bar.

    Returns:
        Faults that must be mended, and notes on what will be left out; each is a sentence.
    """
    ann_file, img_dir = Path(ann_file), Path(img_dir)
    if not ann_file.is_file():
        return [_missing_file(ann_file)], []
    try:
        coco = json.loads(ann_file.read_text(encoding='utf-8'))
    except (ValueError, UnicodeDecodeError) as error:
        return [f"'{ann_file}' is not valid JSON ({error}); export it again"], []
    faults = _structure_faults(coco, ann_file)
    if faults:
        return faults, []
    faults += _class_faults(coco, ann_file, classes)
    faults += _reference_faults(coco, ann_file)
    faults += _image_faults(coco['images'], ann_file, img_dir, num_decoded)
    faults += _thin_faults(coco['images'], ann_file, scale)
    left_out, notes = _box_notes(coco, ann_file)
    known = {c['id'] for c in coco['categories'] if classes is None or c['name'] in classes}
    loaded = [
        a for a in coco['annotations'] if a['category_id'] in known and a['id'] not in left_out
    ]
    if with_mask:
        faults += _mask_faults(loaded, coco['images'], ann_file)
    if all(a['iscrowd'] for a in loaded):
        empty = f"'{ann_file}' has no usable box (of a class of the config, not a crowd)"
        if training:
            faults.append(f'{empty}; training needs at least one')
        else:
            notes.append(f'{empty}; every AP will be -1')
    return faults, notes


def _coco_datasets(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the CocoDataset configs inside wrappers such as RepeatDataset or ConcatDataset."""
    if isinstance(dataset, (list, tuple)):
        for item in dataset:
            yield from _coco_datasets(item)
    elif isinstance(dataset, Mapping):
        if dataset.get('type') in ('CocoDataset', 'mmdet.CocoDataset'):
            yield dataset
        for key in ('dataset', 'datasets'):
            yield from _coco_datasets(dataset.get(key))


def dataset_paths(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return what :func:`check_coco` asks for, out of a CocoDataset config."""
    root = Path(dataset.get('data_root') or '')
    prefix = (dataset.get('data_prefix') or {}).get('img', '')
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        from mmdet.datasets import CocoDataset

        classes = CocoDataset.METAINFO['classes']
    steps = [step for step in dataset.get('pipeline') or [] if step.get('type') == 'Resize']
    scale = steps[0].get('scale') if len(steps) == 1 and steps[0].get('keep_ratio') else None
    with_mask = any(step.get('with_mask') for step in dataset.get('pipeline') or [])
    return {
        'with_mask': with_mask,
        'scale': (scale, scale) if isinstance(scale, int) else scale and tuple(scale),
        'ann_file': root / (dataset.get('ann_file') or ''),
        'img_dir': root / prefix,
        'classes': classes,
    }


def _num_classes_faults(cfg: Config, dataset: Mapping[str, Any]) -> list[str]:
    classes = dataset_paths(dataset)['classes']
    if isinstance(classes, str):
        return []
    roi_head = cfg.model.get('roi_head') or {}
    heads = {
        'bbox_head': cfg.model.get('bbox_head'),
        'roi_head.bbox_head': roi_head.get('bbox_head'),
        'roi_head.mask_head': roi_head.get('mask_head'),
    }
    faults = []
    for name, head in heads.items():
        number = head.get('num_classes') if isinstance(head, Mapping) else None
        if number not in (None, len(classes)):
            faults.append(
                f'model.{name}.num_classes is {number} but the data set has {len(classes)} '
                f'classes; set model.{name}.num_classes={len(classes)}'
            )
    return faults


def _evaluator_faults(cfg: Config, split: str) -> list[str]:
    evaluator = cfg.get(f'{split}_evaluator')
    if not isinstance(evaluator, Mapping) or not evaluator.get('ann_file'):
        return []
    found = Path(evaluator['ann_file'])
    files = [
        dataset_paths(d)['ann_file'] for d in _coco_datasets(cfg[f'{split}_dataloader']['dataset'])
    ]
    if len(files) == 1 and os.path.abspath(found) != os.path.abspath(files[0]):
        return [
            f"{split}_evaluator.ann_file is '{found}' but {split}_dataloader reads '{files[0]}'; "
            f'set {split}_evaluator.ann_file={files[0]}'
        ]
    return []


def _missing_file(ann_file: Path) -> str:
    text = f"annotation file '{ann_file}' does not exist"
    if ann_file.parent.parent.name == 'coco':
        return (
            f'{text}; lay COCO 2017 out as {ann_file.parent.parent}/annotations/'
            'instances_{train,val}2017.json, train2017/ and val2017/, or try '
            'configs/retinanet_evit_m4_shapes.py, which runs without it (make train)'
        )
    if 'shapes' in str(ann_file.parent.parent.name):
        return f'{text}; draw it: python tools/make_shapes.py {ann_file.parent.parent}'
    return f'{text}; check data_root and ann_file'


def _structure_faults(coco: Any, ann_file: Path) -> list[str]:
    needed = {
        'images': ('id', 'file_name', 'width', 'height'),
        'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd'),
        'categories': ('id', 'name'),
    }
    faults = []
    for part, keys in needed.items():
        items = coco.get(part) if isinstance(coco, Mapping) else None
        if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
            faults.append(f"'{ann_file}' has no list '{part}'; it is not in COCO's format")
            continue
        for key in keys:
            lacking = sum(key not in item for item in items)
            mend = {'area': ' (width times height of the box)', 'iscrowd': ' (0)'}.get(key, '')
            if lacking:
                faults.append(f"'{ann_file}': {lacking} {part} lack '{key}'; add it{mend}")
                continue
            kind, is_kind = KINDS[key]
            wrong = [item for item in items if not is_kind(item[key])]
            if wrong:
                faults.append(
                    f"'{ann_file}': {key} of {len(wrong)} {part} is not {kind}, the first is "
                    f'{wrong[0][key]!r}; mend or remove them'
                )
    return faults


def _class_faults(
    coco: Mapping[str, Any], ann_file: Path, classes: Sequence[str] | None
) -> list[str]:
    if classes is None:
        return []
    names = [category['name'] for category in coco['categories']]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        return [f"'{ann_file}': several categories are named {some(repeated)}; rename them"]
    if isinstance(classes, str):
        return [f"metainfo.classes is the string '{classes}'; give a tuple such as ('{classes}',)"]
    missing = [name for name in classes if name not in names]
    if missing:
        return [
            f"'{ann_file}' lacks {some(missing)} of metainfo.classes, which mmdet would skip "
            f'silently; its categories are {some(names)}; set metainfo.classes to those'
        ]
    in_file_order = [name for name in names if name in classes]
    if in_file_order != list(classes):
        return [
            f"metainfo.classes is not in the order of '{ann_file}', so names would be swapped: "
            f'set metainfo.classes={tuple(in_file_order)}'
        ]
    return []


def _reference_faults(coco: Mapping[str, Any], ann_file: Path) -> list[str]:
    faults = []
    for part in ('images', 'annotations', 'categories'):
        counts = Counter(item['id'] for item in coco[part])
        repeated = [identity for identity, count in counts.items() if count > 1]
        if repeated:
            faults.append(f"'{ann_file}': {part} share the ids {some(repeated)}; make them unique")
    for key, part in (('image_id', 'images'), ('category_id', 'categories')):
        known = {item['id'] for item in coco[part]}
        wrong = [a['id'] for a in coco['annotations'] if a[key] not in known]
        if wrong:
            faults.append(
                f"'{ann_file}': annotations {some(wrong)} have a {key} that no entry of "
                f"'{part}' has; mend or remove them"
            )
    return faults


def _image_faults(
    images: Sequence[Mapping[str, Any]], ann_file: Path, img_dir: Path, num_decoded: int | None
) -> list[str]:
    if not images:
        return [f"'{ann_file}' lists no images"]
    if not img_dir.is_dir():
        return [f"image folder '{img_dir}' does not exist; check data_root and data_prefix.img"]
    present: dict[Path, set[str]] = {}
    missing = []
    for image in images:
        path = img_dir / image['file_name']
        if path.parent not in present:  # one listing per folder, not a stat per image
            folder = path.parent
            present[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
        if path.name not in present[path.parent]:
            missing.append(image['file_name'])
    if missing:
        return [
            f"'{ann_file}' names {len(missing)} of {len(images)} images that '{img_dir}' lacks "
            f'({some(missing)}); check data_prefix.img or copy them there'
        ]
    return _decoding_faults(images, ann_file, img_dir, num_decoded)


def _decoding_faults(
    images: Sequence[Mapping[str, Any]], ann_file: Path, img_dir: Path, num_decoded: int | None
) -> list[str]:
    if num_decoded is not None:
        images = images[:: max(len(images) // num_decoded, 1)][:num_decoded]
    bar = track(
        images,
        f'decoding {img_dir}',
        console=Console(stderr=True),
        disable=num_decoded is not None or not sys.stderr.isatty(),
    )
    broken, differing = [], []
    for image in bar:
        pixels = read_image(img_dir / image['file_name'])
        if pixels is None:
            broken.append(image['file_name'])
        elif pixels.shape[:2] != (image['height'], image['width']):
            size = f'{pixels.shape[1]}x{pixels.shape[0]}'
            said = f'{image["width"]}x{image["height"]}'
            differing.append(f'{image["file_name"]} is {size} but the file says {said}')
    faults = []
    if broken:
        faults.append(
            f"'{ann_file}': {len(broken)} of {len(images)} images opened in '{img_dir}' "
            f'{UNDECODABLE} ({some(broken)}); replace them or remove their entries'
        )
    if differing:
        faults.append(
            f"'{ann_file}': {len(differing)} of {len(images)} images opened in '{img_dir}' have "
            f'another size ({some(differing)}; rotated by the EXIF tag?), so boxes would not fit; '
            'mend the entries or save the images again'
        )
    return faults


def _thin_faults(
    images: Sequence[Mapping[str, Any]], ann_file: Path, scale: tuple[int, int] | None
) -> list[str]:
    if scale is None:
        return []
    thin = []
    for image in images:
        size = image['width'], image['height']
        if min(mmcv.rescale_size(size, scale)) < 1:
            thin.append(f'{image["file_name"]} ({size[0]}x{size[1]})')
    if not thin:
        return []
    return [
        f"'{ann_file}': resized to {scale}, these images are thinner than a pixel: {some(thin)}; "
        'remove them or raise the scale'
    ]


def _box_notes(coco: Mapping[str, Any], ann_file: Path) -> tuple[set[int], list[str]]:
    """Return the ids of the boxes that mmdet leaves out, and a note on each kind."""
    sizes = {image['id']: (image['width'], image['height']) for image in coco['images']}
    empty, outside = [], []
    for annotation in coco['annotations']:
        if annotation['image_id'] not in sizes:
            continue
        x, y, w, h = annotation['bbox']
        width, height = sizes[annotation['image_id']]
        if w < 1 or h < 1 or annotation['area'] <= 0:
            empty.append(annotation['id'])
        elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
            outside.append(annotation['id'])
    notes = []
    if empty:
        notes.append(
            f"'{ann_file}': {len(empty)} boxes have no area or are under a pixel wide; mmdet "
            f'leaves them out (annotations {some(empty)})'
        )
    if outside:
        notes.append(
            f"'{ann_file}': {len(outside)} boxes lie outside their image; mmdet leaves them out "
            f'(annotations {some(outside)}); is bbox [x, y, width, height] in pixels?'
        )
    return {*empty, *outside}, notes


def _mask_faults(
    annotations: Sequence[Mapping[str, Any]], images: Sequence[Mapping[str, Any]], ann_file: Path
) -> list[str]:
    sizes = {image['id']: (image['width'], image['height']) for image in images}
    lacking = [
        annotation['id']
        for annotation in annotations
        if annotation['image_id'] in sizes
        and not _is_segmentation(annotation.get('segmentation'), *sizes[annotation['image_id']])
    ]
    if not lacking:
        return []
    # mmdet ends with KeyError: 'mask' at the first of them, or ignores the object; and pycocotools
    # trusts what it is given: far points take all memory, wrong runs end the interpreter
    return [
        f"'{ann_file}': {len(lacking)} of {len(annotations)} annotations have no segmentation that "
        f'can be loaded (polygons [[x, y, x, y, x, y, ...]] near the image or RLE of its size), '
        f'which the pipeline asks for (with_mask=True): {some(lacking)}; mend it, remove them, or '
        'train a detector of boxes alone'
    ]


def _is_segmentation(value: Any, width: int, height: int) -> bool:
    if isinstance(value, Mapping):
        size, counts = value.get('size'), value.get('counts')
        return size == [height, width] and sum(_run_lengths(counts)) == width * height
    if not isinstance(value, list) or not all(_is_polygon(p, width, height) for p in value):
        return False
    # mmdet leaves polygons of fewer points out, and takes the rest of the object's
    return any(len(polygon) >= 6 for polygon in value)


def _is_polygon(value: Any, width: int, height: int) -> bool:
    if not isinstance(value, list) or len(value) % 2 or not all(map(_is_number, value)):
        return False
    xs, ys = value[::2], value[1::2]
    return all(-width <= x <= 2 * width for x in xs) and all(-height <= y <= 2 * height for y in ys)


def _run_lengths(counts: Any) -> list[int]:
    """Return the runs of an RLE, a list or COCO's text of six bits a character; [] if broken."""
    if isinstance(counts, list):
        return counts if all(isinstance(run, int) and run >= 0 for run in counts) else []
    if not isinstance(counts, str):
        return []
    runs: list[int] = []
    run = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return []
        run |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more of this run follows
            continue
        if bits & 16:
            run -= 1 << shift
        if len(runs) > 2:  # from the fourth on they are differences to the one before the last
            run += runs[-2]
        if run < 0:
            return []
        runs.append(run)
        run = shift = 0
    return [] if shift else runs


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(_is_number(v) for v in box)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str))


# What each field must be: in words, and as a test.
KINDS = {
    'id': ('a number', _is_id),
    'image_id': ('a number', _is_id),
    'category_id': ('a number', _is_id),
    'file_name': ('a name', lambda value: isinstance(value, str) and bool(value)),
    'name': ('a name', lambda value: isinstance(value, str)),
    'width': ('a whole number of pixels', _is_size),
    'height': ('a whole number of pixels', _is_size),
    'bbox': ('four finite numbers [x, y, width, height]', _is_box),
    'area': ('a finite number', _is_number),
    'iscrowd': ('0 or 1', lambda value: isinstance(value, int) and value in (0, 1)),
}
