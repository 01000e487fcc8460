"""Check COCO-format data sets before a training or test run starts.

mmdet silently skips classes that are missing in the annotation file, numbers the labels in the
order of the file, and drops boxes without area. Each of these leads to a low AP hours later. The
functions of this module report them.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.progress import track

from ..errors import DataError
from .check_images import image_data_faults
from .coco import read_coco
from .dataset_configs import coco_datasets, dataset_paths
from .images import NUM_DECODED, UNDECODABLE, some, spread
from .masks import is_loadable
from .pipeline import ImageReader

Entries = Sequence[Mapping[str, Any]]


def check_config_data(cfg: Config, splits: Sequence[str] = ('train', 'val')) -> None:
    """Check the data sets of the data loaders of a config, and the files of its evaluators.

    Args:
        cfg: The config. ``CocoDataset`` of mmdet and ``ImageNet`` and ``CustomDataset`` of
            mmpretrain are checked, also inside wrappers, if their files are on a local disk.
        splits: Splits to check: ``train``, ``val`` and ``test``.

    Raises:
        DataError: A data set has errors. The message lists all of them.
    """
    faults, notes = config_data_faults(cfg, splits)
    for note in notes:
        print_log(note, logger='current', level=logging.WARNING)
    if faults:
        lines = '\n  '.join(faults)
        raise DataError(f"the data sets of config '{cfg.filename}' have errors:\n  {lines}")


def config_data_faults(
    cfg: Config, splits: Sequence[str], num_decoded: int | None = NUM_DECODED
) -> tuple[list[str], list[str]]:
    """Return the errors and the notes on the data sets of a config.

    They include the findings of ``check_coco`` and differences between the config and its
    data. Each starts with the name of the split.
    """
    faults: list[str] = []
    notes: list[str] = []
    seen: set[str] = set()
    init_default_scope(cfg.get('default_scope') or 'mmdet')  # of the transforms that read images
    replaced = (cfg.get('train_cfg') or {}).get('corrupt_images') == 'replace'
    for split in splits:
        training = split == 'train'
        found, noted = image_data_faults(cfg, split), []
        for dataset in coco_datasets(cfg, split):
            key = repr((dataset, training))
            remote = any('://' in str(dataset.get(name)) for name in ('data_root', 'ann_file'))
            if key in seen or remote:
                continue
            seen.add(key)
            paths = dataset_paths(dataset)
            wrong, left_out = check_coco(**paths, training=training, num_decoded=num_decoded)
            found += [*wrong, *_num_classes_faults(cfg, paths['classes'])]
            found += _evaluator_faults(cfg, split)
            noted += left_out
        if training and replaced:
            noted += [fault for fault in found if UNDECODABLE in fault]
            found = [fault for fault in found if UNDECODABLE not in fault]
        faults += [f'{split}: {fault}' for fault in found]
        notes += [f'{split}: {note}' for note in noted]
    return list(dict.fromkeys(faults)), notes


def check_coco(
    ann_file: str | Path,
    img_dir: str | Path,
    classes: Sequence[str] | None = None,
    training: bool = False,
    with_mask: bool = False,
    num_decoded: int | None = NUM_DECODED,
    pipeline: Sequence[Any] = (),
) -> tuple[list[str], list[str]]:
    """Check an annotation file in COCO format and its images.

    Args:
        ann_file: JSON file with ``images``, ``annotations`` and ``categories``.
        img_dir: Folder that contains the images; ``file_name`` is relative to it.
        classes: Class names of the config, in order. None accepts the categories of the file.
        training: Whether the file is for training. A training file needs at least one box.
        with_mask: Whether masks are loaded. If so, every object needs a segmentation.
        num_decoded: Maximum number of images to decode, evenly spaced. None decodes all images
            and shows a progress bar.
        pipeline: Pipeline whose loading steps read the images. See
            :class:`~evit_mm.data.pipeline.ImageReader`.

    Returns:
        Errors to fix, and notes on annotations that mmdet ignores or changes. Each is one sentence.
    """
    try:
        coco = read_coco(ann_file)
    except DataError as error:
        return str(error).splitlines(), []
    sizes = {image['id']: (image['width'], image['height']) for image in coco['images']}
    left_out, notes = _boxes_left_out(coco['annotations'], sizes)
    known = {c['id'] for c in coco['categories'] if classes is None or c['name'] in classes}
    loaded = [
        a for a in coco['annotations'] if a['category_id'] in known and a['id'] not in left_out
    ]
    faults = [
        *_class_faults(coco['categories'], classes),
        *_image_faults(coco['images'], Path(img_dir), num_decoded, pipeline),
        *(_mask_faults(loaded, sizes) if with_mask else ()),
    ]
    if all(a['iscrowd'] for a in loaded):
        empty = 'no box has a class of the config (boxes with iscrowd 1 do not count)'
        if training:
            faults.append(f'{empty}; add at least one for training')
        else:
            notes.append(f'{empty}, so every AP will be -1; add boxes for the evaluation')
    faults, notes = ([f"'{ann_file}': {text}" for text in texts] for texts in (faults, notes))
    return faults, notes


def _num_classes_faults(cfg: Config, classes: Sequence[str] | str) -> Iterator[str]:
    if isinstance(classes, str):  # check_coco reports this error
        return
    roi_head = cfg.model.get('roi_head') or {}
    heads = {
        'bbox_head': cfg.model.get('bbox_head'),
        'roi_head.bbox_head': roi_head.get('bbox_head'),
        'roi_head.mask_head': roi_head.get('mask_head'),
    }
    for name, head in heads.items():
        number = head.get('num_classes') if isinstance(head, Mapping) else None
        if number not in (None, len(classes)):
            yield (
                f'model.{name}.num_classes is {number} but the data set has {len(classes)} '
                f'classes; set model.{name}.num_classes={len(classes)}'
            )


def _evaluator_faults(cfg: Config, split: str) -> Iterator[str]:
    evaluator = cfg.get(f'{split}_evaluator')
    if not isinstance(evaluator, Mapping) or not evaluator.get('ann_file'):
        return
    found = evaluator['ann_file']
    files = [dataset_paths(dataset)['ann_file'] for dataset in coco_datasets(cfg, split)]
    if len(files) == 1 and os.path.abspath(found) != os.path.abspath(files[0]):
        yield (
            f"{split}_evaluator.ann_file is '{found}' but {split}_dataloader reads '{files[0]}'; "
            f'set {split}_evaluator.ann_file={files[0]}'
        )


def _class_faults(categories: Entries, classes: Sequence[str] | str | None) -> Iterator[str]:
    if classes is None:
        return
    names = [category['name'] for category in categories]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    missing = [name for name in classes if name not in names]
    in_file_order = [name for name in names if name in classes]
    if repeated:
        yield f'several categories have the same name ({some(repeated)}); rename them'
    elif isinstance(classes, str):
        yield f"metainfo.classes is the string '{classes}'; use a tuple, such as ('{classes}',)"
    elif missing:
        yield (
            f'metainfo.classes has {some(missing)}, but the categories are {some(names)}; set '
            'metainfo.classes to the names of the categories, because mmdet skips other classes '
            'silently'
        )
    elif in_file_order != list(classes):
        yield (
            'metainfo.classes is not in the order of the categories, so class names would be '
            f'swapped; set metainfo.classes={tuple(in_file_order)}'
        )


def _image_faults(
    images: Entries, img_dir: Path, num_decoded: int | None, pipeline: Sequence[Any]
) -> Iterator[str]:
    if not img_dir.is_dir():
        yield f"image folder '{img_dir}' does not exist; check data_root and data_prefix.img"
        return
    # listing each folder once is faster than one stat call per image
    folders = {(img_dir / image['file_name']).parent for image in images}
    present = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    names = [image['file_name'] for image in images]
    missing = [name for name in names if img_dir / name not in present]
    if missing:
        yield (
            f"{len(missing)} of {len(images)} images are not in '{img_dir}' ({some(missing)}); "
            'check data_prefix.img or copy the images there'
        )
    else:
        yield from _decoding_faults(images, img_dir, num_decoded, pipeline)


def _decoding_faults(
    images: Entries, img_dir: Path, num_decoded: int | None, pipeline: Sequence[Any]
) -> Iterator[str]:
    read = ImageReader(pipeline)
    if num_decoded is not None:
        images = spread(images, num_decoded)
    bar = track(
        images,
        f'decoding {img_dir}',
        console=Console(stderr=True),
        disable=num_decoded is not None or not sys.stderr.isatty(),
    )
    broken, differing = [], []
    for image in bar:
        try:
            pixels = read(img_dir / image['file_name'])
        except DataError as error:
            broken.append(f'{image["file_name"]}{str(error).partition(UNDECODABLE)[2]}')
            continue
        if pixels.shape[:2] != (image['height'], image['width']):
            size = f'{pixels.shape[1]}x{pixels.shape[0]}'
            said = f'{image["width"]}x{image["height"]}'
            differing.append(f'{image["file_name"]} is {size}, not {said}')
    opened = f"of {len(images)} checked images in '{img_dir}'"
    if broken:
        yield (
            f'{len(broken)} {opened} {UNDECODABLE} ({some(broken)}); replace them or remove their '
            'entries'
        )
    if differing:
        yield (
            f'{len(differing)} {opened} have a different size in the annotation file '
            f'({some(differing)}), so boxes would be misplaced; correct width and height. If '
            'the images have an EXIF rotation and the annotations ignore it, set '
            "color_type='color_ignore_orientation' in LoadImageFromFile"
        )


def _boxes_left_out(
    annotations: Entries, sizes: Mapping[Any, tuple[int, int]]
) -> tuple[set[Any], list[str]]:
    """Return the ids of the boxes that mmdet ignores, and a note on each kind of invalid box."""
    empty, outside, beyond = [], [], []
    for annotation in annotations:
        x, y, w, h = annotation['bbox']
        width, height = sizes[annotation['image_id']]
        if w < 1 or h < 1 or annotation['area'] <= 0:
            empty.append(annotation['id'])
        elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
            outside.append(annotation['id'])
        elif max(-x, -y, x + w - width, y + h - height) > 1:
            beyond.append(annotation['id'])
    notes = []
    if empty:
        notes.append(
            f'{len(empty)} boxes have no area or a side below one pixel (annotations '
            f'{some(empty)}), so mmdet ignores them; correct or remove them'
        )
    if outside:
        notes.append(
            f'{len(outside)} boxes are outside their image (annotations {some(outside)}), so '
            'mmdet ignores them; check that bbox is [x, y, width, height] in pixels'
        )
    if beyond:
        notes.append(
            f'{len(beyond)} boxes extend beyond their image by more than one pixel (annotations '
            f'{some(beyond)}), so mmdet clips them; check that bbox is [x, y, width, height]'
        )
    return {*empty, *outside}, notes


def _mask_faults(annotations: Entries, sizes: Mapping[Any, tuple[int, int]]) -> Iterator[str]:
    # for an invalid mask, mmdet raises KeyError: 'mask' or ignores the object
    lacking = [
        annotation['id']
        for annotation in annotations
        if not is_loadable(annotation.get('segmentation'), *sizes[annotation['image_id']])
    ]
    if lacking:
        yield (
            f'{len(lacking)} of {len(annotations)} annotations have no valid segmentation '
            f'({some(lacking)}), but the pipeline loads masks (with_mask=True); use polygons '
            '[[x, y, x, y, x, y, ...]] in pixels of the image or RLE of the image size, remove the '
            'annotations, or train a detector without masks'
        )
