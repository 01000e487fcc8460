"""ONNX format: exported by PyTorch, run and quantised by ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ...checkpoint.reading import METADATA_KEY
from ...errors import EvitError
from .files import FLOAT16, FLOAT32, Format, Inputs, Run, need
from .graph import Size, export_program, input_names
from .two_stage import two_stage_translations

OPSET = 18
QUANTIZED = ['Conv', 'Gemm', 'MatMul', 'ConvTranspose']
# operators that select or count; no feature passes through them
CHOICES = ('NonMaxSuppression', 'NonZero', 'Shape', 'TopK')


class OnnxFormat(Format):
    """An ONNX file."""

    suffixes = ('.onnx',)
    packages = ('onnx', 'onnxscript', 'onnxruntime')
    int8_packages = ()
    dtypes: ClassVar = {FLOAT32: torch.float32, FLOAT16: torch.float16}

    def write(self, graph: nn.Module, file: Path, metadata: dict, size: Size) -> None:
        """Write the graph, exported by PyTorch."""
        onnx, onnxscript = need('onnx'), need('onnxscript')
        table: dict[Any, Any] = {
            torch.ops.evit_mm.nms_mask.default: _nms_mask(onnxscript),
            **two_stage_translations(onnxscript, OPSET),
        }
        try:
            program: Any = torch.onnx.export(
                export_program(graph, metadata['in_channels'], size),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=input_names(graph),
                output_names=metadata['outputs'],
                custom_translation_table=table,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise EvitError(
                f'the model cannot be exported to ONNX ({reason}); try --static'
            ) from error
        model = program.model_proto
        _name_dimensions(model)
        onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
        onnx.checker.check_model(model)
        onnx.save_model(model, str(file))

    def load(self, file: Path, threads: int | None) -> tuple[str | None, Run]:
        """Open a file in ONNX Runtime, on the CPU as in the other formats."""
        runtime = need('onnxruntime')
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # others, such as CoreML on a Mac, can compute in lower precision
        providers = ['CPUExecutionProvider']
        session = runtime.InferenceSession(str(file), options, providers=providers)
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        return text, lambda inputs: session.run(None, inputs)

    def quantize(self, source: Path, target: Path, metadata: dict, inputs: Inputs) -> None:
        """Quantise with QDQ nodes, symmetrically and to int8, as TensorRT requires it."""
        onnx, quantization = need('onnx'), need('onnxruntime.quantization')
        shape_inference = need('onnxruntime.quantization.shape_inference')
        prepared = target.with_suffix('.prepared')
        shape_inference.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        last = last_nodes(onnx.load(str(prepared)).graph.node, QUANTIZED)
        quantization.quantize_static(
            str(prepared),
            str(target),
            _CalibrationInputs(inputs),
            op_types_to_quantize=QUANTIZED,
            nodes_to_exclude=last,  # they predict scores and boxes, where small errors cost AP
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            extra_options={
                'ActivationSymmetric': True,
                'QuantizeBias': False,  # TensorRT computes the bias in float32
                # the mean range of the images; one wide range would make all steps coarse
                'CalibMovingAverage': True,
            },
        )
        model = onnx.load(str(target))
        onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
        onnx.save_model(model, str(target))


def last_nodes(nodes: Sequence[Any], kinds: Sequence[str]) -> list[str]:
    """Return the names of the nodes of some kinds that predict scores, boxes or masks.

    No other of these nodes computes with their results. The second stage of a detector only uses
    the boxes of the first to cut features out.

    Args:
        nodes: ONNX nodes in topological order.
        kinds: Types of operators.
    """
    needed: set[str] = set()  # values with which a later node of these kinds computes
    last = []
    for node in reversed(nodes):
        leads_on = not needed.isdisjoint(node.output)
        if node.op_type in kinds and not leads_on:
            last.append(node.name)
        if node.op_type in kinds or (leads_on and node.op_type not in CHOICES):
            needed.update(node.input[:1] if node.op_type == 'RoiAlign' else node.input)
    return last


def add_tensorrt_nms(file: Path, metadata: dict) -> None:
    """End a file of all boxes and scores with TensorRT's operator ``EfficientNMS_TRT``.

    Only TensorRT can run the file.
    """
    onnx = need('onnx')
    model = onnx.load(str(file))
    batch = model.graph.output[0].type.tensor_type.shape.dim[0]
    number, kinds = metadata['nms']['max_per_img'], onnx.TensorProto
    outputs = {
        'num_detections': (kinds.INT32, [1]),
        'detection_boxes': (kinds.FLOAT, [number, 4]),
        'detection_scores': (kinds.FLOAT, [number]),
        'detection_classes': (kinds.INT32, [number]),
    }
    node = onnx.helper.make_node(
        'EfficientNMS_TRT',
        [value.name for value in model.graph.output],
        [*outputs],
        name='nms',
        domain='TRT',  # TensorRT looks for a plugin of this name in any domain
        plugin_version='1',
        background_class=-1,
        max_output_boxes=number,
        score_threshold=metadata['score_thr'],
        iou_threshold=metadata['nms']['iou_threshold'],
        score_activation=0,  # the scores are probabilities
        class_agnostic=0,
        box_coding=0,  # corners
    )
    model.graph.node.append(node)
    model.opset_import.append(onnx.helper.make_opsetid('TRT', 1))
    first = batch.dim_param or batch.dim_value
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, kind, [first, *shape])
        for name, (kind, shape) in outputs.items()
    )
    metadata = {**metadata, 'outputs': [*outputs], 'nms': None}
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    onnx.save_model(model, str(file))


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
            dimension = value.type.tensor_type.shape.dim[axis]
            if not dimension.HasField('dim_value'):
                dimension.dim_param = name


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
