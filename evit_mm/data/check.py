"""Check COCO-format data sets before a training or test run starts.

A low AP often has its cause in the data: a class that the annotation file does not have, labels in
another order, boxes that the training skips and the evaluation counts. mmdet says nothing of these.
:mod:`evit_mm.data.counts` has a model of mmdet's loader and of COCO's evaluation, and the
statements of this module are about one of the two or about both.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope

from ..errors import DataError
from ..utils.text import counted
from .check_images import image_data_faults
from .coco import read_annotations
from .concatenated import metainfo_faults, mixed_faults
from .counts import Counts, training_counts
from .counts_table import counts_table
from .dataset_configs import (
    TOLERANT,
    coco_datasets,
    coco_evaluators,
    dataset_paths,
    evaluates_each,
    is_remote,
    loading_names,
    misnamed_classes,
    placed_datasets,
    type_name,
)
from .evaluators import (
    check_evaluator,
    detector_notes,
    evaluator_faults,
    loaded_counts,
    option_notes,
    repair_faults,
)
from .formats import CACHE
from .image_files import image_file_faults
from .images import NUM_DECODED, UNDECODABLE, some
from .masks import is_loadable
from .overlap import shared_images
from .pipeline import FROM_FILE, REDUCED
from .statements import (
    grouping_notes,
    image_sizes,
    listed_twice,
    no_images,
    nothing_to_train_on,
    repair_notes,
    rotation_notes,
    training_notes,
)

Entries = Sequence[Mapping[str, Any]]
LARGEST_COMPARED = 50_000_000  # bytes of a training file that a test reads, a few seconds


@dataclass
class DataReport:
    """What the check of the data sets of a config has found.

    Attributes:
        faults: Errors. Each is one sentence that starts with the split.
        notes: What may surprise. Each is one sentence that starts with the split.
        counts: What each split uses, by split.
        shared: Images of the split that are also training images, by split.
    """

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: dict[str, Counts] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)

    @property
    def table(self) -> str:
        """The table of what will be trained on and evaluated, or an empty string."""
        return counts_table(self.counts, self.shared) if self.counts else ''


def check_config_data(cfg: Config, splits: Sequence[str] = ('train', 'val')) -> None:
    """Check the data sets of the data loaders of a config, and the files of its evaluators.

    The log shows a table of what will be trained on and evaluated.

    Args:
        cfg: The config. ``CocoDataset`` of mmdet, :class:`~evit_mm.data.coco_dataset.\
TolerantCocoDataset`, and ``ImageNet`` and ``CustomDataset`` of mmpretrain are checked, also
            inside wrappers, if their files are on a local disk.
        splits: Splits to check: ``train``, ``val`` and ``test``.

    Raises:
        DataError: A data set has errors. The message lists all of them.
    """
    report = inspect_config_data(cfg, splits)
    for note in report.notes:
        print_log(note, logger='current', level=logging.WARNING)
    if report.faults:
        lines = '\n  '.join(report.faults)
        raise DataError(f"the data sets of config '{cfg.filename}' have errors:\n  {lines}")
    if report.table:
        print_log(f'images and objects of this run:\n{report.table}', logger='current')


def inspect_config_data(
    cfg: Config, splits: Sequence[str], num_decoded: int | None = NUM_DECODED
) -> DataReport:
    """Return the errors, the notes and the counts of the data sets of a config.

    They include the findings of :func:`check_coco` and differences between the config and its
    data.
    """
    init_default_scope(cfg.get('default_scope') or 'mmdet')  # of the transforms that read images
    report = DataReport()
    replaced = (cfg.get('train_cfg') or {}).get('corrupt_images') == 'replace'
    checked: dict[str, _Checked] = {}
    for split in splits:
        faults, notes = _check_split(cfg, split, num_decoded, checked)
        if split == 'train' and replaced:
            notes += [fault for fault in faults if UNDECODABLE in fault]
            faults = [fault for fault in faults if UNDECODABLE not in fault]
        # two data sets can have the same error
        report.faults += dict.fromkeys(f'{split}: {fault}' for fault in faults)
        report.notes += dict.fromkeys(f'{split}: {note}' for note in notes)
    loaded = {' and '.join(c.names): c for c in checked.values() if c.counts is not None}
    report.counts = {name: found.counts for name, found in loaded.items() if found.counts}
    if 'train' not in splits:
        loaded = {**_training_sets(cfg), **loaded}
    report.notes += _differences(loaded, report.shared)
    return report


def _check_split(
    cfg: Config, split: str, num_decoded: int | None, checked: dict[str, _Checked]
) -> tuple[list[str], list[str]]:
    """Return the errors and the notes of a split.

    Args:
        cfg: The config.
        split: ``train``, ``val`` or ``test``.
        num_decoded: As in :func:`check_coco`.
        checked: Findings on the data sets so far. A data set that is there is not checked again.
    """
    training = split == 'train'
    faults, notes = [*image_data_faults(cfg, split), *metainfo_faults(cfg, split)], []
    datasets = list(placed_datasets(cfg, split))
    mixed = not training and len(datasets) > 1 and not evaluates_each(cfg, split)
    own: list[_Checked] = []
    for number, (place, dataset) in enumerate(datasets, 1):
        if is_remote(dataset):
            continue
        if misnamed := misnamed_classes(dataset):
            faults.append(misnamed)
            continue
        if not training and REDUCED in loading_names(dataset):
            faults.append(
                f'its pipeline loads images by {REDUCED}, which is for training only, '
                f'because the boxes would be those of the smaller image; use {FROM_FILE}'
            )
        evaluators = [] if training or mixed else coco_evaluators(cfg, split, place)
        key = repr((dataset, training, [_without_outputs(e) for e in evaluators]))
        if key not in checked:
            paths = dataset_paths(dataset)
            found = checked[key] = _check(dataset, split, evaluators, num_decoded, **paths)
            faults += found.faults
            faults += _num_classes_faults(cfg, paths['classes']) if found.classes_fit else ()
            notes += found.notes
            if found.counts is not None and not training:
                notes += detector_notes(cfg, found.counts)
        checked[key].names.append(split if len(datasets) == 1 else f'{split} {number}')
        own.append(checked[key])
    parts = [found for found in own if found.counts is not None]
    if mixed and parts:
        evaluators = coco_evaluators(cfg, split)
        images = [found.counts.images for found in parts if found.counts]
        faults += mixed_faults(images, evaluators, split)
        for evaluator in evaluators:
            wrong = list(evaluator_faults(evaluator, parts[0].coco, f'{split}_evaluator'))
            faults += wrong
            notes += () if wrong else option_notes(evaluator, f'{split}_evaluator')
    return faults, notes


def _without_outputs(evaluator: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in evaluator.items() if key != 'outfile_prefix'}


def check_coco(
    ann_file: str | Path,
    img_dir: str | Path,
    classes: Sequence[str] | None = None,
    training: bool = False,
    with_mask: bool = False,
    num_decoded: int | None = NUM_DECODED,
    pipeline: Sequence[Any] = (),
    tolerant: bool = False,
) -> tuple[list[str], list[str]]:
    """Check an annotation file in COCO format and its images.

    Args:
        ann_file: JSON file with ``images``, ``annotations`` and ``categories``.
        img_dir: Folder that contains the images; ``file_name`` is relative to it.
        classes: Class names of the config, in order. None accepts the categories of the file.
        training: Whether the file is for training, or for evaluation with COCO's metrics. A
            training file needs at least one box.
        with_mask: Whether masks are loaded. If so, every object needs a segmentation.
        num_decoded: Maximum number of images to decode, evenly spaced. None decodes all images
            and shows a progress bar.
        pipeline: Pipeline whose loading steps read the images. See
            :class:`~evit_mm.data.pipeline.ImageReader`.
        tolerant: Whether :class:`~evit_mm.data.coco_dataset.TolerantCOCO` reads the file.

    Returns:
        Errors to fix, and notes on what the training skips or the evaluation counts. Each is one
        sentence.
    """
    checked = _check(
        {'type': TOLERANT if tolerant else 'CocoDataset'},
        'train' if training else 'test',
        () if training else ({'ann_file': str(ann_file)},),
        num_decoded,
        ann_file,
        img_dir,
        classes,
        with_mask,
        pipeline,
    )
    return checked.faults, checked.notes


@dataclass
class _Checked:
    """Findings on one data set, which several places of a config can name, such as ``val``."""

    faults: list[str]
    notes: list[str]
    img_dir: Path
    counts: Counts | None = None
    names: list[str] = field(default_factory=list)
    classes_fit: bool = True
    coco: Mapping[str, Entries] = field(default_factory=dict)

    def paths(self) -> list[Path]:
        """Return the paths of the used images."""
        images = self.counts.images if self.counts else []
        return [self.img_dir / image['file_name'] for image in images]


def _check(
    dataset: Mapping[str, Any],
    split: str,
    evaluators: Sequence[Mapping[str, Any]],
    num_decoded: int | None,
    ann_file: str | Path,
    img_dir: str | Path,
    classes: Sequence[str] | None,
    with_mask: bool,
    pipeline: Sequence[Any],
) -> _Checked:
    """Check a data set, and the evaluators that evaluate on it."""
    checked, folder = _Checked([], [], Path(img_dir)), Path(ann_file).parent
    # the user corrects the files that the conversion has read
    converted = f", converted from '{folder.parent}'" if folder.name == CACHE else ''
    named = f"'{ann_file}'{converted}: "
    scored = [e for e in evaluators if not e.get('format_only')]
    try:
        file = read_annotations(ann_file, type_name(dataset) == TOLERANT)
    except DataError as error:
        checked.faults = str(error).splitlines()
        return checked
    checked.coco = coco = file.coco
    class_faults = [*_class_faults(coco['categories'], classes)]
    checked.classes_fit = not class_faults
    faults = [*file.faults, *repair_faults(file, scored), *class_faults]
    notes = [*(repair_notes(file.repairs) if file.tolerant else ()), *grouping_notes(coco, classes)]
    notes += rotation_notes(coco)
    try:
        loaded = loaded_counts(dataset, coco, classes)
    except DataError as error:
        faults.append(str(error))
        loaded = training_counts(coco, classes)
    faults += image_file_faults(loaded.images, checked.img_dir, num_decoded, pipeline)
    checked.counts = loaded
    masked = loaded.used if with_mask else []
    if split == 'train':
        faults += nothing_to_train_on(loaded, coco)
        notes += training_notes(loaded, coco)
    elif not loaded.images and coco['images']:
        faults.append(no_images(loaded))
        scored = []
    notes += listed_twice(loaded)
    for evaluator in scored:
        found, noted, counts = check_evaluator(evaluator, file, ann_file, classes, loaded, split)
        checked.faults += found
        notes += noted
        if counts is not None:
            checked.counts = counts
            if with_mask or 'segm' in str(evaluator.get('metric')):
                masked = counts.used
    faults += _mask_faults(masked, image_sizes(coco)) if masked else ()
    checked.faults = [*(named + fault for fault in faults), *checked.faults]
    checked.notes = [named + note for note in notes]
    return checked


def _training_sets(cfg: Config) -> dict[str, _Checked]:
    """Return what the training loads, to compare an evaluation with it.

    Data sets with errors and very large files are left out.
    """
    loaded = {}
    for place, dataset in enumerate(coco_datasets(cfg, 'train')):
        paths = dataset_paths(dataset)
        ann_file, classes = Path(paths['ann_file']), paths['classes']
        with suppress(OSError, DataError):
            if not is_remote(dataset) and ann_file.stat().st_size <= LARGEST_COMPARED:
                coco = read_annotations(ann_file, type_name(dataset) == TOLERANT).coco
                counts = loaded_counts(dataset, coco, classes)
                loaded[f'train {place}'] = _Checked([], [], paths['img_dir'], counts, coco=coco)
    return loaded


def _differences(loaded: Mapping[str, _Checked], shared: dict[str, int]) -> Iterator[str]:
    """Compare the splits, and count shared images by split in ``shared``."""
    trained = [checked for name, checked in loaded.items() if name.startswith('train')]
    for name, other in loaded.items():
        if not trained or name.startswith('train'):
            continue
        ids = [{c['name']: c['id'] for c in o.coco['categories']} for o in (trained[0], other)]
        changed = [key for key in ids[0] if ids[1].get(key, ids[0][key]) != ids[0][key]]
        if changed:
            yield (
                f'{name}: the ids of categories differ from those in train ({some(changed)}); '
                'mmdet goes by names, and files with detections have the ids of their own split'
            )
        paths = other.paths()
        found, compared = shared_images([p for checked in trained for p in checked.paths()], paths)
        if found:
            shared[name] = len(found)
            what = 'image' if compared == len(paths) else 'compared image'
            yield (
                f'{name}: training has {len(found):,} of {counted(compared, what)} too '
                f'({some([path.name for path in found])}), so the AP is too high'
            )


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


def _class_faults(categories: Entries, classes: Sequence[str] | str | None) -> Iterator[str]:
    if classes is None:
        return
    names = [category['name'] for category in categories]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    missing = [name for name in classes if name not in names]
    in_file_order = [name for name in names if name in classes]
    if repeated:
        yield f'several categories have the same name ({some(repeated)}); rename them'
    elif len({*classes}) < len(classes) and not isinstance(classes, str):
        twice = [name for name, count in Counter(classes).items() if count > 1]
        yield f'metainfo.classes has {some(twice)} more than once; remove the repetition'
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
