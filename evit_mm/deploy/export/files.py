"""What every exported file has, whatever its format."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ...errors import ConfigError, EvitError

# the first that tells a graph for any size from one call, torch.compiler.is_exporting
TORCH = '2.7'
KNOWN_STEPS = ('LoadImageFromFile', 'Resize', 'LoadAnnotations', 'PackDetInputs')
DIVISOR = 32  # the pyramid's maps then double from level to level
Size = tuple[int, int] | None  # height and width of the one image that a file takes; None for any
Inputs = Sequence[dict[str, np.ndarray]]  # ``image`` and ``size`` of each image
# from ``image`` and ``size`` to the outputs, as DetectorGraph has them
Run = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]


class Format(ABC):
    """A kind of file that a detector is exported to.

    Attributes:
        suffixes: Of the files that belong together; the last is the one that a user names.
        packages: What writing and running a file needs.
        int8_packages: What quantising one needs besides.
    """

    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    int8_packages: tuple[str, ...] = ()

    @abstractmethod
    def write(
        self, detector: nn.Module, file: Path, metadata: dict, size: Size, half: bool
    ) -> None:
        """Write a trained detector, in eval mode, which is left as it is.

        The metadata, of :func:`describe`, goes into the file as JSON; its ``outputs`` say whether
        the graph ends with NMS.
        """

    @abstractmethod
    def load(self, file: Path, threads: int | None) -> tuple[str | None, Run]:
        """Return the metadata of a file as JSON, None where it has none, and what runs it."""

    @abstractmethod
    def quantize(self, source: Path, target: Path, metadata: dict, inputs: Inputs) -> None:
        """Write a file of this format as int8; decoding and NMS stay in float32."""


def describe(cfg: Any, classes: Sequence[str], with_nms: bool = True) -> dict[str, Any]:
    """Return what a program needs besides the file's graph, from the detector's config.

    ``classes``; ``mean`` and ``std`` of the pixel values 0 to 255, in the order of the channels
    that the network wants, and ``channels``, ``'RGB'`` or ``'BGR'``; ``scale``, ``[long, short]``
    sides that an image is resized within when its ratio is kept (``keep_ratio``), else ``[width,
    height]``; ``pad_size_divisor`` and ``pad_value``; ``score_thr``; and ``outputs``, the names of
    what the graph returns.

    Raises:
        ConfigError: The config prepares images in a way that these do not describe.
    """
    from mmdet.utils import get_test_pipeline_cfg

    pre = cfg.model.get('data_preprocessor') or {}
    steps = {step['type'].split('.')[-1]: step for step in get_test_pipeline_cfg(cfg)}
    resize = steps.get('Resize', {})
    scale = resize.get('scale')
    others = [name for name in steps if name not in KNOWN_STEPS]
    if others or scale is None or pre.get('type', '').split('.')[-1] != 'DetDataPreprocessor':
        raise ConfigError(
            f'{cfg.filename}: an export needs a DetDataPreprocessor and a test pipeline of '
            f'{", ".join(KNOWN_STEPS)}, where Resize has a scale'
            + (f'; remove {", ".join(others)}' if others else '')
        )
    divisor = pre.get('pad_size_divisor', 1)
    return {
        'classes': list(classes),
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
    """Import an optional package; an :class:`EvitError` says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise EvitError(
            f"package '{package}' cannot be imported ({error}); install it with: "
            "pip install 'evit_mm[export]'"
        ) from None
