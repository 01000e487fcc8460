"""Evaluation of the detectors that the authors released, on COCO val2017."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ...checkpoint.sources import local_path
from ...errors import ConfigError
from ...runner.build import load_detector, set_device
from ...runner.data_check import DataCheckHook
from ...runner.faults import named_faults
from ...utils.files import read_json_dict, write_json
from ..budget import name_of
from ..collect import input_size
from ..published_results import read_results
from ..runs import RESULT, claimed
from ..table import METRICS, Row, count_detector, figures_of, write_tables
from .coco2017 import unlike_coco
from .cost import duration
from .settings import Settings
from .trainings import check
from .weights import check_detectors

CHUNK = 50  # images in one file of results: at one image per second, a kill costs a minute
RECORD = 'evaluate.json'


def released_detectors() -> dict[str, str]:
    """Return the file names of the authors' release by the names of their configs."""
    configs = read_results()['configs']
    return {n: c['weights'] for n, c in configs.items() if 'weights' in c and n.endswith('_coco')}


def evaluate_released(
    settings: Settings, names: Sequence[str] = (), estimate: bool = False
) -> list[Row]:
    """Evaluate the released detectors on val2017, and write the table to the folder ``released``.

    One process runs, on one GPU or on the CPU. The results are stored every 50 images. If it is
    interrupted, call this function again to continue.

    Args:
        settings: Data, folder, GPUs and overrides.
        names: Names of configs. Empty: all that have a released detector.
        estimate: Evaluate only the next 50 images of each, and return no rows.

    Returns:
        One row per config, best first.

    Raises:
        ConfigError: A setting is wrong or has changed, or the folder is in use.
        DataError: Data or weights are missing or wrong. The message lists all of them.
    """
    console, released = Console(stderr=True), released_detectors()
    configs = settings.configs(names or list(released))
    for name in configs:
        if name not in released:
            raise ConfigError(
                f'--configs {name}: the authors released no detector for it; choose from '
                f'{", ".join(released)}'
            )
    set_device('cuda' if settings.num_gpus else 'cpu')
    out = settings.out / 'released'
    urls = {name: cfg.release + released[name] for name, cfg in configs.items()}
    with claimed(out, 'evaluation'):
        begun = any(out.glob('*/images_*.json'))
        check_files = partial(check_detectors, configs, urls)
        facts = check(settings, configs, ('val',), out / RECORD, check_files, begun)
        rows, rates = [], []
        for name, cfg in configs.items():
            folder = out / name
            metrics = read_json_dict(folder / RESULT).get('metrics')
            if metrics:
                console.print(f'{name}: finished', highlight=False)
            else:
                metrics = _evaluate(name, cfg, urls[name], folder, console, estimate)
            if estimate or metrics is None:
                continue
            files = folder.glob('images_*.json')
            rates.append(mean(read_json_dict(file)['seconds_per_image'] for file in files))
            rows.append(Row(name_of(name), cfg, [metrics]))
            count_detector(rows[-1], input_size(cfg))
        if estimate:
            return []
        about = {
            'data': settings.data_name,
            'evaluated': "the authors' released detectors",
            'device': settings.device,
            'seconds an image': [round(rate, 3) for rate in rates],
            **settings.facts(facts),
        }
        notices = [*settings.notices(), *unlike_coco(facts, settings.rehearsal)]
        return write_tables(rows, out, about, published=True, notices=notices)


def _evaluate(
    name: str, cfg: Config, url: str, folder: Path, console: Console, estimate: bool
) -> dict[str, float] | None:
    """Evaluate one detector, or only its next images, and write its result last."""
    from mmdet.registry import DATASETS

    init_default_scope('mmdet')
    evaluator = Evaluator(cfg.test_evaluator)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    evaluator.dataset_meta = dataset.metainfo
    number = len(dataset)
    chunks = {
        folder / f'images_{first:05d}.json': range(first, min(first + CHUNK, number))
        for first in range(0, number, CHUNK)
    }
    todo = {file: images for file, images in chunks.items() if not file.is_file()}
    columns = (TextColumn('{task.description}'), BarColumn(), TextColumn('{task.fields[state]}'))
    with Progress(*columns, console=console) as progress, named_faults():
        done = number - sum(map(len, todo.values()))
        if estimate:
            todo = dict(list(todo.items())[:1])
        task = progress.add_task(name, total=number, completed=done, state='starting')
        for rate in _detect(cfg, url, dataset, evaluator, todo, partial(progress.advance, task)):
            hours = rate * number / 3600
            left = duration(hours * (1 - progress.tasks[0].completed / number))
            if progress.tasks[0].fields['state'] == 'starting':
                console.print(
                    f'{name}: {rate:.3f} seconds an image, {duration(hours)} for {number:,} '
                    f'images; {left} left',
                    highlight=False,
                    soft_wrap=True,
                )
            progress.update(task, state=f'{left} left')
    if estimate and not all(file.is_file() for file in chunks):
        return None
    (metric,) = evaluator.metrics
    metric.results = [_restored(r) for file in chunks for r in read_json_dict(file)['results']]
    metrics = figures_of(evaluator.evaluate(number)) or dict.fromkeys(METRICS, 0.0)
    write_json(folder / RESULT, {'metrics': metrics}, indent=1)
    console.print(f'{name}: AP {metrics["mAP"]:.3f}', highlight=False, soft_wrap=True)
    return metrics


def _detect(
    cfg: Config,
    url: str,
    dataset: Any,
    evaluator: Evaluator,
    chunks: Mapping[Path, Sequence[int]],
    advance: Callable[[int], None],
) -> Iterator[float]:
    """Write the results of chunks of images, and yield the seconds per image after each."""
    if not chunks:
        return
    model: Any = load_detector(cfg, local_path(url))
    dataset.get_subset_([image for images in chunks.values() for image in images])
    loader = Runner.build_dataloader({**cfg.test_dataloader, 'dataset': dataset})
    (metric,) = evaluator.metrics
    check, left = DataCheckHook(), list(chunks.items())
    start = time.perf_counter()
    for place, batch in enumerate(loader):
        check.before_test_iter(None, place, batch)
        with torch.no_grad():
            found = model.test_step(batch)
        evaluator.process(data_samples=found, data_batch=batch)
        advance(len(found))
        while left and len(metric.results) >= len(left[0][1]):
            file, images = left.pop(0)
            rate = (time.perf_counter() - start) / len(images)
            results, metric.results = metric.results[: len(images)], metric.results[len(images) :]
            write_json(file, {'seconds_per_image': rate, 'results': _plain(results)})
            start = time.perf_counter()
            yield rate


def _plain(value: Any) -> Any:
    """Return results of COCO's metric as JSON values. Floats keep every bit."""
    if isinstance(value, np.ndarray):
        return {'dtype': str(value.dtype), 'shape': value.shape, 'values': value.ravel().tolist()}
    if isinstance(value, bytes):  # an encoded mask
        return {'ascii': value.decode('ascii')}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _restored(value: Any) -> Any:
    """Return the results that :func:`_plain` has converted."""
    if isinstance(value, dict):
        if 'dtype' in value:
            return np.array(value['values'], value['dtype']).reshape(value['shape'])
        if 'ascii' in value:
            return value['ascii'].encode('ascii')
        return {key: _restored(item) for key, item in value.items()}
    return [_restored(item) for item in value] if isinstance(value, list) else value
