"""A config: does it load and build, its data set, its anchors, its checkpoint.

Imports are absolute: ``tools/doctor.py`` loads this package by path, so that it also runs where
evit_mm itself cannot be imported, and comes here only once it can.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope

from evit_mm.checkpoint import extract_state_dict, read_checkpoint
from evit_mm.data.check import check_config_data, config_data_faults
from evit_mm.data.coco import read_coco
from evit_mm.data.dataset_configs import coco_datasets, dataset_paths
from evit_mm.data.images import NUM_DECODED
from evit_mm.errors import CheckpointError
from evit_mm.runner.build import config_faults, load_detector
from evit_mm.runner.config import load_config

from .anchors import best_ious, resized_boxes
from .findings import Finding, guarded, split_mend
from .stack import check_disk, check_shared_memory

SPLITS = ('train', 'val', 'test')
# from these shares of objects on, anchors want changing
MANY_UNREACHED, MOST_UNREACHED = 0.1, 0.5
MOST_CLASSES_LISTED = 10
# AdamW keeps two moments beside each weight, all float32
BYTES_PER_PARAMETER = 3 * 4
PREFETCHED = 2  # batches per worker, torch's default
RESIZED_PIXELS = 1333 * 800  # where the pipeline does not say


def check_config(config: str, checkpoint: str | None, all_images: bool) -> Iterator[Finding]:
    """Check everything that a config names.

    Args:
        config: Config file.
        checkpoint: Checkpoint to test or to start from, None for none.
        all_images: Decode every image instead of a few of each split.
    """
    cfg = load_config(config)
    yield Finding('green', 'config', f'{config} loads')
    model: list[Any] = []
    yield from guarded('model', lambda: _check_model(cfg, model))
    needed = _checkpoint_bytes(cfg, model[0]) if model else None
    yield from guarded('disk', lambda: check_disk(cfg.work_dir, needed))
    yield from guarded('shared memory', lambda: check_shared_memory(_batch_bytes(cfg)))
    if cfg.get('default_scope') == 'mmpretrain':
        yield from guarded('data', lambda: _check_folders(cfg))
    else:
        yield from guarded('data', lambda: _check_detection(cfg, all_images))
    if checkpoint is not None:
        yield from guarded('checkpoint', lambda: _check_checkpoint(cfg, checkpoint))


def _check_model(cfg: Config, built: list[Any]) -> Iterator[Finding]:
    """Build the model without loading weights, and leave it in ``built``."""
    from mmengine.registry import MODELS

    init_default_scope(cfg.get('default_scope', 'mmdet'))
    with config_faults(cfg):
        model = MODELS.build(cfg.model)
    built.append(model)
    number = sum(parameter.numel() for parameter in model.parameters())
    text = f'{cfg.model.type} builds: {number / 1e6:.2f} million parameters'
    yield Finding('green', 'model', text, details={'parameters': number})


def _checkpoint_bytes(cfg: Config, model: Any) -> int:
    """Return what the checkpoints of a run take on disk, all that are kept at once."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    epochs = (cfg.get('train_cfg') or {}).get('max_epochs', 1)
    kept = hook.get('max_keep_ckpts', -1)
    if kept < 1:
        kept = max(epochs // max(hook.get('interval', 1), 1), 1)
    copies = kept + bool(hook.get('save_best')) + 1  # one more while the oldest is replaced
    return copies * BYTES_PER_PARAMETER * sum(p.numel() for p in model.parameters())


def _batch_bytes(cfg: Config) -> int | None:
    """Return the shared memory that the training batches under way take; None without workers."""
    loader = cfg.get('train_dataloader') or cfg.test_dataloader
    workers = loader.get('num_workers', 0)
    if not workers:
        return None
    pixels = RESIZED_PIXELS
    for dataset in coco_datasets(cfg, 'train'):
        scale = dataset_paths(dataset)['scale']
        pixels = math.prod(scale) if scale else pixels
    return workers * PREFETCHED * loader.get('batch_size', 1) * 3 * pixels


def _check_folders(cfg: Config) -> Iterator[Finding]:
    check_config_data(cfg, SPLITS)
    yield Finding('green', 'data', 'image folders fit the config')


def _check_detection(cfg: Config, all_images: bool) -> Iterator[Finding]:
    faults, notes = config_data_faults(cfg, SPLITS, None if all_images else NUM_DECODED)
    for fault in faults:
        yield Finding('red', 'data', *split_mend(fault))
    for note in notes:
        yield Finding('yellow', 'data', *split_mend(note))
    if faults:  # what follows relies on files that are in order
        return
    seen: set[str] = set()
    for split in SPLITS:
        for dataset in coco_datasets(cfg, split):
            paths = dataset_paths(dataset)
            key = f'{paths["ann_file"]} {split == "train"}'
            if key in seen:
                continue
            seen.add(key)
            coco = read_coco(paths['ann_file'])
            topic = f'data {split}'
            yield _histogram(coco, paths['classes'], topic)
            yield from _edges(coco, topic)
            if split == 'train':
                yield _anchors(cfg, coco, paths['classes'], dataset, topic)
    if not seen:
        yield Finding('yellow', 'data', 'no CocoDataset in this config; its data were not checked')


def _histogram(coco: Mapping[str, Any], classes: Any, topic: str) -> Finding:
    """Count the objects of each class."""
    names = {c['id']: c['name'] for c in coco['categories'] if c['name'] in classes}
    counts = Counter(dict.fromkeys(names.values(), 0))
    labels = (a['category_id'] for a in coco['annotations'] if not a['iscrowd'])
    counts.update(names[label] for label in labels if label in names)
    ordered = counts.most_common()
    shown = ordered
    if len(ordered) > MOST_CLASSES_LISTED:
        half = MOST_CLASSES_LISTED // 2
        shown = [*ordered[:half], ('...', len(ordered) - 2 * half), *ordered[-half:]]
    listed = ', '.join(f'{name} {count}' for name, count in shown)
    text = f'{len(coco["images"])} images, {sum(counts.values())} objects: {listed}'
    empty = [name for name, count in ordered if not count]
    details = {'images': len(coco['images']), 'objects': dict(ordered)}
    if not empty:
        return Finding('green', topic, text, details=details)
    text += f'; without any object: {", ".join(empty)}'
    mend = 'add objects of them, or leave them out of metainfo.classes and num_classes'
    return Finding('yellow', topic, text, mend, details)


def _edges(coco: Mapping[str, Any], topic: str) -> Iterator[Finding]:
    """Count the boxes that reach over their image's edge by more than a pixel."""
    sizes = {image['id']: (image['width'], image['height']) for image in coco['images']}
    over = []
    for annotation in coco['annotations']:
        x, y, w, h = annotation['bbox']
        width, height = sizes[annotation['image_id']]
        inside = x < width and y < height and x + w > 0 and y + h > 0
        if inside and max(-x, -y, x + w - width, y + h - height) > 1:
            over.append(annotation['id'])
    if over:
        text = f'{len(over)} boxes reach over the edge of their image by more than a pixel'
        mend = 'mmdet cuts them off; if that is not meant, is bbox [x, y, width, height]?'
        yield Finding('yellow', topic, text, mend, {'annotations': over})


def _anchors(
    cfg: Config, coco: Mapping[str, Any], classes: Any, dataset: Mapping[str, Any], topic: str
) -> Finding:
    """Count the objects that no anchor reaches."""
    from mmdet.registry import TASK_UTILS

    topic = f'{topic}: anchors'
    head, assigner = _anchor_head(cfg)
    if head is None:
        return Finding('green', topic, 'no anchors and IoU threshold in this config')
    objects = resized_boxes(coco, classes, dataset.get('pipeline') or [])
    if objects is None:
        text = 'not checked: the pipeline does not resize to one fixed scale'
        return Finding('yellow', topic, text, 'check with a config that has one Resize step')
    boxes, sizes = objects
    divisor = (cfg.model.get('data_preprocessor') or {}).get('pad_size_divisor', 1)
    ious = best_ious(boxes, sizes, TASK_UTILS.build(head), divisor)
    threshold = assigner['pos_iou_thr']
    missed = ious < threshold
    share = float(missed.mean()) if len(ious) else 0.0
    text = (
        f'no anchor reaches IoU {threshold} with {missed.sum()} of {len(ious)} objects '
        f'({100 * share:.1f} %)'
    )
    details = {'objects': len(ious), 'unreached': int(missed.sum()), 'pos_iou_thr': threshold}
    if share < MANY_UNREACHED:
        return Finding('green', topic, text, details=details)
    lengths = boxes[missed, 2:] - boxes[missed, :2]
    sides = np.sqrt(lengths.prod(1))
    ratios = lengths.max(1) / lengths.min(1)
    text += f'; their median side is {np.median(sides):.0f} px, longer by {np.median(ratios):.1f}'
    mend = (
        'add ratios to anchor_generator'
        if np.median(ratios) > max(head.get('ratios', [1.0])) + 1
        else 'give the Resize steps a larger scale, or anchor_generator smaller scales'
        if np.median(sides) < _smallest_side(head)
        else 'fit scales and ratios of anchor_generator to the boxes'
    )
    return Finding('red' if share >= MOST_UNREACHED else 'yellow', topic, text, mend, details)


def _anchor_head(cfg: Config) -> tuple[Any, Any]:
    """Return the config's anchor generator and its assigner, ``(None, None)`` without anchors."""
    train_cfg = cfg.model.get('train_cfg') or {}
    for name, part in (('rpn_head', train_cfg.get('rpn')), ('bbox_head', train_cfg)):
        head = cfg.model.get(name)
        generator = head.get('anchor_generator') if isinstance(head, Mapping) else None
        assigner = (part or {}).get('assigner') or {}
        if generator and 'pos_iou_thr' in assigner:
            return generator, assigner
    return None, None


def _smallest_side(head: Mapping[str, Any]) -> float:
    scale = head.get('octave_base_scale') or min(head.get('scales') or [1])
    return float(np.min(head['strides'])) * scale


def _check_checkpoint(cfg: Config, checkpoint: str) -> Iterator[Finding]:
    """Read a checkpoint, and fit it to the config's model and classes where it is a detector."""
    if cfg.get('default_scope') == 'mmpretrain':
        state = extract_state_dict(read_checkpoint(checkpoint), name=checkpoint)
        broken = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
        if broken:
            raise CheckpointError(f"'{checkpoint}' is not finite in {broken[0]}; fetch it again")
        yield Finding('green', 'checkpoint', f'{checkpoint}: {len(state)} finite tensors')
        return
    load_detector(cfg, checkpoint)
    size = Path(checkpoint).stat().st_size
    text = f'{checkpoint} ({size / 2**20:.1f} MiB) fits the model and its classes'
    yield Finding('green', 'checkpoint', text, details={'bytes': size})
