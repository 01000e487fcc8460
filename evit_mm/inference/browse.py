"""Pictures of what a model is fed: images as they come out of a config's pipeline.

What is drawn is what the pipeline hands on; the model's data preprocessor still normalises it and
pads it on the right and at the bottom.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from mmengine.structures import InstanceData
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

from ..data.check import check_config_data
from ..errors import ConfigError
from ..runner.build import config_faults
from ..runner.config import load_config
from ..runner.loader import GuardedDataset, Seeded
from ..runner.seeding import SAMPLE, derive_seed

SPLITS = ('train', 'val', 'test')
TILE, CAPTION, GAP = 320, 22, 6  # pixels
ROWS, COLUMNS = 4, 4  # of a sheet, and of the steps of a pipeline
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
    source = _Source(cfg, split, seed)
    indices = choose_images(source.dataset, number, classes, seed)
    folder = Path(out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"-o '{folder}' cannot be written: {error}") from error
    painter = _Painter(source.dataset.metainfo)
    rows: list[list[Image.Image]] = []
    written: list[Path] = []

    def save(name: str, tiles: Sequence[Sequence[Image.Image]]) -> None:
        written.append(folder / name)
        join_tiles(tiles).save(written[-1], quality=88)

    source.warm_up()
    for index in track(indices, description='drawing'):
        steps_of_first: list[tuple[str, Sample]] = []
        drawn: list[Sample] = []
        for draw in range(draws):
            with source.recording() as steps:
                drawn.append(source.draw(index, draw))
            steps_of_first = steps_of_first or steps
        row = [painter.tile(source.original(index), Path(source.info(index)['img_path']).name)]
        row += [painter.tile(sample, f'draw {draw}') for draw, sample in enumerate(drawn, 1)]
        if stages:
            tiles = [painter.tile(sample, step) for step, sample in steps_of_first]
            lines = [tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)]
            save(f'stages_{len(rows) + 1:02}.jpg', lines)
        rows.append(row)
    for first in range(0, len(rows), ROWS):
        save(f'sheet_{first // ROWS + 1:02}.jpg', rows[first : first + ROWS])
    return sorted(written)


def choose_images(dataset: Any, number: int, classes: Sequence[str] | None, seed: int) -> list[int]:
    """Choose images by chance, in the data set's order.

    Args:
        dataset: The data set.
        number: How many; all where there are fewer.
        classes: Of which each has one; None asks nothing.
        seed: Of the choice.

    Raises:
        ConfigError: There is no such class, or no image with one of them.
    """
    names = list(dataset.metainfo['classes'])
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


class _Source:
    """A split's images: as annotated, and as training draws them.

    Args:
        cfg: The config.
        split: One of :data:`SPLITS`.
        seed: Of the augmentation.
    """

    def __init__(self, cfg: Config, split: str, seed: int) -> None:
        scope = cfg.get('default_scope') or 'mmdet'
        init_default_scope(scope)
        with config_faults(cfg):
            self.dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
            self.dataset.full_init()
        self.guarded, self.seed = GuardedDataset(self.dataset, 'raise'), seed
        packer = 'PackInputs' if scope == 'mmpretrain' else 'PackDetInputs'
        self.pack = TRANSFORMS.build({'type': packer, 'meta_keys': ()})
        inner = self.dataset  # out of its wrappers; of several joined, the first
        while not hasattr(getattr(inner, 'pipeline', None), 'transforms'):
            inner = inner.dataset if hasattr(inner, 'dataset') else inner.datasets[0]
        self.steps: list[Any] = inner.pipeline.transforms

    def info(self, index: int) -> dict[str, Any]:
        """Return an image's annotations."""
        return _info(self.dataset, index)

    def original(self, index: int) -> Sample:
        """Return an image as the pipeline loads it, before anything is done to it."""
        results = self.info(index)
        for step in self.steps:
            if type(step).__name__.startswith('Load'):
                results = step(results)
        return unpack(self.pack(results))

    def draw(self, index: int, draw: int, *extra: int) -> Sample:
        """Return what the pipeline makes of an image.

        Args:
            index: The image.
            draw: Which draw of the augmentation.
            extra: More of what the seed is derived from.

        Raises:
            DataError: The image cannot be read.
        """
        packed = self.guarded[Seeded(index, derive_seed(self.seed, SAMPLE, draw, index, *extra))]
        if isinstance(packed, Exception):
            raise packed
        return unpack(packed)

    def warm_up(self) -> None:
        """Fill the caches of transforms that mix an image with earlier ones."""
        if any(hasattr(step, 'results_cache') for step in self.steps):
            for place in range(WARM_UP):
                self.draw(place % len(self.dataset), place, 1)

    @contextmanager
    def recording(self) -> Iterator[list[tuple[str, Sample]]]:
        """Note down the first image after each step of the pipeline, and of a mix's own."""
        log: list[tuple[str, Sample]] = []
        pipelines = [self.steps]
        if isinstance(getattr(self.dataset, 'pipeline', None), list):
            pipelines.append(self.dataset.pipeline)
        kept = [list(steps) for steps in pipelines]
        for steps in pipelines:
            steps[:] = [_Step(step, self.pack, log) for step in steps]
        try:
            yield log
        finally:
            for steps, own in zip(pipelines, kept, strict=True):
                steps[:] = own


class _Step:
    """A transform that notes down what it makes of the first image that it is given."""

    def __init__(self, step: Any, pack: Any, log: list[tuple[str, Sample]]) -> None:
        self.step, self.pack, self.log, self.done = step, pack, log, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)

    def __call__(self, results: Any) -> Any:
        results = self.step(results)
        if not self.done and isinstance(results, Mapping) and 'img' in results:
            # packing copies, and leaves out crowds
            self.log.append((type(self.step).__name__, unpack(self.pack(dict(results)))))
            self.done = True
        return results


def unpack(packed: Mapping[str, Any]) -> Sample:
    """Take a sample out of what a pipeline ends with: ``inputs`` and ``data_samples``."""
    pixels = packed['inputs'].permute(1, 2, 0).numpy()  # (H, W, 3 or 1), in some pipelines floats
    pixels = np.broadcast_to(pixels.clip(0, 255).astype(np.uint8), (*pixels.shape[:2], 3))
    sample = packed['data_samples']
    if 'gt_label' in sample:
        return Sample(pixels, label=int(sample.gt_label[0]))
    return Sample(pixels, sample.get('gt_instances'))


class _Painter:
    """Draws samples as tiles of one size, with mmdet's visualizer."""

    def __init__(self, metainfo: Mapping[str, Any]) -> None:
        self.metainfo = metainfo

    @cached_property
    def visualizer(self) -> Any:
        from mmdet.visualization import DetLocalVisualizer  # classifiers need no mmdet

        visualizer = DetLocalVisualizer(line_width=2)
        visualizer.dataset_meta = self.metainfo
        return visualizer

    def tile(self, sample: Sample, title: str) -> Image.Image:
        """Return a picture of ``TILE`` pixels' width with a line of text above."""
        height, width = sample.pixels.shape[:2]
        text = f'{title}, {width} x {height}'
        factor = TILE / max(height, width)
        size = max(1, round(width * factor)), max(1, round(height * factor))
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
        pixels = np.ascontiguousarray(cv2.resize(sample.pixels, size, interpolation=how)[..., ::-1])
        if sample.label is not None:
            text = f'{title}: {self.metainfo["classes"][sample.label]}'
        elif sample.instances is not None:
            pixels = self._draw(pixels, sample.instances, factor)
            if 'bboxes' in sample.instances:
                count = len(sample.instances.bboxes)
                text += f', {count} object' + 's' * (count != 1)
        picture = Image.new('RGB', (TILE, size[1] + CAPTION), 'white')
        picture.paste(Image.fromarray(pixels), (0, CAPTION))
        font = ImageFont.load_default(13)
        while font.getlength(text) > TILE:
            text = text[:-2].rstrip('…') + '…'
        ImageDraw.Draw(picture).text((2, 3), text, 'black', font)
        return picture

    def _draw(self, pixels: np.ndarray, instances: InstanceData, factor: float) -> np.ndarray:
        """Draw boxes, masks and names at the tile's size, so that they are legible in it."""
        from mmdet.structures import DetDataSample

        shown = InstanceData()
        if 'bboxes' in instances:
            shown.bboxes = getattr(instances.bboxes, 'tensor', instances.bboxes) * factor
            shown.labels = instances.labels
            if 'masks' in instances:
                shown.masks = instances.masks.resize(pixels.shape[:2])
        sample = DetDataSample(gt_instances=shown)
        self.visualizer.add_datasample('browse', pixels, sample, draw_pred=False)
        return self.visualizer.get_image()


def join_tiles(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
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


def _check(cfg: Config, split: str, number: int, draws: int, seed: int) -> None:
    if split not in SPLITS or not cfg.get(f'{split}_dataloader'):
        has = [name for name in SPLITS if cfg.get(f'{name}_dataloader')]
        raise ConfigError(f'{cfg.filename}: no split {split!r}; it has {", ".join(has)}')
    for flag, value, least in (('--number', number, 1), ('--draws', draws, 1), ('--seed', seed, 0)):
        if value < least:
            raise ConfigError(f'{flag} must be {least} or more, got {value}')
    check_config_data(cfg, (split,))


def _info(dataset: Any, index: int) -> dict[str, Any]:
    """Return an image's annotations; mmdet's mix of images keeps the order of what it wraps."""
    while not hasattr(dataset, 'get_data_info'):
        dataset = dataset.dataset
    return dataset.get_data_info(index)


def _labels(info: Mapping[str, Any]) -> set[int]:
    if 'gt_label' in info:
        return {int(label) for label in np.ravel(info['gt_label'])}
    found = info.get('instances', ())
    return {item['bbox_label'] for item in found if not item.get('ignore_flag')}
