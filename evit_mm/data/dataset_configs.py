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

# in coco_dataset.py and evaluation/coco_metric.py, which need mmdet
TOLERANT, HOT_METRIC = 'TolerantCocoDataset', 'HotCocoMetric'


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
    """Yield the configs of the data sets in COCO format of a split. See ``find_datasets``."""
    return find_datasets(cfg, split, 'CocoDataset', TOLERANT)


def coco_evaluators(cfg: Config, split: str) -> list[Mapping[str, Any]]:
    """Return the configs of a split's evaluators that compute COCO's metrics."""
    found = cfg.get(f'{split}_evaluator') or []
    evaluators = [found] if isinstance(found, Mapping) else found
    return [e for e in evaluators if type_name(e) in ('CocoMetric', HOT_METRIC)]


def type_name(component: Mapping[str, Any]) -> str:
    """Return the type of a component without its scope."""
    return str(component.get('type')).split('.')[-1]


def is_remote(dataset: Mapping[str, Any]) -> bool:
    """Return whether the annotations or the images of a data set are not files on a local disk."""
    steps = [dataset, *(dataset.get('pipeline') or ())]
    backends = {(step.get('backend_args') or {}).get('backend', 'local') for step in steps}
    paths = [dataset.get('data_root'), dataset.get('ann_file')]
    return backends != {'local'} or any('://' in str(path) for path in paths)


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

    They are those that OpenCV decodes, and those in the annotation file of the test set.
    """
    found = set(IMAGE_SUFFIXES)
    for dataset in coco_datasets(cfg, 'test'):
        with suppress(DataError):  # such a file may be missing where images are only predicted
            images = read_coco(dataset_paths(dataset)['ann_file'], ('images',))['images']
            found |= {Path(image['file_name']).suffix.lower() for image in images}
    return tuple(sorted(found))
