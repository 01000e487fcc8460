"""Find the data sets of a config, their paths and the kinds of their images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import DataError
from .coco import read_coco
from .images import IMAGE_SUFFIXES
from .pipeline import FROM_FILE, loading_steps, step_name


def find_datasets(cfg: Config, split: str, *types: str) -> Iterator[Mapping[str, Any]]:
    """Yield the data sets of the given types, also inside RepeatDataset or ConcatDataset."""
    yield from _unwrap((cfg.get(f'{split}_dataloader') or {}).get('dataset'), types)


def _unwrap(dataset: Any, types: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    if isinstance(dataset, (list, tuple)):
        for item in dataset:
            yield from _unwrap(item, types)
    elif isinstance(dataset, Mapping):
        if str(dataset.get('type')).split('.')[-1] in types:
            yield dataset
        for key in ('dataset', 'datasets'):
            yield from _unwrap(dataset.get(key), types)


def coco_datasets(cfg: Config, split: str) -> Iterator[Mapping[str, Any]]:
    """Yield the ``CocoDataset`` configs of a split. See ``find_datasets``."""
    return find_datasets(cfg, split, 'CocoDataset')


def dataset_paths(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of :func:`~evit_mm.data.check_coco` for a ``CocoDataset`` config."""
    root = Path(dataset.get('data_root') or '')
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        from mmdet.datasets import CocoDataset

        classes = CocoDataset.METAINFO['classes']
    pipeline = dataset.get('pipeline') or []
    return {
        'ann_file': root / (dataset.get('ann_file') or ''),
        'img_dir': root / (dataset.get('data_prefix') or {}).get('img', ''),
        'classes': classes,
        'with_mask': any(step.get('with_mask') for step in pipeline),
        'pipeline': pipeline,
    }


def image_suffixes(cfg: Config) -> tuple[str, ...]:
    """Return the suffixes, in lower case, of the images that the test pipeline reads.

    They are the common ones. If another transform than ``LoadImageFromFile`` reads the images, the
    suffixes in the annotation file of the test set are added.
    """
    found = set(IMAGE_SUFFIXES)
    for dataset in coco_datasets(cfg, 'test'):
        if [*map(step_name, loading_steps(dataset.get('pipeline') or ()))] in ([], [FROM_FILE]):
            continue
        with suppress(DataError):  # such a file may be missing where images are only predicted
            images = read_coco(dataset_paths(dataset)['ann_file'], ('images',))['images']
            found |= {Path(image['file_name']).suffix.lower() for image in images}
    return tuple(sorted(found))
