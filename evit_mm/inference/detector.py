"""A trained detector that takes pixels, several images at once, perhaps in half precision."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import mmcv
import mmengine.device.utils
import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..data.pipeline import test_pipeline
from ..errors import ConfigError
from ..runner.build import load_detector, set_device
from ..runner.config import is_classifier, load_config

Item = TypeVar('Item')

# what autocast computes in; a CPU has no fast float16
HALF_TYPES = {'cuda': torch.float16, 'cpu': torch.bfloat16}


def load_detector_config(
    config: str | Path, cfg_options: Mapping[str, Any] | None = None
) -> Config:
    """Read a detector's config.

    Args:
        config: Config file.
        cfg_options: Overrides, dotted keys.

    Raises:
        ConfigError: It cannot be read, or is a classifier's.
    """
    cfg = load_config(config, cfg_options)
    if is_classifier(cfg):
        raise ConfigError(f'{config} is a classifier, which detects nothing; see tools/test.py')
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
        EvitError: The config or the checkpoint cannot be used, or the device has no half precision.
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
        kind = mmengine.device.utils.get_device()
        if half and kind not in HALF_TYPES:
            raise ConfigError(
                f"--half: the device '{kind}' is not known to have it; leave it out, or take "
                '--device cpu or cuda'
            )
        self.model = load_detector(self.cfg, checkpoint)
        self.classes = tuple(self.model.dataset_meta['classes'])
        if fuse:
            from ..deploy import fuse_detector

            self.model = fuse_detector(self.model)
        if half:
            compute_in_half(self.model, kind, HALF_TYPES[kind])
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


def in_batches(
    items: Iterable[Item], size: int, shape: Callable[[Item], Hashable]
) -> Iterator[list[Item]]:
    """Gather items of one shape, since images of other shapes would be padded and so see less.

    Items of one shape stay in order. At most ``4 * size`` wait for others of their shape.

    Args:
        items: Anything, read one by one.
        size: Most items of a batch.
        shape: What the items of a batch have in common.

    Yields:
        Lists of 1 to ``size`` items of one shape.
    """
    waiting: dict[Hashable, list[Item]] = {}
    for item in items:
        group = waiting.setdefault(shape(item), [])
        group.append(item)
        if len(group) == size:
            yield waiting.pop(shape(item))
        elif sum(map(len, waiting.values())) >= 4 * size:
            yield waiting.pop(max(waiting, key=lambda key: len(waiting[key])))
    yield from waiting.values()


def compute_in_half(model: nn.Module, kind: str, dtype: torch.dtype) -> None:
    """Let backbone, neck and dense heads compute under autocast and hand out float32.

    Decoding a box in half precision would cost several pixels; so it is left outside.

    Args:
        model: A detector of mmdet's; changed in place.
        kind: Type of its device, ``'cpu'`` or ``'cuda'``.
        dtype: ``torch.float16`` or ``torch.bfloat16``.
    """
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    parts = [getattr(model, name, None) for name in ('backbone', 'neck')]
    parts += [module for module in model.modules() if isinstance(module, BaseDenseHead)]
    for part in parts:
        if part is not None:
            part.forward = partial(_under_autocast, part.forward, kind, dtype)


def _under_autocast(
    forward: Callable, kind: str, dtype: torch.dtype, *args: Any, **kwargs: Any
) -> Any:
    with torch.autocast(kind, dtype):
        return _to_float(forward(*args, **kwargs))


def _to_float(maps: Any) -> Any:
    return maps.float() if isinstance(maps, Tensor) else type(maps)(map(_to_float, maps))
