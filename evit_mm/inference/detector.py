"""A trained detector for images, with batches and half precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import Tensor, nn

from ..data.pictures import complete_palette
from ..data.pipeline import ImagePath, PredictionPipeline
from ..errors import ConfigError
from ..runner.build import config_faults, load_detector, set_device
from ..runner.config import is_classifier, load_config


def load_detector_config(
    config: str | Path, cfg_options: Mapping[str, Any] | None = None
) -> Config:
    """Load the config of a detector; raise a ConfigError for a classifier."""
    cfg = load_config(config, cfg_options)
    if is_classifier(cfg):
        raise ConfigError(
            f"config '{config}' is a classifier, not a detector; evaluate it with tools/test.py"
        )
    return cfg


class Detector:
    """A detector with trained weights, for image files and for images in memory.

    Args:
        cfg: Config from :func:`load_detector_config`.
        checkpoint: Checkpoint written by :func:`evit_mm.runner.train.train`.
        device: See :func:`evit_mm.runner.train.train`.
        half: Compute the backbone, the neck and the dense head in half precision: float16 on a
            GPU, bfloat16 on a CPU. Boxes are decoded in float32.
        fuse: Fuse the detector, see :func:`evit_mm.deploy.fuse_detector`.

    Attributes:
        cfg: The config.
        classes: Class name of each label.
        pipeline: The test pipeline of the config.

    Raises:
        EvitError: The config, the checkpoint or the device cannot be used.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str | Path,
        device: str | None = None,
        half: bool = False,
        fuse: bool = False,
    ) -> None:
        from mmdet.visualization import DetLocalVisualizer

        self.cfg = cfg
        set_device(device)
        self.model = load_detector(self.cfg, checkpoint)
        self.classes = tuple(self.model.dataset_meta['classes'])
        if fuse:
            from ..deploy import fuse_detector

            self.model = fuse_detector(self.model)
        if half:
            compute_in_half(self.model, get_device())
        with config_faults(self.cfg):
            self.pipeline = PredictionPipeline(self.cfg)
        # not from the registry, which would share one visualizer between detectors
        self._visualizer = DetLocalVisualizer()
        self._visualizer.dataset_meta = complete_palette(self.model.dataset_meta)

    def prepare(self, image: ImagePath | np.ndarray) -> dict[str, Any]:
        """Load, resize and pack an image file, or pixels ``(H, W, 3)``, BGR, uint8.

        Returns:
            See :meth:`evit_mm.data.pipeline.PredictionPipeline.pack`.

        Raises:
            DataError: The file cannot be read, or the image is too thin to resize.
            ConfigError: The config reads other images than pixels in memory.
        """
        return self.pipeline(image)

    def detect(self, prepared: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Run the network on a batch of prepared images of the same shape.

        Returns:
            One ``DetDataSample`` per image, on the CPU, with ``pred_instances`` in pixels of the
            original image.
        """
        batch = {key: [item[key] for item in prepared] for key in ('inputs', 'data_samples')}
        with torch.no_grad():
            return [sample.cpu() for sample in self.model.test_step(batch)]

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
