"""The parts that all export formats share."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ...data.pipeline import (
    DEFAULT_LOADING,
    describe_loading,
    loading_steps,
    step_name,
    without_annotations,
)
from ...errors import ConfigError, EvitError

# oldest version with torch.compiler.is_exporting, which graphs for any image size need
TORCH = '2.7'
KNOWN_STEPS = ('Resize', 'PackDetInputs')  # besides those that load the image and annotations
DIVISOR = 32  # each level of the pyramid is then exactly half the size of the level below
Size = tuple[int, int] | None  # fixed height and width of the input image; None for any size
Inputs = Sequence[dict[str, np.ndarray]]  # ``image`` and ``size`` of each image
# maps ``image`` and ``size`` to the outputs of DetectorGraph
Run = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]


class Format(ABC):
    """An export format.

    Attributes:
        suffixes: Suffixes of the files of one export. The user gives the file with the last one.
        packages: Packages that are needed to write and run a file.
        int8_packages: Additional packages that are needed to quantise a file.
    """

    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    int8_packages: tuple[str, ...] = ()

    @abstractmethod
    def write(
        self, detector: nn.Module, file: Path, metadata: dict, size: Size, half: bool
    ) -> None:
        """Write a trained detector in eval mode, without modifying it.

        The metadata from :func:`describe` is stored in the file as JSON. The graph ends with NMS if
        ``outputs`` of the metadata contains ``labels``.
        """

    @abstractmethod
    def load(self, file: Path, threads: int | None) -> tuple[str | None, Run]:
        """Return the metadata of a file as JSON, or None, and a function that runs the file."""

    @abstractmethod
    def quantize(self, source: Path, target: Path, metadata: dict, inputs: Inputs) -> None:
        """Quantise a file to int8; box decoding and NMS stay in float32."""


def describe(cfg: Any, classes: Sequence[str], with_nms: bool = True) -> dict[str, Any]:
    """Return the metadata that a program needs to run an exported file.

    The keys are:

    - ``classes``: class names in the order of the labels
    - ``reader``: the transforms that load an image, with their options, see
      :func:`evit_mm.data.pipeline.describe_loading`
    - ``mean``, ``std``: statistics of the loaded values, in the order of ``channels``, or one
      number for all channels
    - ``channels``: ``'RGB'`` or ``'BGR'``, of images with three channels
    - ``scale``: ``[long, short]`` side limits if ``keep_ratio``, otherwise ``[width, height]``
    - ``pad_size_divisor``, ``pad_value``: padding
    - ``score_thr``: score threshold
    - ``outputs``: names of the graph's outputs

    :func:`evit_mm.deploy.export.export` adds ``in_channels``, the number of channels of the images.

    Raises:
        ConfigError: These keys cannot describe the preprocessing of the config.
    """
    from mmdet.utils import get_test_pipeline_cfg

    pre = cfg.model.get('data_preprocessor') or {}
    whole = without_annotations(get_test_pipeline_cfg(cfg))
    loading = loading_steps(whole)
    steps = {step_name(step): step for step in whole[len(loading) :]}
    resize = steps.get('Resize', {})
    scale = resize.get('scale')
    others = [name for name in steps if name not in KNOWN_STEPS]
    if others or scale is None or pre.get('type', '').split('.')[-1] != 'DetDataPreprocessor':
        raise ConfigError(
            f"config '{cfg.filename}': an export needs a DetDataPreprocessor and a test pipeline "
            f'of a step that loads the image, {", ".join(KNOWN_STEPS)}, where Resize has a scale'
            + (f'; remove {", ".join(others)}' if others else '')
        )
    divisor = pre.get('pad_size_divisor', 1)
    return {
        'classes': list(classes),
        'reader': describe_loading(cfg),
        'mean': [float(x) for x in pre.get('mean') or (0, 0, 0)],
        'std': [float(x) for x in pre.get('std') or (1, 1, 1)],
        'channels': 'RGB' if pre.get('bgr_to_rgb') or pre.get('rgb_to_bgr') else 'BGR',
        'scale': [scale, scale] if isinstance(scale, int) else [int(x) for x in scale],
        'keep_ratio': bool(resize.get('keep_ratio', False)),
        'pad_size_divisor': int(np.lcm(divisor, DIVISOR)),
        'pad_value': float(pre.get('pad_value', 0)),
        'score_thr': float(cfg.model.test_cfg.get('score_thr', 0)),
        'outputs': ['boxes', 'scores', 'labels'] if with_nms else ['boxes', 'scores'],
    }


def need(package: str) -> Any:
    """Import an optional package, or raise an :class:`EvitError` that states how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise EvitError(
            f"package '{package}' cannot be imported ({error}); install it with: "
            "pip install 'evit_mm[export]'"
        ) from None


def preprocessor_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the data preprocessor that :func:`describe` has described."""
    return {
        'type': 'mmdet.DetDataPreprocessor',
        'mean': metadata['mean'],
        'std': metadata['std'],
        'bgr_to_rgb': metadata['channels'] == 'RGB',
        'pad_size_divisor': metadata['pad_size_divisor'],
        'pad_value': metadata['pad_value'],
    }


def pipeline_of(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the test pipeline that :func:`describe` has described."""
    # files of older versions have no reader and no padding in the pipeline
    steps: list[dict[str, Any]] = list(metadata.get('reader') or DEFAULT_LOADING)
    scale, keep_ratio = tuple(metadata['scale']), metadata['keep_ratio']
    steps.append({'type': 'mmdet.Resize', 'scale': scale, 'keep_ratio': keep_ratio})
    if pad_to := metadata.get('pad_to'):
        value = metadata.get('pad_pixel') or 0
        size = {'pad_to_square': True} if pad_to == 'square' else {'size': tuple(pad_to)}
        if metadata['in_channels'] > 1:  # OpenCV pads only the first channel with one number
            value = tuple(value if isinstance(value, list) else [value] * metadata['in_channels'])
        steps.append({'type': 'mmdet.Pad', 'pad_val': {'img': value}, **size})
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    return [*steps, {'type': 'mmdet.PackDetInputs', 'meta_keys': keys}]
