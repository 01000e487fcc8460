"""ONNX format: exported by PyTorch, run and quantised by ONNX Runtime."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...checkpoint.reading import METADATA_KEY
from ...errors import EvitError
from ...models import EfficientViT
from ..fusion import fuse
from .files import DIVISOR, Format, Inputs, Run, Size, need
from .graph import DetectorGraph

OPSET = 18
# with this size the windows need padding, so the graph for any size contains the padding
EXAMPLE_SIZE = (96, 160)
QUANTIZED = ['Conv', 'Gemm', 'MatMul', 'ConvTranspose']


class OnnxFormat(Format):
    """An ONNX file; with ``half`` it computes in float16."""

    suffixes = ('.onnx',)
    packages = ('onnx', 'onnxscript', 'onnxruntime')

    def write(
        self, detector: nn.Module, file: Path, metadata: dict, size: Size, half: bool
    ) -> None:
        """Write the detector, with its EfficientViT fused."""
        onnx, onnxscript = need('onnx'), need('onnxscript')
        fast = any(isinstance(m, EfficientViT) for m in detector.modules())
        copied = fuse(detector) if fast else copy.deepcopy(detector)
        graph = DetectorGraph(copied.cpu().float(), 'labels' in metadata['outputs'], half).eval()
        batch = 2 if size is None else 1
        height, width = size or EXAMPLE_SIZE
        sizes = torch.tensor([(height, width)] * batch, dtype=torch.float32)
        dimensions = None
        if size is None:
            any_batch = torch.export.Dim.DYNAMIC
            rows, columns = (DIVISOR * torch.export.Dim(name, min=1, max=256) for name in 'hw')
            dimensions = ({0: any_batch, 2: rows, 3: columns}, {0: any_batch})
        table: dict[Any, Any] = {torch.ops.evit_mm.nms_mask.default: _nms_mask(onnxscript)}
        try:
            program: Any = torch.onnx.export(
                graph,
                (torch.rand(batch, metadata['in_channels'], height, width), sizes),
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
                f'{type(detector).__name__} cannot be exported to ONNX ({reason}); try --static'
            ) from error
        model = program.model_proto
        if size is None:
            _name_dimensions(model)
        onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
        onnx.checker.check_model(model)
        onnx.save_model(model, str(file))

    def load(self, file: Path, threads: int | None) -> tuple[str | None, Run]:
        """Open a file in ONNX Runtime."""
        runtime = need('onnxruntime')
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        providers = runtime.get_available_providers()
        session = runtime.InferenceSession(str(file), options, providers=providers)
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        return text, lambda image, size: session.run(None, {'image': image, 'size': size})

    def quantize(self, source: Path, target: Path, metadata: dict, inputs: Inputs) -> None:
        """Quantise with QDQ nodes: int8 weights per channel, uint8 activations."""
        onnx, quantization = need('onnx'), need('onnxruntime.quantization')
        shape_inference = need('onnxruntime.quantization.shape_inference')
        prepared = target.with_suffix('.prepared')
        shape_inference.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(target),
            _CalibrationInputs(inputs),
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
        )
        model = onnx.load(str(target))
        onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
        onnx.save_model(model, str(target))


class _CalibrationInputs:
    """The calibration reader of ONNX Runtime: one dictionary of inputs per call."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.inputs, None)


def _name_dimensions(model: Any) -> None:
    """Name the dynamic dimensions ``batch``, ``height`` and ``width``."""
    names = {'image': {0: 'batch', 2: 'height', 3: 'width'}}
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in names.get(value.name, {0: 'batch'}).items():
            value.type.tensor_type.shape.dim[axis].dim_param = name


def _nms_mask(onnxscript: Any) -> Any:
    """Return ``graph.nms_mask`` as ONNX operators, for the exporter's translation table."""
    op = onnxscript.values.Opset('', OPSET)

    def translated(boxes: Any, scores: Any, iou_threshold: float, most: int) -> Any:
        constants = (
            op.Constant(value_ints=[most]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[0.0]),
        )
        one = op.Constant(value_ints=[1])
        chosen = op.NonMaxSuppression(boxes, op.Unsqueeze(scores, one), *constants)
        # rows of (image, class, box); the class is always 0
        places = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
        count = op.Slice(op.Shape(places), op.Constant(value_ints=[0]), one)
        ones = op.Expand(op.Constant(value_floats=[1.0]), count)
        zeros = op.Expand(op.Constant(value_floats=[0.0]), op.Shape(scores))
        return op.ScatterND(zeros, places, ones)

    return translated
