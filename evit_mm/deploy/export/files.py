"""The parts that all export formats share."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ...data.pipeline import (
    DEFAULT_LOADING,
    describe_loading,
    loading_steps,
    step_name,
    without_annotations,
)
from ...errors import ConfigError, EvitError
from .graph import DIVISOR, Size

# oldest version with torch.compiler.is_exporting, which graphs for any image size need
TORCH = '2.7'
DEFAULT_RESIZE = (('backend', 'cv2'), ('interpolation', 'bilinear'), ('scale_factor', None))
KNOWN_STEPS = ('Resize', 'Pad', 'PackDetInputs')  # besides those that load image and annotations
PRECISIONS = FLOAT32, FLOAT16, BFLOAT16, INT8 = 'float32', 'float16', 'bfloat16', 'int8'
DETECTION, CLASSIFICATION = 'detection', 'classification'  # tasks
Inputs = Sequence[dict[str, np.ndarray]]  # the inputs of the graph for each image
# maps the inputs, in the order of the graph, to its outputs
Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class Format(ABC):
    """An export format.

    Attributes:
        suffixes: Suffixes of the files of one export. The user gives the file with the last one.
        packages: Packages that are needed to write and run a file.
        int8_packages: Additional packages that are needed to quantise a file, or None if the format
            has no int8.
        int8_masks: Whether masks stay as good in int8.
        extra: Extra of this package that installs them.
        dtypes: Type of the graph for each supported precision.
        has_nms: Whether a file can contain NMS.
        dynamic: Whether a file can accept any image size.
    """

    suffixes: ClassVar[tuple[str, ...]]
    packages: ClassVar[tuple[str, ...]] = ()
    int8_packages: ClassVar[tuple[str, ...] | None] = None
    int8_masks: ClassVar[bool] = True
    extra: ClassVar[str] = 'export'
    dtypes: ClassVar[Mapping[str, torch.dtype]] = {FLOAT32: torch.float32}
    has_nms: ClassVar[bool] = True
    dynamic: ClassVar[bool] = True

    @abstractmethod
    def write(self, graph: nn.Module, file: Path, metadata: dict, size: Size) -> None:
        """Write a graph such as :class:`~evit_mm.deploy.export.DetectorGraph`.

        The metadata from :func:`describe` is stored in the file as JSON. ``size`` is the only
        height and width that the file accepts, or None for any that the graph accepts.
        """

    @abstractmethod
    def load(self, file: Path, threads: int | None) -> tuple[str | None, Run]:
        """Return the metadata of a file as JSON, or None, and a function that runs the file."""

    def quantize(self, source: Path, target: Path, metadata: dict, inputs: Inputs) -> None:
        """Quantise a file to int8; box decoding and NMS stay in float32."""
        raise NotImplementedError


def describe(cfg: Any, classes: Sequence[str]) -> dict[str, Any]:
    """Return the metadata that a program needs to run an exported file.

    The keys are:

    - ``classes``: class names in the order of the labels
    - ``reader``: the transforms that load an image, with their options, see
      :func:`evit_mm.data.pipeline.describe_loading`
    - ``mean``, ``std``: statistics of the loaded values, in the order of ``channels``, or one
      number for all channels
    - ``channels``: ``'RGB'`` or ``'BGR'``, of images with three channels
    - ``scale``: ``[long, short]`` side limits if ``keep_ratio``, otherwise ``[width, height]``
    - ``pad_to``: pad the resized image at the right and bottom to ``[width, height]``, or to a
      ``'square'``, with ``pad_pixel``, which is a value before normalisation or one per channel, in
      the order that ``reader`` gives; None for no padding. It counts as a part of the image
    - ``pad_size_divisor``, ``pad_value``: padding after normalisation
    - ``score_thr``: score threshold
    - ``mask_thr``: threshold of the masks, if the file has masks

    :func:`evit_mm.deploy.export.export` adds ``task``, ``precision``, ``outputs``, the names of the
    graph's outputs, ``nms``, the arguments of :func:`~evit_mm.deploy.export.graph.suppress` if the
    file ends before NMS, ``in_channels``, the number of channels of the images, and
    ``static_size``, the only ``[width, height]`` that the file accepts, or None for any.

    Raises:
        ConfigError: These keys cannot describe the preprocessing of the config.
    """
    from mmdet.utils import get_test_pipeline_cfg

    pre = preprocessor_config(cfg)
    whole = without_annotations(get_test_pipeline_cfg(cfg))
    loading = loading_steps(whole)
    names = [step_name(step) for step in whole[len(loading) :]]
    steps = dict(zip(names, whole[len(loading) :], strict=True))
    resize, pad = steps.get('Resize', {}), steps.get('Pad', {})
    scale = resize.get('scale')
    others = [name for name in names if name not in KNOWN_STEPS]
    others += [
        f'{key}={value} of Resize'
        for key, value in resize.items()
        if key not in ('type', 'scale', 'keep_ratio', 'clip_object_border')
        and (key, value) not in DEFAULT_RESIZE
    ]
    if (
        others
        or scale is None
        or names != [name for name in KNOWN_STEPS if name in names]
        or pre.get('type', '').split('.')[-1] != 'DetDataPreprocessor'
    ):
        raise ConfigError(
            f"config '{cfg.filename}': an export needs a DetDataPreprocessor and a test pipeline "
            f'of a step that loads the image, {", ".join(KNOWN_STEPS)}, each at most once and in '
            'this order, where Resize has a scale'
            + (f'; remove {", ".join(others)}' if others else '')
        )
    divisor = pre.get('pad_size_divisor', 1)
    test_cfg = cfg.model.test_cfg.get('rcnn') or cfg.model.test_cfg
    return {
        'classes': list(classes),
        'reader': describe_loading(cfg),
        **describe_normalisation(pre),
        'channels': 'RGB' if pre.get('bgr_to_rgb') or pre.get('rgb_to_bgr') else 'BGR',
        'scale': [scale, scale] if isinstance(scale, int) else [int(x) for x in scale],
        'keep_ratio': bool(resize.get('keep_ratio', False)),
        **_describe_pad(pad, cfg.filename),
        'pad_size_divisor': int(np.lcm(divisor, DIVISOR)),
        'pad_value': float(pre.get('pad_value', 0)),
        'score_thr': _number(test_cfg.get('score_thr', 0), 'model.test_cfg.score_thr', cfg),
        **({'mask_thr': float(test_cfg.mask_thr_binary)} if 'mask_thr_binary' in test_cfg else {}),
    }


def _number(value: Any, name: str, cfg: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(
            f"config '{cfg.filename}': {name} must be a number, got {value!r}"
        ) from None


def preprocessor_config(cfg: Any) -> Mapping[str, Any]:
    """Return the config of the data preprocessor, which mmengine looks for in two places."""
    return cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}


def describe_normalisation(pre: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return ``mean`` and ``std`` of a data preprocessor."""
    return {
        'mean': [float(x) for x in pre.get('mean') or (0, 0, 0)],
        'std': [float(x) for x in pre.get('std') or (1, 1, 1)],
    }


def _describe_pad(pad: Mapping[str, Any], filename: str) -> dict[str, Any]:
    """Return ``pad_to`` and ``pad_pixel`` of a ``Pad`` step, which can be empty."""
    known = {'type', 'size', 'pad_to_square', 'pad_val'}
    if {*pad} - known or (pad and bool(pad.get('size')) == bool(pad.get('pad_to_square'))):
        raise ConfigError(
            f"config '{filename}': an export needs a Pad step with a size or pad_to_square and "
            f'no other option than pad_val, got {dict(pad)}'
        )
    pixel = pad.get('pad_val', 0)
    pixel = pixel.get('img', 0) if isinstance(pixel, Mapping) else pixel
    size = pad.get('size')
    return {
        'pad_to': ([int(x) for x in size] if size else 'square') if pad else None,
        'pad_pixel': [float(x) for x in pixel] if isinstance(pixel, Sequence) else float(pixel),
    }


def need(package: str, extra: str = 'export') -> Any:
    """Import an optional package, or raise an :class:`EvitError` that states how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise EvitError(
            f"package '{package}' cannot be imported ({error}); install it with: "
            f"pip install 'evit_mm[{extra}]'"
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
