"""Find the data sets of a config, their paths and the kinds of their images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.fileio import list_from_file

from ..errors import DataError
from .coco import read_coco
from .images import IMAGE_SUFFIXES
from .pipeline import FROM_FILE, loading_steps, step_name

# in coco_dataset.py and evaluation/coco_metric.py, which need mmdet
TOLERANT, HOT_METRIC = 'TolerantCocoDataset', 'HotCocoMetric'
COCO_TYPES = ('CocoDataset', TOLERANT)


def find_datasets(cfg: Config, split: str, *types: str) -> Iterator[Mapping[str, Any]]:
    """Yield the data sets of the given types, also inside RepeatDataset or ConcatDataset."""
    yield from unwrap((cfg.get(f'{split}_dataloader') or {}).get('dataset'), types)


def unwrap(dataset: Any, types: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    """Yield the data sets of the given types in a config of data sets."""
    if isinstance(dataset, (list, tuple)):
        for item in dataset:
            yield from unwrap(item, types)
    elif isinstance(dataset, Mapping):
        if str(dataset.get('type')).split('.')[-1] in types:
            yield dataset
        for key in ('dataset', 'datasets'):
            yield from unwrap(dataset.get(key), types)


def coco_datasets(cfg: Config, split: str) -> Iterator[Mapping[str, Any]]:
    """Yield the configs of the data sets in COCO format of a split. See ``find_datasets``."""
    return find_datasets(cfg, split, *COCO_TYPES)


def placed_datasets(cfg: Config, split: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the data sets in COCO format of a split with their place in a ``ConcatDataset``."""
    dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
    joined = isinstance(dataset, Mapping) and type_name(dataset) == 'ConcatDataset'
    for place, entry in enumerate(dataset.get('datasets') or () if joined else [dataset]):
        for found in unwrap(entry, COCO_TYPES):
            yield place, found


def evaluates_each(cfg: Config, split: str) -> bool:
    """Return whether each of several data sets of a split has an evaluator of its own."""
    evaluator = cfg.get(f'{split}_evaluator')
    return isinstance(evaluator, Mapping) and type_name(evaluator) == 'MultiDatasetsEvaluator'


def coco_evaluators(cfg: Config, split: str, place: int = 0) -> list[Mapping[str, Any]]:
    """Return the configs of a split's evaluators that compute COCO's metrics.

    ``place`` chooses one of the evaluators of mmdet's ``MultiDatasetsEvaluator``.
    """
    found = cfg.get(f'{split}_evaluator') or []
    evaluators = [found] if isinstance(found, Mapping) else list(found)
    if evaluates_each(cfg, split):
        metrics = evaluators[0].get('metrics') or []
        evaluators = [metrics] if isinstance(metrics, Mapping) else list(metrics)[place:][:1]
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
    pipeline = dataset.get('pipeline') or []
    return {
        'ann_file': root / (dataset.get('ann_file') or ''),
        'img_dir': root / (dataset.get('data_prefix') or {}).get('img', ''),
        'classes': metainfo_of(dataset)['classes'],
        'with_mask': any(step.get('with_mask') for step in pipeline),
        'pipeline': pipeline,
    }


def metainfo_of(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metainfo that a ``CocoDataset`` config gives, as mmengine completes it.

    A string that names a file stands for the lines of the file.
    """
    from mmdet.datasets import CocoDataset

    metainfo = {**CocoDataset.METAINFO, **(dataset.get('metainfo') or {})}
    if metainfo['classes'] is None:
        metainfo['classes'] = CocoDataset.METAINFO['classes']
    for key, value in metainfo.items():
        if isinstance(value, str) and Path(value).is_file():
            metainfo[key] = tuple(list_from_file(value))
    return metainfo


def misnamed_classes(dataset: Mapping[str, Any]) -> str:
    """Return an error if the metainfo has the classes under another name, such as ``CLASSES``."""
    metainfo = dataset.get('metainfo') or {}
    for key in metainfo:
        if 'classes' not in metainfo and key.lower() in ('classes', 'class', 'class_names'):
            return f"metainfo has '{key}', which mmdet 3 does not read; rename it to 'classes'"
    return ''


def loading_names(dataset: Mapping[str, Any]) -> list[str]:
    """Return the class names of the transforms that load the images of a data set."""
    return [*map(step_name, loading_steps(dataset.get('pipeline') or ()))]


def image_suffixes(cfg: Config) -> tuple[str, ...]:
    """Return the suffixes, in lower case, of the images that the test pipeline reads.

    They are those that OpenCV decodes. If another transform than ``LoadImageFromFile`` reads the
    images, the suffixes in the annotation file of the test set are added.
    """
    found = set(IMAGE_SUFFIXES)
    for dataset in coco_datasets(cfg, 'test'):
        if loading_names(dataset) in ([], [FROM_FILE]):
            continue
        with suppress(DataError):  # such a file may be missing where images are only predicted
            images = read_coco(dataset_paths(dataset)['ann_file'], ('images',))['images']
            found |= {Path(image['file_name']).suffix.lower() for image in images}
    return tuple(sorted(found))
