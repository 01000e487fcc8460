"""Speed of mmcv's compiled operators and of evit_mm.ops, on the same inputs.

This suite needs an mmcv with compiled operators. It calls mmcv's functions with both backends.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ...errors import ConfigError
from ...ops.operators import OPERATORS
from .detection import photo, prediction
from .timing import Call, Row, Setting, time_rows

THEIRS, OURS = 'compiled', 'evit_mm.ops'
REGIONS, MAP = 500, (256, 100, 168)  # RoIAlign: regions; channels, height, width at stride 8


def measure(setting: Setting) -> tuple[list[Row], list[str]]:
    """Time mmcv's compiled operators and evit_mm.ops."""
    compiled = importlib.import_module('mmcv._ext')
    if getattr(compiled, '__file__', None) is None:
        raise ConfigError(
            'the suite operators needs an mmcv with compiled operators; see docs/install.md'
        )
    importlib.import_module('mmcv.ops')
    # mmcv has no public API to replace its operators after the import
    modules = [vars(m) for name, m in sys.modules.items() if name.startswith('mmcv.ops.')]
    users = [names for names in modules if names.get('ext_module') is compiled]

    def run(operators: Any, call: Call) -> object:
        for user in users:
            user['ext_module'] = operators
        return call()

    ours = SimpleNamespace(**OPERATORS)
    generator = torch.Generator().manual_seed(0)
    random = partial(torch.rand, generator=generator)
    rows = []
    for cases in (_suppression, _pooling, _convolutions, _prediction):
        for label, call in cases(random):
            timed = [
                (Row(label, THEIRS), partial(run, compiled, call)),
                (Row(label, OURS, against=THEIRS), partial(run, ours, call)),
            ]
            rows += time_rows(timed, setting.rounds)
    run(compiled, lambda: None)
    note = (
        "The boxes and maps are random and have a detector's sizes. RetinaNet predicts with "
        "mmdet's own code. The baseline is mmcv's compiled operator."
    )
    return rows, [note]


def _suppression(random: Callable[..., Any]) -> Iterator[tuple[str, Call]]:
    from mmcv import ops

    for count in (1000, 5000):
        low = random(count, 2) * 800
        boxes, scores = torch.cat((low, low + 8 + random(count, 2) * 200), 1), random(count)
        yield f'nms, {count} boxes', partial(ops.nms, boxes, scores, 0.5)
        if count == 1000:
            for method in ('naive', 'linear', 'gaussian'):
                label = f'soft-nms {method}, {count} boxes'
                yield label, partial(ops.soft_nms, boxes, scores, min_score=0.05, method=method)
            dets = torch.cat((boxes, scores[:, None]), 1)
            yield f'nms_match, {count} boxes', partial(ops.nms_match, dets, 0.5)
            label = f'bbox_overlaps, {count} x {count}'
            yield label, partial(ops.bbox_overlaps, boxes, boxes)
    centre = random(500, 2) * 800
    turned = torch.cat((centre, 8 + random(500, 2) * 200, random(500, 1) * 6), 1)
    yield 'box_iou_rotated, 500 x 500', partial(ops.box_iou_rotated, turned, turned)
    scores = torch.linspace(1, 0, 500)
    yield 'nms_rotated, 500 boxes', partial(ops.nms_rotated, turned, scores, 0.3)


def _pooling(random: Callable[..., Any]) -> Iterator[tuple[str, Call]]:
    from mmcv.ops import RoIAlign

    features = random(1, *MAP).requires_grad_()
    low = random(REGIONS, 2) * 600
    rois = torch.cat((torch.zeros(REGIONS, 1), low, low + 16 + random(REGIONS, 2) * 300), 1)
    for mode, name in (('avg', 'average'), ('max', 'maximum')):
        for ratio in (0, 2):
            label = f'RoIAlign {name}, sampling_ratio={ratio}'
            yield from _both_ways(label, RoIAlign(7, 0.125, ratio, mode), features, rois)


def _convolutions(random: Callable[..., Any]) -> Iterator[tuple[str, Call]]:
    from mmcv.ops import DeformConv2d, ModulatedDeformConv2d

    x, mask = random(2, 64, 50, 50).requires_grad_(), random(2, 9, 50, 50).requires_grad_()
    offset = (random(2, 18, 50, 50) * 4 - 2).requires_grad_()
    layer = DeformConv2d(64, 64, 3, padding=1)
    yield from _both_ways('deformable convolution, 64 channels, 50 x 50', layer, x, offset)
    layer = ModulatedDeformConv2d(64, 64, 3, padding=1)
    yield from _both_ways('modulated deformable convolution', layer, x, offset, mask)


def _both_ways(label: str, layer: nn.Module, *inputs: Any) -> Iterator[tuple[str, Call]]:
    """Yield the forward pass of a layer, and then its backward pass."""
    yield label, torch.no_grad()(partial(layer, *inputs))
    output = layer(*inputs)
    learning = [x for x in (*inputs, *layer.parameters()) if x.requires_grad]
    gradient = torch.ones_like(output)
    backward = partial(torch.autograd.grad, output, learning, gradient, retain_graph=True)
    yield f'{label}, backward', backward


def _prediction(random: Callable[..., Any]) -> Iterator[tuple[str, Call]]:  # noqa: ARG001
    """Yield the prediction of mmdet's detector, which uses the NMS of mmcv."""
    with photo() as file:
        calls, _ = prediction('retinanet_lite_evit_m0_coco', (640, 640), 1, file)
    predict = next(call for row, call in calls if row.name == 'whole, from tensors, mmdet')
    yield 'RetinaNet-lite-M0, 640x640, prediction', predict
