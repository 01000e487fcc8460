"""Errors of data sets that a ConcatDataset puts together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from ..errors import DataError
from ..utils.text import counted
from .coco import read_coco
from .dataset_configs import coco_datasets_in, find_datasets, metainfo_of
from .images import some

Entries = Sequence[Mapping[str, Any]]


def metainfo_faults(cfg: Config, split: str) -> Iterator[str]:
    """Name what differs in the metainfo of the parts.

    mmdet needs equal metainfo, except under ``ignore_keys``. Otherwise, its hooks fail in the first
    epoch.
    """
    for joined in find_datasets(cfg, split, 'ConcatDataset'):
        ignored = joined.get('ignore_keys') or ()
        ignored = [ignored] if isinstance(ignored, str) else ignored
        first, *others = map(metainfo_of, coco_datasets_in(joined.get('datasets'))) or ({},)
        for place, other in enumerate(others, 2):
            for key in sorted({*first, *other}.difference(ignored)):
                said = [_as_list(metainfo.get(key)) for metainfo in (first, other)]
                if said[0] != said[1]:
                    yield (
                        f'metainfo.{key} of data set {place} of ConcatDataset differs from that '
                        f'of the first ({_difference(*said)}); make them equal, or set '
                        f"ignore_keys=['{key}'] in ConcatDataset to use that of the first"
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
    if not isinstance(first, list) or not isinstance(other, list):
        return f'{other!r} and {first!r}'
    if {*map(str, first)} == {*map(str, other)}:
        return 'the order'
    place = next(
        (k for k, pair in enumerate(zip(first, other, strict=False)) if pair[0] != pair[1]),
        min(len(first), len(other)),
    )
    shown = [repr(part[place]) if place < len(part) else 'nothing' for part in (other, first)]
    return f'number {place + 1} is {shown[0]}, not {shown[1]}'
