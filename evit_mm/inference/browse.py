"""Pictures of what a model is fed: images as they come out of a config's pipeline.

What is drawn is what the pipeline hands on; the model's data preprocessor still normalises it and
pads it on the right and at the bottom.

A packed image is what a pipeline ends with: ``inputs (3, H, W)``, BGR, and ``data_samples``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from mmengine.structures import InstanceData
from rich.progress import track

from ..data.check import check_config_data
from ..errors import ConfigError
from ..runner.build import config_faults, make_folder
from ..runner.config import is_classifier, load_config
from ..runner.loader import GuardedDataset, Seeded
from ..runner.seeding import SAMPLE, derive_seed

SPLITS = ('train', 'val', 'test')
TILE, CAPTION, DPI = 320, 24, 100  # pixels, pixels, per inch
ROWS, COLUMNS = 4, 4  # of a sheet, and of the steps of a pipeline
Packed = Mapping[str, Any]
Tile = tuple[np.ndarray, str]  # pixels ``(h, w, 3)`` RGB, and the text above


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
    cfg, folder = load_config(config, cfg_options), Path(out_dir)
    if not cfg.get(f'{split}_dataloader'):
        raise ConfigError(f'config {cfg.filename} has no {split}_dataloader; add it')
    if draws is None:
        draws = 3 if split == 'train' else 1
    for flag, value, least in (('--number', number, 1), ('--draws', draws, 1), ('--seed', seed, 0)):
        if value < least:
            raise ConfigError(f'{flag} must be at least {least}, got {value}')
    check_config_data(cfg, (split,))
    source = _Source(cfg, split, seed, stages)
    indices = choose_images(source.dataset, number, classes, seed)
    make_folder('-o', folder)
    painter = _Painter(source.dataset.metainfo)
    pictures: dict[str, list[list[Tile]]] = {}
    for place, index in enumerate(track(indices, description='drawing')):
        drawn = [source.draw(index, draw) for draw in range(draws)]
        name = Path(source.dataset.get_data_info(index)['img_path']).name
        row = [painter.tile(source.original(index), name)]
        row += [painter.tile(packed, f'draw {draw}') for draw, packed in enumerate(drawn, 1)]
        if stages:
            steps = [painter.tile(packed, step) for step, packed in source.steps()]
            rows = [steps[i : i + COLUMNS] for i in range(0, len(steps), COLUMNS)]
            pictures[f'stages_{place + 1:02}.jpg'] = rows
        pictures.setdefault(f'sheet_{place // ROWS + 1:02}.jpg', []).append(row)
    for name, rows in pictures.items():
        join_tiles(rows).savefig(folder / name, dpi=DPI)
    return [folder / name for name in sorted(pictures)]


def choose_images(dataset: Any, number: int, classes: Sequence[str] | None, seed: int) -> list[int]:
    """Choose at most so many images by chance, in the data set's order; each has a given class."""
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    if classes is not None:
        names = list(dataset.metainfo['classes'])
        unknown = sorted(set(classes) - set(names))
        if unknown:
            raise ConfigError(
                f'--classes: unknown class {unknown[0]!r}; choose from {", ".join(names)}'
            )
        wanted = {names.index(name) for name in classes}
        order = [index for index in order if wanted & _labels(dataset.get_data_info(index))]
        if not order:
            raise ConfigError(f'--classes: this split has no image with {" or ".join(classes)}')
    return sorted(order[:number])


def _labels(info: Mapping[str, Any]) -> set[int]:
    if 'gt_label' in info:
        return {int(label) for label in np.ravel(info['gt_label'])}
    return {item['bbox_label'] for item in info['instances'] if not item.get('ignore_flag')}


class _Source:
    """A split's images: as annotated, and as training draws them.

    With ``stages``, an image's first draw notes down what each step of the pipeline makes of it.
    """

    def __init__(self, cfg: Config, split: str, seed: int, stages: bool) -> None:
        init_default_scope(cfg.get('default_scope') or 'mmdet')
        with config_faults(cfg):
            self.dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
            self.dataset.full_init()
        self.guarded, self.seed = GuardedDataset(self.dataset, 'raise'), seed
        packer = 'PackInputs' if is_classifier(cfg) else 'PackDetInputs'
        self.pack = TRANSFORMS.build({'type': packer, 'meta_keys': ()})
        pipelines = _pipelines(self.dataset)
        self.loading = [s for s in pipelines[0] if type(s).__name__.startswith('Load')]
        self.log: dict[_Step, Packed] = {}
        if stages:
            for steps in pipelines:
                steps[:] = [_Step(step, self.pack, self.log) for step in steps]

    def original(self, index: int) -> Packed:
        """Return an image as the pipeline loads it, before anything is done to it."""
        results = self.dataset.get_data_info(index)
        for step in self.loading:
            results = step(results)
        return self.pack(results)

    def draw(self, index: int, draw: int) -> Packed:
        """Return what the pipeline makes of an image; each draw has a seed of its own."""
        if draw == 0:
            self.log.clear()
        packed = self.guarded[Seeded(index, derive_seed(self.seed, SAMPLE, draw, index))]
        if isinstance(packed, Exception):
            raise packed
        return packed

    def steps(self) -> list[tuple[str, Packed]]:
        """Return the names of the steps of an image's first draw, and what they made of it."""
        return [(type(step.step).__name__, packed) for step, packed in self.log.items()]


def _pipelines(dataset: Any) -> list[list[Any]]:
    """Return a data set's lists of transforms, the innermost first; of several joined, the first's.

    mmdet's mix of images has a pipeline around that of the data set inside.
    """
    pipelines: list[list[Any]] = []
    while dataset is not None:
        pipeline = getattr(dataset, 'pipeline', None)
        if pipeline is not None:
            pipelines.insert(0, getattr(pipeline, 'transforms', pipeline))
        joined = getattr(dataset, 'datasets', [None])
        dataset = getattr(dataset, 'dataset', joined[0])
    return pipelines


class _Step:
    """A transform that notes down what it makes of the first image that it is given."""

    def __init__(self, step: Any, pack: Any, log: dict[_Step, Packed]) -> None:
        self.step, self.pack, self.log = step, pack, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)

    def __call__(self, results: Any) -> Any:
        results = self.step(results)
        if self not in self.log and isinstance(results, Mapping) and 'img' in results:
            self.log[self] = self.pack(dict(results))  # packing copies, and leaves out crowds
        return results


class _Painter:
    """Draws packed images as tiles of one size, with mmdet's visualizer."""

    def __init__(self, metainfo: Mapping[str, Any]) -> None:
        self.metainfo = metainfo

    @cached_property
    def visualizer(self) -> Any:
        from mmdet.visualization import DetLocalVisualizer  # classifiers need no mmdet

        visualizer = DetLocalVisualizer(line_width=2)
        visualizer.dataset_meta = self.metainfo
        return visualizer

    def tile(self, packed: Packed, title: str) -> Tile:
        """Return a picture whose longer side is ``TILE`` pixels, and the text above it."""
        pixels = packed['inputs'].permute(1, 2, 0).numpy()  # in some pipelines floats
        height, width = pixels.shape[:2]
        pixels = pixels[..., ::-1].clip(0, 255).astype(np.uint8)
        pixels, factor = mmcv.imrescale(pixels, (TILE, TILE), return_scale=True)
        sample = packed['data_samples']
        if 'gt_label' in sample:
            return pixels, f'{title}: {self.metainfo["classes"][int(sample.gt_label)]}'
        text = f'{title}, {width} x {height}'
        if 'bboxes' in sample.gt_instances:
            pixels = self._draw(pixels, sample.gt_instances, factor)
            text = f'{text}, {len(sample.gt_instances)} objects'
        return pixels, text

    def _draw(self, pixels: np.ndarray, instances: InstanceData, factor: float) -> np.ndarray:
        """Draw boxes, masks and names at the tile's size, so that they are legible in it."""
        from mmdet.structures import DetDataSample
        from mmdet.structures.bbox import get_box_tensor

        shown = InstanceData(labels=instances.labels)
        shown.bboxes = get_box_tensor(instances.bboxes) * factor
        if 'masks' in instances:
            shown.masks = instances.masks.resize(pixels.shape[:2])
        sample = DetDataSample(gt_instances=shown)
        self.visualizer.add_datasample('browse', pixels, sample, draw_pred=False)
        return self.visualizer.get_image()


def join_tiles(rows: Sequence[Sequence[Tile]]) -> Figure:
    """Put tiles together, in rows as high as their highest."""
    columns = max(map(len, rows))
    heights = [max(pixels.shape[0] for pixels, _ in row) + CAPTION for row in rows]
    figure = Figure(figsize=(columns * TILE / DPI, sum(heights) / DPI), layout='constrained')
    axes = figure.subplots(
        len(rows), columns, squeeze=False, gridspec_kw={'height_ratios': heights}
    )
    for axis in axes.flat:
        axis.axis('off')
    for row, tiles in zip(axes, rows, strict=True):
        for axis, (pixels, text) in zip(row, tiles, strict=False):
            axis.imshow(pixels)
            axis.set_title(text, fontsize=8)
    return figure
