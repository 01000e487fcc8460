"""A trained detector that takes pixels, several images at once, perhaps in half precision."""

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

from ..data.pipeline import test_pipeline
from ..errors import ConfigError
from ..runner.build import load_detector, set_device
from ..runner.config import is_classifier, load_config


def load_detector_config(
    config: str | Path, cfg_options: Mapping[str, Any] | None = None
) -> Config:
    """Read a detector's config; a classifier's is refused with a ConfigError."""
    cfg = load_config(config, cfg_options)
    if is_classifier(cfg):
        raise ConfigError(
            f"config '{config}' is a classifier, not a detector; evaluate it with tools/test.py"
        )
    return cfg


class Detector:
    """A config's detector with a checkpoint's weights, for images that are in memory.

    Args:
        cfg: What :func:`load_detector_config` read.
        checkpoint: What :func:`evit_mm.runner.train.train` saved.
        device: As in :func:`evit_mm.runner.train.train`.
        half: Compute backbone, neck and dense head in float16 on a GPU, in bfloat16 on a CPU;
            boxes are decoded in float32.
        fuse: Take the fast form, see :func:`evit_mm.deploy.fuse_detector`.

    Attributes:
        cfg: The config.
        classes: Name of each label.
        prepare: Resizes and packs pixels, see :func:`evit_mm.data.pipeline.test_pipeline`.

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
        self.prepare = test_pipeline(self.cfg)
        # not from the registry, where detectors of other classes would share it by its name
        self._visualizer = DetLocalVisualizer()
        self._visualizer.dataset_meta = self.model.dataset_meta

    def detect(self, prepared: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Run the network on a batch of prepared images of one shape.

        Returns:
            A ``DetDataSample`` of each, ``pred_instances`` in the original image's pixels, on the
            CPU.
        """
        batch = {key: [item[key] for item in prepared] for key in ('inputs', 'data_samples')}
        with torch.no_grad():
            return [sample.cpu() for sample in self.model.test_step(batch)]

    def draw(self, pixels: np.ndarray, sample: Any, score_thr: float) -> np.ndarray:
        """Return a copy of an image, ``(H, W, 3)`` BGR, with the detections from a score on."""
        self._visualizer.add_datasample(
            'predict',
            mmcv.bgr2rgb(pixels),
            data_sample=sample,
            draw_gt=False,
            pred_score_thr=score_thr,
        )
        return mmcv.rgb2bgr(self._visualizer.get_image())


def compute_in_half(model: nn.Module, device_type: str) -> None:
    """Let a detector's backbone, neck and dense heads compute under autocast, and return float32.

    Decoding a box in half precision would cost several pixels; so it is left outside.
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
