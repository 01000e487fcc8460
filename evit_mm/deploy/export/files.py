"""Writing detectors for ONNX Runtime and OpenVINO."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...checkpoint.reading import METADATA_KEY
from ...errors import ConfigError, EvitError
from ...models import EfficientViT
from ..fusion import fuse
from .graph import OPSET, DetectorGraph, onnx_nms_mask

# the first that tells a graph for any size from one call, torch.compiler.is_exporting
TORCH = '2.7'
FORMATS = {'onnx': '.onnx', 'openvino': '.xml'}
KNOWN_STEPS = ('LoadImageFromFile', 'Resize', 'LoadAnnotations', 'PackDetInputs')
DIVISOR = 32  # the pyramid's maps then double from level to level
# the graph is made with maps that are not whole windows, which one for any size must take
EXAMPLE_SIZE = (96, 160)


def export_onnx(
    detector: nn.Module,
    path: str | Path,
    metadata: dict[str, Any],
    size: tuple[int, int] | None = None,
    half: bool = False,
) -> None:
    """Write a detector as ONNX.

    Args:
        detector: The trained detector, in eval mode; left as it is.
        path: File to write.
        metadata: What :func:`describe` returned; stands in the file under ``evit_mm`` as JSON, and
            its ``outputs`` say whether the graph ends with NMS.
        size: Height and width of the one image that the graph takes; None for any batch, and any
            height and width that are multiples of 32.
        half: As in :class:`DetectorGraph`.

    Raises:
        EvitError: The detector cannot be exported, or a package is missing.
    """
    with_nms, dynamic = 'labels' in metadata['outputs'], size is None
    onnx, onnxscript = need('onnx'), need('onnxscript')
    DetectorGraph(detector, with_nms)  # refuses before anything is folded
    fast = any(isinstance(m, EfficientViT) for m in detector.modules())
    copied = fuse(detector) if fast else copy.deepcopy(detector)
    graph = DetectorGraph(copied.cpu().float(), with_nms, half).eval()
    batch = 2 if dynamic else 1
    height, width = size or EXAMPLE_SIZE
    sizes = torch.tensor([(height, width)] * batch, dtype=torch.float32)
    inputs = (torch.rand(batch, 3, height, width), sizes)
    dimensions = None
    if dynamic:
        any_batch = torch.export.Dim.DYNAMIC
        rows, columns = (DIVISOR * torch.export.Dim(name, min=1, max=256) for name in 'hw')
        dimensions = ({0: any_batch, 2: rows, 3: columns}, {0: any_batch})
    table: dict[Any, Any] = {torch.ops.evit_mm.nms_mask.default: onnx_nms_mask(onnxscript)}
    try:
        program: Any = torch.onnx.export(
            graph,
            inputs,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=['image', 'size'],
            output_names=metadata['outputs'],
            dynamic_shapes=dimensions,
            custom_translation_table=table,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise EvitError(
            f'{type(detector).__name__} cannot be written as ONNX ({reason}); try --static'
        ) from error
    model = program.model_proto
    if dynamic:
        _name_dimensions(model)
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    onnx.checker.check_model(model)
    onnx.save_model(model, str(path))


def to_openvino(onnx_file: str | Path, path: str | Path, half: bool = False) -> None:
    """Write an ONNX file of :func:`export_onnx` as OpenVINO's ``.xml`` and ``.bin``.

    Args:
        onnx_file: What to convert, with its metadata.
        path: ``FILE.xml``; the weights go beside it.
        half: Store the weights in float16, which OpenVINO computes with where it is faster.

    Raises:
        EvitError: OpenVINO is missing.
    """
    openvino, onnx = need('openvino'), need('onnx')
    model = openvino.convert_model(str(onnx_file))
    props = {p.key: p.value for p in onnx.load(str(onnx_file)).metadata_props}
    model.set_rt_info(props[METADATA_KEY], [METADATA_KEY])
    openvino.save_model(model, str(path), compress_to_fp16=half)


def describe(cfg: Any, classes: Sequence[str], with_nms: bool = True) -> dict[str, Any]:
    """Return what a program needs besides the file's graph, from the detector's config.

    Returns:
        ``classes``; ``mean`` and ``std`` of the pixel values 0 to 255, in the order of the
        channels that the network wants, and ``channels``, ``'RGB'`` or ``'BGR'``; ``scale``,
        ``[long, short]`` sides that an image is resized within when its ratio is kept
        (``keep_ratio``), else ``[width, height]``; ``pad_size_divisor`` and ``pad_value``;
        ``score_thr``; and ``outputs``, the names of what the graph returns.

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
            f'{cfg.filename}: to be exported, a detector has a DetDataPreprocessor and a test '
            f'pipeline of {", ".join(KNOWN_STEPS)} with a scale'
            + (f'; this one has {", ".join(others)}' if others else '')
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
    """Import an optional package.

    Raises:
        EvitError: It is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise EvitError(
            f"this needs the package '{package}' ({error}); install it with: "
            "pip install 'evit_mm[export]'"
        ) from None


@cache
def openvino_core() -> Any:
    """Return OpenVINO's core, one for the whole process.

    Of several that are not given up in the reverse order of their making, the last one to go
    leaves the thread a signal stack that no longer exists, and the next signal, such as that of a
    child's end, kills the process (seen with OpenVINO 2026.4).

    Raises:
        EvitError: OpenVINO is missing.
    """
    return need('openvino').Core()


def _name_dimensions(model: Any) -> None:
    """Give the dimensions names for readers: ``batch``, ``height``, ``width``."""
    names = {'image': {0: 'batch', 2: 'height', 3: 'width'}}
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in names.get(value.name, {0: 'batch'}).items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
