"""Speed of whole detectors in the forms in which they are deployed.

A call takes a normalised image ``(1, 3, 640, 640)`` and returns the detections after NMS.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from torch import nn

from ...deploy import fuse_detector
from ...deploy.export import DetectorGraph, ExportedModel
from ...deploy.export.files import BFLOAT16, FLOAT32, INT8
from ...deploy.export.formats import FORMATS
from ...deploy.export.graph import ALL, CANDIDATES, NMS, nms_options, suppress
from ...deploy.export.run import build_graph
from . import forms, networks
from .timing import Build, Call, Row, Setting, time_in_processes

PEER = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
CONFIGS = (
    'retinanet_lite_evit_m0_coco',
    'retinanet_lite_evit_m4_coco',
    'rtmdet_evit_m0_coco',
    'rtmdet_evit_m4_coco',
    'yolox_evit_m0_coco',
    PEER,
)
SIDE = 640
PASSING = 1000  # number of scores above the threshold, about as for a trained detector
PEER_FOLDER = Path('work_dirs/peers')  # ONNX files of other detectors
CALIBRATION_IMAGES = 8


def measure(setting: Setting) -> tuple[list[Row], list[str]]:
    """Time each detector in each form, and other detectors in ONNX Runtime and OpenVINO."""
    groups: list[list[tuple[Row, Build]]] = []
    for config in CONFIGS:
        title = _title(config)
        builds = {name: partial(build_form, config, name, setting.threads) for name in FORMS}
        groups.append([(Row(title, x, against='mmdet'), build) for x, build in builds.items()])
    runtimes = {'ONNX Runtime': _run_onnx, 'OpenVINO': _run_openvino}
    for file in sorted(PEER_FOLDER.glob('*.onnx')):
        builds = {x: partial(run, file.resolve(), setting.threads) for x, run in runtimes.items()}
        groups.append(
            [(Row(file.stem, x, against='ONNX Runtime'), build) for x, build in builds.items()]
        )
    note = (
        f'Images of {SIDE}x{SIDE}, batch 1, from the normalised image to the detections after NMS, '
        f'random weights, with a score threshold that {PASSING} scores pass. Each form runs in a '
        'separate process, and the calls of one detector are interleaved. int8 is calibrated on '
        'noise, only to measure its speed. bf16 is computed in float32 if the processor has no '
        f'bfloat16. The baseline is mmdet in PyTorch. Files in `{PEER_FOLDER}` are networks of '
        'others, without NMS where their file has none.'
    )
    rows = []
    for group in groups:  # one detector at a time, because each process needs up to 1 GB of memory
        rows += time_in_processes(group, setting.rounds, 2, setting.threads)
    return rows, [note]


def build_form(config: str, name: str, threads: int) -> Call:
    """Build one of :data:`FORMS` of a detector."""
    return FORMS[name](build_detector(config), threads)


def build_detector(config: str) -> Any:
    """Build a detector with random weights, of whose scores ``PASSING`` are above the threshold."""
    if config == PEER:
        init_default_scope('mmdet')
        text = get_config(config).pretty_text.replace('SyncBN', 'BN')  # the same on one CPU
        cfg = Config.fromstring(text, '.py')
        cfg.model.backbone.init_cfg = None
    else:
        cfg = networks.read_untrained(config)
    model = networks.with_statistics(networks.build_detector(cfg)).requires_grad_(False)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.inference_mode():
        for norm in norms:  # with the statistics of their inputs, so that the scores differ
            norm.momentum = 1.0
            norm.train()
        model.bbox_head(model.extract_feat(_image()))
        model.eval()
        _, scores = DetectorGraph(model, ALL)(_image(), _size())
    model.bbox_head.test_cfg.score_thr = float(scores.flatten().topk(PASSING).values[-1])
    return model


def _mmdet(model: Any, threads: int) -> Call:
    from mmdet.structures import DetDataSample

    sample = DetDataSample(metainfo={'img_shape': (SIDE, SIDE), 'scale_factor': (1.0, 1.0)})
    return forms.eager(lambda image: model.predict(image, [sample]), _image(), threads)


def _fused(model: Any, threads: int) -> Call:
    return _mmdet(fuse_detector(model), threads)


def _compiled(model: Any, threads: int) -> Call:
    options = nms_options(model.bbox_head.test_cfg)
    graph, size = build_graph(model, CANDIDATES, torch.float32), _size()
    candidates = forms.compiled(lambda image: graph(image, size), _image(), threads)
    return lambda: suppress(*candidates(), **options)  # type: ignore[misc]


def _exported(kind: str, model: Any, threads: int, precision: str = FLOAT32) -> Call:
    form, half = FORMATS[kind], precision == BFLOAT16
    ending = NMS if form.has_nms else CANDIDATES
    graph = build_graph(model, ending, form.dtypes[BFLOAT16 if half else FLOAT32])
    test_cfg = model.bbox_head.test_cfg
    metadata = {
        'classes': [],
        'in_channels': 3,
        'outputs': ['boxes', 'scores', 'labels'],
        'nms': None if form.has_nms else nms_options(test_cfg),
        'precision': precision,
    }
    inputs = {'image': _image().numpy(), 'size': _size().numpy()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'model').with_suffix(form.suffixes[-1])
        form.write(graph, file, metadata, (SIDE, SIDE))
        if precision == INT8:
            noise = np.random.default_rng(0)
            rows = [
                {**inputs, 'image': noise.normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)}
                for _ in range(CALIBRATION_IMAGES)
            ]
            source, file = file, file.with_stem('int8')
            form.quantize(source, file, metadata, rows)
        opened = ExportedModel(file, threads)
    return lambda: opened.detect(**inputs)


FORMS: dict[str, Callable[[Any, int], Call]] = {
    'mmdet': _mmdet,
    'fused': _fused,
    'fused, compiled': _compiled,
    'torch.export': partial(_exported, 'torch'),
    'ONNX Runtime': partial(_exported, 'onnx'),
    'ONNX Runtime int8': partial(_exported, 'onnx', precision=INT8),
    'OpenVINO': partial(_exported, 'openvino'),
    'OpenVINO bf16': partial(_exported, 'openvino', precision=BFLOAT16),
    'OpenVINO int8': partial(_exported, 'openvino', precision=INT8),
    'ExecuTorch': partial(_exported, 'executorch'),
}


def _run_onnx(file: Path, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    inputs = {session.get_inputs()[0].name: _image().numpy()}
    return lambda: session.run(None, inputs)


def _run_openvino(file: Path, threads: int) -> Call:
    from ...deploy.export.openvino_format import openvino_core

    options = {
        'INFERENCE_NUM_THREADS': threads,
        'INFERENCE_PRECISION_HINT': 'f32',
        'PERFORMANCE_HINT': 'LATENCY',
    }
    request = openvino_core().compile_model(str(file), 'CPU', options).create_infer_request()
    inputs = [_image().numpy()]
    return lambda: request.infer(inputs)


def _image() -> torch.Tensor:
    return torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def _size() -> torch.Tensor:
    return torch.tensor([[SIDE, SIDE]], dtype=torch.float32)


def _title(config: str) -> str:
    return f'mmdet RTMDet-tiny, {SIDE}x{SIDE}' if config == PEER else f'{config}, {SIDE}x{SIDE}'
