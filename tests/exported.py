"""An exported file of a few operators, whose detections are known without a network."""

import json
from pathlib import Path

import numpy as np

from evit_mm.data.pipeline import DECODING

CLASSES = ['circle', 'square', 'triangle', 'star', 'cross']


def write_exported(file: Path, **changed) -> Path:
    """Write a file that finds the left upper quarter of each image, with its most red as score."""
    import onnx

    image, size = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (('image', ['b', 3, 'h', 'w']), ('size', ['b', 2]))
    )
    kinds = {'boxes': (1, ['b', 1, 4]), 'scores': (1, ['b', 1]), 'labels': (7, ['b', 1])}
    outputs = [onnx.helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]
    constants = {
        'half': np.array([[0, 0, 0, 0.5], [0, 0, 0.5, 0]], np.float32)[None],
        'column': np.array([1], np.int64),
        'zero': np.array([0], np.int64),
        'sides': np.array([2, 3], np.int64),
        'white': np.float32([255]),
        'star': np.array([[3]], np.int64),
    }
    node = onnx.helper.make_node
    nodes = [
        node('Unsqueeze', ['size', 'column'], ['row']),
        node('MatMul', ['row', 'half'], ['boxes']),
        node('ReduceMax', ['image', 'sides'], ['brightest'], keepdims=0),
        node('Gather', ['brightest', 'zero'], ['red'], axis=1),
        node('Div', ['red', 'white'], ['scores']),
        node('Identity', ['star'], ['labels']),
    ]
    stored = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, 'quarter', [image, size], outputs, stored)
    content = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 18)])
    content.ir_version = 10
    metadata = {
        'classes': CLASSES,
        'reader': [{'type': 'LoadImageFromFile', **DECODING}],
        'in_channels': 3,
        'mean': [0.0] * 3,
        'std': [1.0] * 3,
        'channels': 'RGB',
        'scale': [128, 128],
        'keep_ratio': True,
        'pad_size_divisor': 32,
        'pad_value': 0.0,
        'score_thr': 0.0,
        'outputs': list(kinds),
        **changed,
    }
    onnx.helper.set_model_props(content, {'evit_mm': json.dumps(metadata)})
    onnx.save_model(content, str(file))
    return file
