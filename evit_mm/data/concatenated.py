"""Errors of data sets that a ConcatDataset puts together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from ..errors import DataError
from ..utils.text import counted
from .coco import read_coco
from .dataset_configs import (
    COCO_TYPES,
    evaluates_each,
    find_datasets,
    metainfo_of,
    type_name,
    unwrap,
)
from .images import some

Entries = Sequence[Mapping[str, Any]]


def metainfo_faults(cfg: Config, split: str) -> Iterator[str]:
    """Name what differs in the metainfo of the parts.

    mmdet then has a list of metainfo, which neither ``NumClassCheckHook`` nor an evaluator of all
    parts accepts. A key that the first lacks is an error of its own. If the classes differ, a
    training gives one label to several classes.
    """
    checked = split != 'test' and any(
        type_name(hook) == 'NumClassCheckHook' for hook in cfg.get('custom_hooks') or ()
    )
    fails = checked or (split != 'train' and not evaluates_each(cfg, split))
    for joined in find_datasets(cfg, split, 'ConcatDataset'):
        ignored = joined.get('ignore_keys') or ()
        ignored = {ignored} if isinstance(ignored, str) else {*ignored}
        parts = [
            (place, metainfo_of(found))
            for place, entry in enumerate(joined.get('datasets') or (), 1)
            if not [*unwrap(entry, ('ConcatDataset',))]  # which is compared by itself
            for found in unwrap(entry, COCO_TYPES)
        ]
        for place, other in parts[1:]:
            first_place, first = parts[0]
            for key in sorted({*first, *other} - ignored):
                said = [_as_list(metainfo.get(key)) for metainfo in (first, other)]
                wrong = fails or key not in first or (key == 'classes' and split == 'train')
                if said[0] == said[1] or not wrong:
                    continue
                fix = f", or set ignore_keys=['{key}'] in ConcatDataset" * (key != 'classes')
                yield (
                    f'metainfo.{key} of data set {place} of ConcatDataset differs from that of '
                    f'data set {first_place}{_difference(*said)}; make them equal{fix}'
                )


def mixed_faults(
    parts: Sequence[Entries], evaluators: Sequence[Mapping[str, Any]], split: str
) -> Iterator[str]:
    """Say why one evaluator cannot evaluate several data sets.

    Args:
        parts: The images that each data set loads.
        evaluators: Configs of the evaluators with COCO's metrics.
        split: ``val`` or ``test``.
    """
    where, fix = f'{split}_evaluator', 'evaluate each data set by itself in MultiDatasetsEvaluator'
    numbers = Counter(key for images in parts for key in {image['id'] for image in images})
    repeated = [key for key, number in numbers.items() if number > 1]
    if repeated and evaluators:
        yield (
            f'{where}: {counted(len(repeated), "image id")} ({some(repeated)}) are in several data '
            f'sets of {split}_dataloader, so their detections would be mixed up; {fix}, or make '
            'the ids unique'
        )
        return
    for evaluator in evaluators:
        path = evaluator.get('ann_file')
        if not path or '://' in path:
            continue
        try:
            listed = {image['id'] for image in read_coco(path, ('images',))['images']}
        except DataError as error:
            yield f'{where}.ann_file: {error}'
            continue
        lost = [i['file_name'] for images in parts for i in images if i['id'] not in listed]
        if lost:
            yield (
                f"{where}.ann_file is '{path}', which lacks {counted(len(lost), 'image')} of "
                f'{split}_dataloader ({some(lost)}); {fix}, or use a file with all images'
            )


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _difference(first: Any, other: Any) -> str:
    """Return the first entries that differ, if the values are lists."""
    if isinstance(first, list) and isinstance(other, list):
        for number, pair in enumerate(zip(other, first, strict=False), 1):
            if pair[0] != pair[1]:
                return f' (number {number} is {pair[0]!r}, not {pair[1]!r})'
        return f' ({len(other)} entries, not {len(first)})'
    return f' ({other!r}, not {first!r})'
