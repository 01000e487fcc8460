"""Pictures of what a model is fed: images as they come out of a config's pipeline.

What is drawn is what the pipeline hands on; the model's data preprocessor still normalises it and
pads it on the right and at the bottom.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import InstanceData
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track
from torch import Tensor

from ..data.check import check_config_data
from ..errors import ConfigError
from ..runner.build import config_faults
from ..runner.config import load_config
from ..runner.loader import GuardedDataset, Seeded
from ..runner.seeding import SAMPLE, derive_seed

SPLITS = ('train', 'val', 'test')
TILE, CAPTION, GAP = 320, 22, 6  # pixels
ROWS = 4  # of a sheet
WARM_UP = 12  # samples after which mmdet's transforms with a cache of images do mix


@dataclass
class Sample:
    """An image somewhere in a pipeline.

    Attributes:
        pixels: ``(H, W, 3)`` uint8 BGR.
        instances: ``bboxes (N, 4)``, ``labels (N,)`` and perhaps ``masks``; None of a classifier.
        label: Class of the whole image; None of a detector.
    """

    pixels: np.ndarray
    instances: InstanceData | None = None
    label: int | None = None


def browse(
    config: str | Path,
    out_dir: str | Path,
    split: str = 'train',
    number: int = 8,
    draws: int | None = None,
    classes: Sequence[str] | None = None,
    stages: bool = False,
    seed: int = 0,
    cfg_options: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Draw images as annotated, and beside each what several draws of the augmentation make of it.

    Args:
        config: Config file of a detector or a classifier.
        out_dir: Folder for ``sheet_01.jpg`` and so on, a row per image.
        split: ``'train'``, ``'val'`` or ``'test'``.
        number: Images, chosen under the seed.
        draws: Of each image; None takes 3 of ``train`` and 1 of the others.
        classes: Choose among the images that have one of these; None among all.
        stages: Write ``stages_01.jpg`` and so on too: the image after each step of the pipeline.
        seed: Of the choice and of the augmentation.
        cfg_options: Overrides of the config, dotted keys.

    Returns:
        The files.

    Raises:
        EvitError: The config or the data cannot be used, or there is no such image.
    """
    cfg = load_config(config, cfg_options)
    draws = draws if draws is not None else 3 if split == 'train' else 1
    _check(cfg, split, number, draws, seed)
    dataset = _build_dataset(cfg, split)
    names = list(dataset.metainfo['classes'])
    indices = choose(dataset, names, number, classes, seed)
    painter, guarded = _Painter(dataset.metainfo), GuardedDataset(dataset, 'raise')
    rows: list[list[Image.Image]] = []
    written: list[Path] = []
    with _prepared_folder(out_dir) as folder:
        _warm_up(guarded, seed)
        for index in track(indices, description='drawing'):
            row, steps = _row(painter, guarded, index, draws, seed)
            rows.append(row)
            if stages:
                tiles = [painter.tile(sample, step) for step, sample in steps]
                written.append(_save(_in_rows(tiles), folder / f'stages_{len(rows):02}.jpg'))
        for first in range(0, len(rows), ROWS):
            path = folder / f'sheet_{first // ROWS + 1:02}.jpg'
            written.append(_save(join(rows[first : first + ROWS]), path))
    return sorted(written)


def _row(
    painter: _Painter, guarded: GuardedDataset, index: int, draws: int, seed: int
) -> tuple[list[Image.Image], list[tuple[str, Sample]]]:
    """Return the tiles of an image and its draws, and the steps of the first draw."""
    dataset = guarded.dataset
    row = [painter.tile(_original(dataset, index), Path(_info(dataset, index)['img_path']).name)]
    first: list[tuple[str, Sample]] = []
    for draw in range(draws):
        key = Seeded(index, derive_seed(seed, SAMPLE, draw, index))
        with _recording(dataset) as steps:
            packed = guarded[key]
        first = first or steps
        row.append(painter.tile(from_packed(packed), f'draw {draw + 1}'))
    return row, first


def choose(
    dataset: Any, names: Sequence[str], number: int, classes: Sequence[str] | None, seed: int
) -> list[int]:
    """Choose images by chance, in the data set's order.

    Args:
        dataset: The data set.
        names: Its classes.
        number: How many; all where there are fewer.
        classes: Of which each has one; None asks nothing.
        seed: Of the choice.

    Raises:
        ConfigError: There is no such class, or no image with one of them.
    """
    unknown = sorted(set(classes or ()) - set(names))
    if unknown:
        raise ConfigError(f'--classes: no {unknown[0]!r} among {", ".join(names)}')
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    if classes is not None:
        wanted = {names.index(name) for name in classes}
        order = [index for index in order if wanted & _labels(_info(dataset, index))]
    if not order:
        raise ConfigError(f'no image with {" or ".join(classes or ["anything"])} in this split')
    return sorted(order[:number])


def from_packed(packed: Mapping[str, Any]) -> Sample:
    """Take a sample out of what a pipeline ends with: ``inputs`` and ``data_samples``."""
    pixels = _bytes(packed['inputs'].permute(1, 2, 0).numpy())
    sample = packed['data_samples']
    if 'gt_label' in sample:
        return Sample(pixels, label=int(sample.gt_label[0]))
    return Sample(pixels, sample.gt_instances)


def from_results(results: Mapping[str, Any]) -> Sample:
    """Take a sample out of the dict that goes through a pipeline; crowds are left out."""
    pixels = _bytes(results['img'])
    if 'gt_label' in results:
        return Sample(pixels, label=int(np.ravel(results['gt_label'])[0]))
    instances = InstanceData()
    if results.get('gt_bboxes') is not None:
        kept = ~np.asarray(
            results.get('gt_ignore_flags', np.zeros(len(results['gt_bboxes']))), bool
        )
        instances.bboxes = _tensor(results['gt_bboxes'])[torch.from_numpy(kept)]
        instances.labels = torch.as_tensor(results['gt_bboxes_labels'])[torch.from_numpy(kept)]
        if results.get('gt_masks') is not None:
            instances.masks = results['gt_masks'][np.flatnonzero(kept)]
    return Sample(pixels, instances)


class _Painter:
    """Draws samples as tiles of one size, with mmdet's visualizer."""

    def __init__(self, metainfo: Mapping[str, Any]) -> None:
        self.names = metainfo['classes']
        self.metainfo = metainfo
        self.visualizer: Any = None

    def tile(self, sample: Sample, title: str) -> Image.Image:
        """Return a picture of ``TILE`` pixels' width with a line of text above."""
        height, width = sample.pixels.shape[:2]
        text = f'{title}, {width} x {height}'
        factor = TILE / max(height, width)
        size = max(1, round(width * factor)), max(1, round(height * factor))
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
        pixels = cv2.resize(sample.pixels, size, interpolation=how)[..., ::-1]
        if sample.label is not None:
            text = f'{title}: {self.names[sample.label]}'
        elif sample.instances is not None:
            pixels = self._draw(pixels, sample.instances, factor)
            if 'bboxes' in sample.instances:
                count = len(sample.instances.bboxes)
                text += f', {count} object' + 's' * (count != 1)
        picture = Image.new('RGB', (TILE, size[1] + CAPTION), 'white')
        picture.paste(Image.fromarray(np.ascontiguousarray(pixels)), (0, CAPTION))
        font = ImageFont.load_default(13)
        while font.getlength(text) > TILE:
            text = text[:-2].rstrip('…') + '…'
        ImageDraw.Draw(picture).text((2, 3), text, 'black', font)
        return picture

    def _draw(self, pixels: np.ndarray, instances: InstanceData, factor: float) -> np.ndarray:
        """Draw boxes, masks and names at the tile's size, so that they are legible in it."""
        from mmdet.structures import DetDataSample
        from mmdet.visualization import DetLocalVisualizer

        if self.visualizer is None:
            self.visualizer = DetLocalVisualizer(line_width=2)
            self.visualizer.dataset_meta = self.metainfo
        shown = InstanceData()
        if 'bboxes' in instances:
            shown.bboxes = _tensor(instances.bboxes) * factor
            shown.labels = instances.labels
            if 'masks' in instances:
                shown.masks = instances.masks.resize(pixels.shape[:2])
        sample = DetDataSample(gt_instances=shown)
        pixels = np.ascontiguousarray(pixels)
        self.visualizer.add_datasample('browse', pixels, sample, draw_pred=False)
        return self.visualizer.get_image()


def join(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Put tiles together, in rows as high as their highest."""
    columns = max(map(len, rows))
    heights = [max(tile.height for tile in row) for row in rows]
    size = columns * (TILE + GAP) - GAP, sum(heights) + GAP * (len(rows) - 1)
    sheet, y = Image.new('RGB', size, 'white'), 0
    for row, height in zip(rows, heights, strict=True):
        for x, tile in enumerate(row):
            sheet.paste(tile, (x * (TILE + GAP), y))
        y += height + GAP
    return sheet


def _in_rows(tiles: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    return join([tiles[i : i + columns] for i in range(0, len(tiles), columns)])


def _save(picture: Image.Image, path: Path) -> Path:
    picture.save(path, quality=88)
    return path


def _check(cfg: Config, split: str, number: int, draws: int, seed: int) -> None:
    if split not in SPLITS or not cfg.get(f'{split}_dataloader'):
        has = [name for name in SPLITS if cfg.get(f'{name}_dataloader')]
        raise ConfigError(f'{cfg.filename}: no split {split!r}; it has {", ".join(has)}')
    for flag, value, least in (('--number', number, 1), ('--draws', draws, 1), ('--seed', seed, 0)):
        if value < least:
            raise ConfigError(f'{flag} must be {least} or more, got {value}')
    check_config_data(cfg, (split,))


def _build_dataset(cfg: Config, split: str) -> Any:
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    with config_faults(cfg):
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        dataset.full_init()
    return dataset


@contextmanager
def _prepared_folder(out_dir: str | Path) -> Iterator[Path]:
    folder = Path(out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise ConfigError(f"-o '{folder}' cannot be written: {error}") from None


def _info(dataset: Any, index: int) -> dict[str, Any]:
    """Return an image's annotations; mmdet's mix of images keeps the order of what it wraps."""
    while not hasattr(dataset, 'get_data_info'):
        dataset = dataset.dataset
    return dataset.get_data_info(index)


def _innermost(dataset: Any) -> Any:
    """Return a data set with a pipeline out of its wrappers; of several joined, the first."""
    while not hasattr(getattr(dataset, 'pipeline', None), 'transforms'):
        dataset = dataset.dataset if hasattr(dataset, 'dataset') else dataset.datasets[0]
    return dataset


def _original(dataset: Any, index: int) -> Sample:
    """Return an image as the pipeline loads it, before anything is done to it."""
    results = _info(dataset, index)
    for step in _innermost(dataset).pipeline.transforms:
        if type(step).__name__.startswith('Load'):
            results = step(results)
    return from_results(results)


def _labels(info: Mapping[str, Any]) -> set[int]:
    if 'gt_label' in info:
        return {int(label) for label in np.ravel(info['gt_label'])}
    found = info.get('instances', ())
    return {item['bbox_label'] for item in found if not item.get('ignore_flag')}


def _warm_up(guarded: GuardedDataset, seed: int) -> None:
    """Fill the caches of transforms that mix an image with earlier ones."""
    steps = _innermost(guarded.dataset).pipeline.transforms
    if any(hasattr(step, 'results_cache') for step in steps):
        for place in range(WARM_UP):
            index = place % len(guarded)
            guarded[Seeded(index, derive_seed(seed, SAMPLE, place, index, 1))]


class _Step:
    """A transform that notes down what it makes of the first image that it is given."""

    def __init__(self, step: Any, log: list[tuple[str, Sample]]) -> None:
        self.step, self.log, self.done = step, log, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)

    def __call__(self, results: Any) -> Any:
        results = self.step(results)
        if not self.done and isinstance(results, Mapping) and 'img' in results:
            self.log.append((type(self.step).__name__, _copied(from_results(results))))
            self.done = True
        return results


@contextmanager
def _recording(dataset: Any) -> Iterator[list[tuple[str, Sample]]]:
    """Note down the first image's sample after each step of the pipeline, and of a mix's own."""
    log: list[tuple[str, Sample]] = []
    pipelines = [_innermost(dataset).pipeline.transforms]
    if isinstance(getattr(dataset, 'pipeline', None), list):
        pipelines.append(dataset.pipeline)
    kept = [list(steps) for steps in pipelines]
    for steps in pipelines:
        steps[:] = [_Step(step, log) for step in steps]
    try:
        yield log
    finally:
        for steps, own in zip(pipelines, kept, strict=True):
            steps[:] = own


def _copied(sample: Sample) -> Sample:
    """Return a copy, since transforms change images and boxes in place."""
    instances = None if sample.instances is None else sample.instances.clone()
    return Sample(sample.pixels.copy(), instances, sample.label)


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """Return pixels as uint8; some transforms leave floats."""
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _tensor(boxes: Any) -> Tensor:
    return getattr(boxes, 'tensor', boxes).clone()
