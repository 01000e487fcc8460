"""Speed of the training pipeline in one worker, and how long a training waits for its data."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, IterableDataset

from ...data.pipeline import FROM_FILE, REDUCED
from ...runner.config import load_config
from . import networks
from .detection import photo
from .timing import Call, Row, Setting, time_rows, wait

# (width, height) of the photo, and of the box into which it is resized
CASES = (((640, 480), (320, 240)), ((640, 480), (1333, 800)), ((4000, 3000), (1333, 800)))
# the same, for trainings
TRAININGS = (((640, 480), (320, 240)), ((4000, 3000), (640, 480)))
CONFIG = 'retinanet_evit_m4_bccd'  # with the light head
BATCH, WORKERS, WARMUP = 8, 2, 3
TORCHVISION = "torchvision's decoder"
Size = tuple[int, int]


def load_by_torchvision(results: dict[str, Any]) -> dict[str, Any]:
    """Load a JPEG file with torchvision, in BGR as the transforms do."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    pixels = decode_jpeg(read_file(results['img_path']), ImageReadMode.RGB)
    image = pixels.flip(0).permute(1, 2, 0).contiguous().numpy()
    return {**results, 'img': image, 'img_shape': image.shape[:2], 'ori_shape': image.shape[:2]}


def measure(setting: Setting) -> tuple[list[Row], list[str]]:
    """Time the pipeline with each way to load an image, and iterations of trainings."""
    rows: list[Row] = []
    with _threads_of_a_worker():
        for size, scale in CASES:
            with photo(size) as file:
                rows += time_rows(list(_calls(_sample(file, size), scale)), setting.rounds)
    shares = []
    for size, scale in TRAININGS:
        with photo(size) as file:
            for name in (FROM_FILE, REDUCED):
                found = _train(name, _sample(file, size), scale, setting)
                waiting, whole = (sum(row.seconds) for row in found)
                shares.append(f'- {found[0].group}, {name}: {waiting / whole:.1%}')
                rows += found
    note = (
        'The pipeline is that of the training in the configs: load, read the annotations, resize, '
        'flip, pack. It runs in one thread, as in a worker, so images/s is a rate per worker. A '
        f'training has {WORKERS} workers and batches of {BATCH}. Its detector is '
        'EfficientViT-M0 with the light head. The share of its time that it waits for data:'
    )
    return rows, [note, '\n'.join(shares)]


def _calls(sample: dict[str, Any], scale: Size) -> Iterator[tuple[Row, Call]]:
    """Yield the pipeline with each way to load an image, and its first step alone."""
    group = _group(sample['width'], sample['height'], scale)
    pipelines = {name: _pipeline(name, scale) for name in (FROM_FILE, TORCHVISION, REDUCED)}
    for name, pipeline in pipelines.items():
        row = Row(group, name, work=1, against=FROM_FILE)
        yield row, partial(_run, pipeline, sample)
    first = pipelines[FROM_FILE].transforms[0]
    yield Row(group, f'{FROM_FILE}, only this step'), partial(_run, first, sample)


def _run(pipeline: Any, sample: dict[str, Any]) -> Any:
    return pipeline(copy.deepcopy(sample))  # transforms change their input


@contextmanager
def _threads_of_a_worker() -> Iterator[None]:
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


def _group(width: int, height: int, scale: Size) -> str:
    return f'{width}x{height} to {scale[0]}x{scale[1]}'


def _sample(file: Path, size: Size) -> dict[str, Any]:
    """Return what a data set passes to its pipeline: an image with eight boxes."""
    width, height = size
    box = [width / 4, height / 4, width / 2, height / 2]
    instances = [{'bbox': box, 'bbox_label': 0, 'ignore_flag': 0}] * 8
    return {
        'img_path': str(file),
        'img_id': 0,
        'width': width,
        'height': height,
        'instances': instances,
    }


def _pipeline(name: str, scale: Size) -> Any:
    from mmcv.transforms import Compose

    from ...data import reduced_image  # noqa: F401 (registers the transform)

    steps = networks.read_untrained(CONFIG).train_dataloader.dataset.pipeline
    loading: Any = {
        FROM_FILE: {'type': FROM_FILE},
        REDUCED: {'type': REDUCED, 'scale': scale},
        TORCHVISION: load_by_torchvision,
    }[name]
    resized = [{**step, 'scale': scale} if step.type == 'Resize' else step for step in steps[1:]]
    return Compose([loading, *resized])


class _Endless(IterableDataset):
    """One image again and again."""

    def __init__(self, sample: dict[str, Any], pipeline: Any) -> None:
        self.sample, self.pipeline = sample, pipeline

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield _run(self.pipeline, self.sample)


def _train(name: str, sample: dict[str, Any], scale: Size, setting: Setting) -> list[Row]:
    """Time the iterations of a training, and how long each waits for its batch."""
    from mmengine.dataset import pseudo_collate, worker_init_fn
    from mmengine.optim import build_optim_wrapper

    cfg = load_config(CONFIG, {'arch': 'm0', 'model.backbone.init_cfg': None})
    model = networks.build_detector(cfg).to(setting.device).train()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    loader = DataLoader(
        _Endless(sample, _pipeline(name, scale)),
        batch_size=BATCH,
        num_workers=WORKERS,
        collate_fn=pseudo_collate,
        worker_init_fn=partial(worker_init_fn, num_workers=WORKERS, rank=0, seed=0),
    )
    group = f'training, {_group(sample["width"], sample["height"], scale)}'
    waiting, whole = (Row(group, f'{name}, {part}') for part in ('waiting for data', 'iteration'))
    batches = iter(loader)
    for step in range(-WARMUP, setting.rounds):
        start = time.perf_counter()
        data = next(batches)
        loaded = time.perf_counter()
        model.train_step(data, optimizer)
        wait()
        if step >= 0:
            waiting.seconds.append(loaded - start)
            whole.seconds.append(time.perf_counter() - start)
    return [waiting, whole]
