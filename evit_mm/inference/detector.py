"""A trained detector, from a checkpoint or an exported file, for images of any kind."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from ..checkpoint import check_source
from ..data.dataset_configs import image_suffixes
from ..data.pictures import complete_palette
from ..data.pipeline import AnyImage, ImageReader, PredictionPipeline, check_loading, part_of
from ..deploy import fuse_detector
from ..deploy.export.evaluation import check_metadata
from ..deploy.export.files import describe, pipeline_of
from ..deploy.export.formats import BY_SUFFIX
from ..deploy.export.runtime import ExportedDetector
from ..deploy.hub.reading import HUB, load_published
from ..errors import ConfigError, DataError
from ..runner.build import config_faults, load_detector, set_device, test_metainfo
from ..runner.config import KINDS, config_name, is_classifier, load_config
from ..runner.work_dir import configs_in
from .sources import Frame, Video, open_source
from .tiles import OVERLAP, Tiles, join_tiles

Item = TypeVar('Item', bound=tuple)


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections in one image, in the order of the model, the best first.

    Attributes:
        boxes: ``(N, 4)``, float32; x1, y1, x2, y2 in pixels of the original image.
        scores: ``(N,)``, float32.
        labels: ``(N,)``, int64, index into the classes of the detector.
        masks: ``(N, H, W)``, bool, or None if the model finds only boxes.
        names: Class name of each detection.
        path: File of the image or the video, or None for an image in memory.
        frame: Index of the frame in a video, from 0, or None for an image.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    names: list[str]
    path: Path | None = None
    frame: int | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def to_supervision(self) -> Any:
        """Return ``supervision.Detections``, with the class names in ``data['class_name']``.

        Raises:
            ConfigError: The package ``supervision`` is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise ConfigError(
                "to_supervision needs supervision; install it with: pip install 'evit_mm[demo]'"
            ) from None
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels,
            data={'class_name': np.array(self.names, dtype=str)},
        )


class Detector:
    """A trained detector. Call it with images to get their :class:`Detections`.

    Args:
        model: Checkpoint written by :func:`evit_mm.runner.train.train`; file written by
            :func:`evit_mm.deploy.export.export`; or ``hf-hub:OWNER/NAME`` or a folder of
            :func:`evit_mm.deploy.hub.publish`, which can be a stranger's.
        config: Config file, or a loaded config. Default: the only config in the folder of the
            checkpoint, where a training saves it. A config is a Python program, which runs. An
            exported file needs no config. If there is one, it must match the file, and gives what
            the file does not contain: image ids, colours of classes and imports of transforms.
        device: See :func:`evit_mm.runner.train.train`; not for an exported file.
        half: Compute the backbone, the neck and the dense head in half precision: float16 on a
            GPU, bfloat16 on a CPU. Boxes are decoded in float32. Not for an exported file.
        fuse: Fuse the detector, see :func:`evit_mm.deploy.fuse_detector`; not for an exported file.
        cfg_options: Overrides of the config with dotted keys.

    Attributes:
        cfg: The config; for an exported file without one, only what its metadata describes.
        model: The detector of mmdet or of the exported file.
        classes: Class name of each label.
        pipeline: The test pipeline of the config.

    Raises:
        EvitError: The model, the config or the device cannot be used.

    Example:
        >>> detector = Detector('work_dirs/cells.onnx')  # doctest: +SKIP
        >>> found = detector('image.jpg')  # doctest: +SKIP
        >>> found.boxes, found.scores, found.names  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path,
        config: str | Path | Config | None = None,
        device: str | None = None,
        half: bool = False,
        fuse: bool = False,
        cfg_options: Mapping[str, Any] | None = None,
    ) -> None:
        from mmdet.visualization import DetLocalVisualizer

        if not isinstance(model, (str, Path)) or not str(model):
            raise ConfigError(f'model must be the path of a file, got {model!r}')
        if config is None and (str(model).startswith(HUB) or os.path.isdir(model)):
            config, model = load_published(model)
        suffix = Path(model).suffix
        if suffix in KINDS:
            raise ConfigError(
                f"'{model}' is a config, not a model; give a checkpoint or an exported file"
            )
        if suffix in BY_SUFFIX:
            for name, value in (('device', device), ('half', half), ('fuse', fuse)):
                if value:
                    raise ConfigError(
                        f"{name}={value} cannot be used with the exported file '{model}', which is "
                        f'fused and runs as it was exported; remove {name}'
                    )
            self.cfg, self.model = _open_exported(str(model), config, cfg_options)
        else:
            set_device(device)
            self.cfg = _config_of(config or _config_beside(model), cfg_options)
            self.model = load_detector(self.cfg, model)
        self.classes = tuple(self.model.dataset_meta['classes'])
        if fuse:
            self.model = fuse_detector(self.model)
        if half:
            compute_in_half(self.model, get_device())
        with config_faults(self.cfg):
            self.pipeline = PredictionPipeline(self.cfg, getattr(self.model, 'check_size', None))
        # not from the registry, which would share one visualizer between detectors
        self._visualizer = DetLocalVisualizer()
        self._visualizer.dataset_meta = complete_palette(self.model.dataset_meta)

    def __call__(
        self,
        image: AnyImage | Sequence[AnyImage],
        batch_size: int = 1,
        tile: int | None = None,
        overlap: float = OVERLAP,
    ) -> Detections | list[Detections] | Iterator[Detections]:
        """Detect objects.

        Args:
            image: An image, see :meth:`prepare`; a list or tuple of images; or a folder, a video
                file or a camera, see :func:`evit_mm.inference.sources.open_source`.
            batch_size: Images per batch. A batch contains only consecutive images that have the
                same shape after resizing, so the detections do not depend on the batch size.
            tile: Side in pixels of the square tiles into which a larger image is cut, or None. The
                detector then runs on each tile and on the whole image, which shows objects that no
                tile contains. A smaller image gives the same detections as without tiles. A batch
                contains tiles of one image.
            overlap: Part of its side that a tile shares with the next one. Objects up to this size
                are whole in some tile.

        Returns:
            The detections of an image; a list for a list; for a folder, a video or a camera an
            iterator, which reads the images one after the other. An image of a folder that cannot
            be used is skipped with a warning.

        Raises:
            DataError: An image or a source cannot be read. The message names it.
            ConfigError: The config reads other images than pixels in memory, ``batch_size`` is less
                than 1, ``tile`` is less than 32, or ``sahi``, which tiles need, is not installed.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f'batch_size must be an integer of at least 1, got {batch_size!r}')
        tiles = None if tile is None else Tiles(tile, overlap, batch_size)
        if isinstance(image, (list, tuple)):
            named = [(item, f'image[{place}]') for place, item in enumerate(image)]
            items = ((_path_of(item), None, self.prepare(item, name)) for item, name in named)
            return list(self._found_in(items, batch_size, tiles))
        if isinstance(image, (str, Path)):
            frames = open_source(image, suffixes=image_suffixes(self.cfg))
            if isinstance(frames, Video):
                self.pipeline.check_memory()
            if isinstance(frames, Video) or os.path.isdir(image):
                return self._found_in(self._usable(frames), batch_size, tiles)
        items = [(_path_of(image), None, self.prepare(image))]
        (found,) = self._found_in(items, batch_size, tiles)
        return found

    def _usable(self, frames: Iterable[Frame]) -> Iterator[tuple]:
        """Yield the path, the index and the prepared image of each frame that can be used."""
        for frame in frames:
            try:
                prepared = self.prepare(frame.image, f"'{frame.path}'")
            except DataError as error:
                if frame.time:  # all frames of a video have the same size
                    raise
                print_log(f'skipped {error}', 'current', logging.WARNING)
            else:
                yield frame.path, frame.time.get('frame'), prepared

    def _found_in(
        self, items: Iterable[tuple], batch_size: int, tiles: Tiles | None
    ) -> Iterator[Detections]:
        for batch in in_batches(items, 1 if tiles else batch_size):
            samples = self.detect([prepared for *_, prepared in batch], tiles)
            for (path, frame, _), sample in zip(batch, samples, strict=True):
                found = sample.pred_instances.numpy()
                names = [self.classes[label] for label in found.labels]
                masks = found.masks.astype(bool, copy=False) if 'masks' in found else None
                yield Detections(
                    found.bboxes, found.scores, found.labels, masks, names, path, frame
                )

    def prepare(self, image: AnyImage, name: str = 'the image') -> dict[str, Any]:
        """Load, resize and pack an image.

        Args:
            image: File, read as the test pipeline of the config reads it; array ``(H, W)``,
                ``(H, W, 1)``, ``(H, W, 3)`` in BGR or ``(H, W, 4)`` in BGRA, uint8 or uint16; or
                PIL image of any mode, turned by its EXIF orientation as a file is. See
                :func:`evit_mm.data.images.to_bgr`.
            name: Name of an image in memory, for an error.

        Returns:
            See :meth:`evit_mm.data.pipeline.PredictionPipeline.pack`.

        Raises:
            DataError: The image cannot be read, is of another type, is too thin to resize, or has a
                size that an exported file does not accept. The message names it.
            ConfigError: The config reads other images than pixels in memory.
        """
        try:
            return self.pipeline(image)
        except DataError as error:
            path = _path_of(image)
            raise DataError(f'{name if path is None else repr(str(path))}: {error}') from error

    def detect(
        self, prepared: Sequence[Mapping[str, Any]], tiles: Tiles | None = None
    ) -> list[Any]:
        """Run the network on a batch of prepared images of the same shape.

        With ``tiles``, it also runs on the tiles of each image that is larger than a tile.

        Returns:
            One ``DetDataSample`` per image, on the CPU, with ``pred_instances`` in pixels of the
            original image.
        """
        batch = {key: [item[key] for item in prepared] for key in ('inputs', 'data_samples')}
        with torch.no_grad():
            samples = [sample.cpu() for sample in self.model.test_step(batch)]
        if tiles is not None:
            for sample, item in zip(samples, prepared, strict=True):
                self._add_tiles(sample, item['loaded'], tiles)
        return samples

    def _add_tiles(self, sample: Any, loaded: Mapping[str, Any], tiles: Tiles) -> None:
        """Detect objects in the tiles of an image, and add them to those of the whole image."""
        image = loaded['img']
        height, width = image.shape[:2]
        if max(height, width) <= tiles.size:
            return
        parts = [((slice(0, height), slice(0, width)), sample.pred_instances)]
        cut = (
            (place, self.pipeline.pack(part_of(loaded, place)))
            for place in tiles.places(height, width)
        )
        for batch in in_batches(cut, tiles.batch_size):
            found = self.detect([prepared for _, prepared in batch])
            parts += [(place, x.pred_instances) for (place, _), x in zip(batch, found, strict=True)]
        sample.pred_instances = join_tiles(parts, height, width)

    def draw(self, pixels: np.ndarray, sample: Any, score_thr: float) -> np.ndarray:
        """Return a copy of a BGR image ``(H, W, 3)`` with its detections drawn.

        Only detections with a score of at least ``score_thr`` are drawn.
        """
        drawn = type(sample)(metainfo=sample.metainfo)
        drawn.pred_instances = shown_instances(sample, score_thr)
        self._visualizer.add_datasample(
            'predict',
            mmcv.bgr2rgb(pixels),
            data_sample=drawn,
            draw_gt=False,
            pred_score_thr=-1,  # mmdet draws scores above this, not scores equal to it
        )
        return mmcv.rgb2bgr(self._visualizer.get_image())


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Group consecutive images of the same shape; padding would change the detections.

    The last part of each item is the prepared image.
    """
    for _, alike in groupby(items, key=lambda item: item[-1]['inputs'].shape):
        while batch := list(islice(alike, size)):
            yield batch


def shown_instances(sample: Any, score_thr: float) -> Any:
    """Return the detections of a sample with a score of at least ``score_thr``."""
    return sample.pred_instances[sample.pred_instances.scores >= score_thr]


def compute_in_half(model: nn.Module, device_type: str) -> None:
    """Run a detector's backbone, neck and dense heads under autocast, with float32 outputs.

    Boxes are decoded in float32, because half precision would shift them by several pixels.
    """
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    dtype = torch.bfloat16 if device_type == 'cpu' else torch.float16  # a CPU's float16 is slow
    parts = [getattr(model, name, None) for name in ('backbone', 'neck')]
    parts += [module for module in model.modules() if isinstance(module, BaseDenseHead)]
    for part in parts:
        if part is not None:
            part.forward = torch.autocast(device_type, dtype)(part.forward)
            part.register_forward_hook(lambda _module, _inputs, maps: _to_float(maps))


def _to_float(maps: Any) -> Any:
    return maps.float() if isinstance(maps, Tensor) else type(maps)(map(_to_float, maps))


def _path_of(image: AnyImage) -> Path | None:
    return Path(image) if isinstance(image, (str, Path)) else None


def _config_of(config: str | Path | Config, cfg_options: Mapping[str, Any] | None = None) -> Config:
    """Load the config of a detector; raise a ConfigError for a classifier."""
    if isinstance(config, Config):
        cfg = copy.deepcopy(config)
        cfg.merge_from_dict(dict(cfg_options or {}))
    else:
        cfg = load_config(config, cfg_options)
    if is_classifier(cfg):
        raise ConfigError(
            f"config '{config_name(cfg)}' is a classifier, not a detector; evaluate it with "
            'tools/test.py'
        )
    return cfg


def _config_beside(checkpoint: str | Path) -> Path:
    """Return the only config in the folder of a checkpoint."""
    check_source(checkpoint)
    found = configs_in(Path(checkpoint).expanduser().parent)
    if len(found) == 1:
        return found[0]
    names = ', '.join(sorted(file.name for file in found))
    has = f'{len(found)} configs ({names})' if found else 'no config (*.py)'
    raise ConfigError(
        f"the folder of the checkpoint '{checkpoint}' has {has}; give the config with which the "
        'checkpoint was trained'
    )


def _open_exported(
    file: str, config: str | Path | Config | None, cfg_options: Mapping[str, Any] | None
) -> tuple[Config, ExportedDetector]:
    """Return an exported file as a detector, and its config.

    Without a config, all comes from the metadata of the file.
    """
    if config is None and cfg_options:
        raise ConfigError(
            f"cfg_options cannot change the exported file '{file}'; remove them, or export again"
        )
    init_default_scope('mmdet')
    model = ExportedDetector(file)
    metadata = model.exported.metadata
    if config is not None:
        cfg = _config_of(config, cfg_options)
        model.dataset_meta = test_metainfo(cfg)
        check_metadata(file, metadata, describe(cfg, ()), model.dataset_meta)
        return cfg, model
    dataset = {
        'type': 'CocoDataset',
        'metainfo': {'classes': metadata['classes']},
        'pipeline': pipeline_of(metadata),
    }
    content = {'default_scope': 'mmdet', 'test_dataloader': {'dataset': dataset}}
    cfg = Config(content, cfg_text=json.dumps(metadata), filename=file)
    try:
        check_loading(metadata.get('reader') or [])
        ImageReader(cfg.test_dataloader.dataset.pipeline)
    except ConfigError as error:
        raise ConfigError(
            f"exported file '{file}': {error}; give the config, which imports the transform"
        ) from error
    model.dataset_meta = test_metainfo(cfg)
    return cfg, model
