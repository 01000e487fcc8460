"""Pictures of a config's pipeline output, which is the input of the model.

The pictures show images before the data preprocessor of the model, which normalises them and pads
them on the right and at the bottom.

A packed image is the output of a pipeline: ``inputs (3, H, W)`` in BGR and ``data_samples``.
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
from ..data.pictures import Levels, complete_palette, to_picture, value_levels
from ..data.pipeline import innermost_pipelines, loading_steps, loads_annotations, step_name
from ..errors import ConfigError
from ..runner.build import config_faults, make_folder
from ..runner.config import is_classifier, load_config
from ..runner.loader import GuardedDataset, Seeded
from ..runner.seeding import SAMPLE, derive_seed
from ..utils.text import counted

SPLITS = ('train', 'val', 'test')
TILE, CAPTION, DPI = 320, 24, 100  # pixels, pixels, dots per inch
NORMALISED = 1 / 20  # an image with this part of the original range of values is normalised
ROWS, COLUMNS = 4, 4  # images per sheet, pipeline steps per row
Packed = Mapping[str, Any]
Tile = tuple[np.ndarray, str]  # pixels ``(h, w, 3)`` RGB, and the title


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
    """Draw annotated images, each beside several samples of its augmentation.

    Args:
        config: Config file of a detector or a classifier.
        out_dir: Folder for ``sheet_01.jpg`` and so on, with one row per image.
        split: ``'train'``, ``'val'`` or ``'test'``.
        number: Number of images. They are chosen at random.
        draws: Augmentation samples per image. Default: 3 for ``train``, 1 for the other splits.
        classes: Choose only images that contain one of these classes. Default: all images.
        stages: Also write ``stages_01.jpg`` and so on, with the image after each pipeline step.
        seed: Random seed of the choice and of the augmentation.
        cfg_options: Overrides of the config, with dotted keys.

    Returns:
        The written files.

    Raises:
        EvitError: The config or the data cannot be used, or no image contains ``classes``.
    """
    cfg, folder = load_config(config, cfg_options), Path(out_dir)
    if not cfg.get(f'{split}_dataloader'):
        raise ConfigError(f"config '{cfg.filename}' has no {split}_dataloader; add it")
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
        original = source.original(index)
        painter.levels = value_levels(_pixels(original))
        row = [painter.tile(original, name)]
        row += [painter.tile(packed, f'draw {draw}') for draw, packed in enumerate(drawn, 1)]
        if stages:
            steps = [painter.tile(packed, step) for step, packed in source.steps()]
            rows = [steps[i : i + COLUMNS] for i in range(0, len(steps), COLUMNS)]
            pictures[f'stages_{place + 1:02}.jpg'] = rows
        pictures.setdefault(f'sheet_{place // ROWS + 1:02}.jpg', []).append(row)
    for name, rows in pictures.items():
        draw_sheet(rows).savefig(folder / name, dpi=DPI)
    return [folder / name for name in sorted(pictures)]


def choose_images(dataset: Any, number: int, classes: Sequence[str] | None, seed: int) -> list[int]:
    """Return the indices of at most ``number`` random images, in the order of the data set.

    With ``classes``, each image contains at least one of these classes.
    """
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
            raise ConfigError(
                f'--classes: this split has no image with {" or ".join(classes)}; choose other '
                'classes or another --split'
            )
    return sorted(order[:number])


def _labels(info: Mapping[str, Any]) -> set[int]:
    if 'gt_label' in info:
        return {int(label) for label in np.ravel(info['gt_label'])}
    return {item['bbox_label'] for item in info['instances'] if not item.get('ignore_flag')}


class _Source:
    """The images of a split, without and with augmentation.

    With ``stages``, the first draw of an image records the output of each pipeline step.
    """

    def __init__(self, cfg: Config, split: str, seed: int, stages: bool) -> None:
        init_default_scope(cfg.get('default_scope') or 'mmdet')
        with config_faults(cfg):
            self.dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
            self.dataset.full_init()
        self.guarded, self.seed = GuardedDataset(self.dataset, 'raise'), seed
        packer = 'PackInputs' if is_classifier(cfg) else 'PackDetInputs'
        self.pack = TRANSFORMS.build({'type': packer, 'meta_keys': ()})
        pipelines = innermost_pipelines(self.dataset)
        first = len(loading_steps(pipelines[0]))
        further = [step for step in pipelines[0][first:] if loads_annotations(step)]
        self.loading = [*pipelines[0][:first], *further]
        self.log: dict[_Step, Packed] = {}
        if stages:
            for steps in pipelines:
                steps[:] = [_Step(step, self.pack, self.log) for step in steps]

    def original(self, index: int) -> Packed:
        """Return an image as the pipeline loads it, without further steps."""
        results = self.dataset.get_data_info(index)
        for step in self.loading:
            results = step(results)
        return self.pack(results)

    def draw(self, index: int, draw: int) -> Packed:
        """Return the pipeline output for an image; each draw has a different seed."""
        if draw == 0:
            self.log.clear()
        packed = self.guarded[Seeded(index, derive_seed(self.seed, SAMPLE, draw, index))]
        if isinstance(packed, Exception):
            raise packed
        return packed

    def steps(self) -> list[tuple[str, Packed]]:
        """Return the name and the output of each pipeline step of the first draw."""
        return [(step_name(step.step), packed) for step, packed in self.log.items()]


class _Step:
    """A transform that records its output for the first image."""

    def __init__(self, step: Any, pack: Any, log: dict[_Step, Packed]) -> None:
        self.step, self.pack, self.log = step, pack, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)

    def __call__(self, results: Any) -> Any:
        results = self.step(results)
        if self not in self.log and isinstance(results, Mapping) and 'img' in results:
            self.log[self] = self.pack(dict(results))  # packing copies and removes crowd boxes
        return results


class _Painter:
    """Draw packed images as tiles of one size, with mmdet's visualizer.

    Attributes:
        levels: Values that are black and white, see :func:`evit_mm.data.pictures.to_picture`.
    """

    def __init__(self, metainfo: Mapping[str, Any]) -> None:
        self.metainfo = complete_palette(metainfo)
        self.levels: Levels = (0.0, 255.0)

    @cached_property
    def visualizer(self) -> Any:
        from mmdet.visualization import DetLocalVisualizer  # classifiers need no mmdet

        visualizer = DetLocalVisualizer(line_width=2)
        visualizer.dataset_meta = self.metainfo
        return visualizer

    def tile(self, packed: Packed, title: str) -> Tile:
        """Return a picture whose longer side is ``TILE`` pixels, and its title."""
        pixels = _pixels(packed)
        height, width = pixels.shape[:2]
        levels, own = self.levels, value_levels(pixels)
        if own[1] - own[0] < (levels[1] - levels[0]) * NORMALISED:
            levels = own
        pixels = to_picture(pixels, levels)[..., ::-1]
        pixels, factor = mmcv.imrescale(pixels, (TILE, TILE), return_scale=True)
        sample = packed['data_samples']
        if 'gt_label' in sample:
            return pixels, f'{title}: {self.metainfo["classes"][int(sample.gt_label)]}'
        text = f'{title}, {width} x {height}'
        if 'bboxes' in sample.gt_instances:
            pixels = self._draw(pixels, sample.gt_instances, factor)
            text = f'{text}, {counted(len(sample.gt_instances), "object")}'
        return pixels, text

    def _draw(self, pixels: np.ndarray, instances: InstanceData, factor: float) -> np.ndarray:
        """Draw boxes, masks and names at the size of the tile, where they are legible."""
        from mmdet.structures import DetDataSample
        from mmdet.structures.bbox import get_box_tensor

        shown = InstanceData(labels=instances.labels)
        shown.bboxes = get_box_tensor(instances.bboxes) * factor
        if 'masks' in instances:
            shown.masks = instances.masks.resize(pixels.shape[:2])
        sample = DetDataSample(gt_instances=shown)
        self.visualizer.add_datasample('browse', pixels, sample, draw_pred=False)
        return self.visualizer.get_image()


def _pixels(packed: Packed) -> np.ndarray:
    """Return a packed image as ``(H, W, C)``, of any type."""
    return packed['inputs'].permute(1, 2, 0).numpy()


def draw_sheet(rows: Sequence[Sequence[Tile]]) -> Figure:
    """Arrange tiles in rows; the highest tile sets the height of its row."""
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
