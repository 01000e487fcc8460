"""mmcv's operators: compiled, and by evit_mm.ops, on the same inputs.

Needs an mmcv with compiled operators, whose functions are called beside this package's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ...ops.operators import OPERATORS
from .detection import photo, prediction
from .timing import Row, Setting, time_rows

# what is timed, given the compiled operators or ours
Use = Callable[[Any], object]
THEIRS, OURS = 'compiled', 'evit_mm.ops'
REGIONS, MAP = 500, (256, 100, 168)  # of RoIAlign: channels, height, width of a map of stride 8


def measure(setting: Setting) -> tuple[list[Row], list[str]]:
    """Time mmcv's operators, compiled and by evit_mm.ops.

    Raises:
        ConfigError: This mmcv has no compiled operators.
    """
    compiled = importlib.import_module('mmcv._ext')
    if getattr(compiled, '__file__', None) is None:
        raise ConfigError('the suite operators needs an mmcv with compiled ones: docs/install.md')
    ours = SimpleNamespace(**OPERATORS)
    generator = torch.Generator().manual_seed(0)
    random = partial(torch.rand, generator=generator)
    rows = []
    for part in (_suppression, _pooling, _convolutions, _prediction):
        for label, use in part(random):
            timed = [
                (Row(label, THEIRS), partial(use, compiled)),
                (Row(label, OURS, against=THEIRS), partial(use, ours)),
            ]
            rows += time_rows(timed, setting.rounds)
    note = (
        "On random boxes and maps of the sizes of a detector. RetinaNet predicts on mmdet's path."
    )
    return rows, [note]


def _use(name: str, *args: Any, **kwargs: Any) -> Use:
    """Return a use of a single operator, which writes its results into the same tensors."""
    return lambda operators: getattr(operators, name)(*args, **kwargs)


def _suppression(random: Callable[..., Tensor]) -> Iterator[tuple[str, Use]]:
    for count in (1000, 5000):
        low = random(count, 2) * 800
        boxes, scores = torch.cat((low, low + 8 + random(count, 2) * 200), 1), random(count)
        dets = torch.cat((boxes, scores[:, None]), 1)
        yield f'nms, {count} boxes', _use('nms', boxes, scores, 0.5, 0)
        if count == 1000:
            for number, method in enumerate(('naive', 'linear', 'gaussian')):
                options = (torch.empty_like(dets), 0.3, 0.5, 0.05, number, 0)
                label = f'soft-nms {method}, {count} boxes'
                yield label, _use('softnms', boxes, scores, *options)
            yield f'nms_match, {count} boxes', _use('nms_match', dets, 0.5)
            overlaps = torch.empty(count, count)
            label = f'bbox_overlaps, {count} x {count}'
            yield label, _use('bbox_overlaps', boxes, boxes, overlaps, 0, False, 0)
    centre = random(500, 2) * 800
    turned = torch.cat((centre, 8 + random(500, 2) * 200, random(500, 1) * 6), 1)
    overlaps = torch.empty(500 * 500)
    label = 'box_iou_rotated, 500 x 500'
    yield label, _use('box_iou_rotated', turned, turned, overlaps, 0, False)
    scores, order = torch.linspace(1, 0, 500), torch.arange(500)
    labels = torch.empty(0, dtype=torch.int)
    label = 'nms_rotated, 500 boxes'
    yield label, _use('nms_rotated', turned, scores, order, turned, labels, 0.3, False)


def _pooling(random: Callable[..., Tensor]) -> Iterator[tuple[str, Use]]:
    features = random(1, *MAP)
    gradient = torch.zeros_like(features)
    low = random(REGIONS, 2) * 600
    rois = torch.cat((torch.zeros(REGIONS, 1), low, low + 16 + random(REGIONS, 2) * 300), 1)
    for mode, name in ((1, 'average'), (0, 'maximum')):
        for ratio in (0, 2):
            pooled = [torch.zeros(REGIONS, MAP[0], 7, 7) for _ in range(3)]  # output and places
            options = (7, 7, 0.125, ratio, mode, True)
            label = f'RoIAlign {name}, sampling_ratio={ratio}'
            yield label, _use('roi_align_forward', features, rois, *pooled, *options)
            output, *places = pooled
            arguments = (output, rois, *places, gradient, *options)
            yield f'{label}, backward', _use('roi_align_backward', *arguments)


def _convolutions(random: Callable[..., Tensor]) -> Iterator[tuple[str, Use]]:
    x, weight, bias = random(2, 64, 50, 50), random(64, 64, 3, 3), random(64)
    offset, mask = random(2, 18, 50, 50) * 4 - 2, random(2, 9, 50, 50)
    output, scratch, more_scratch = torch.zeros(2, 64, 50, 50), torch.zeros(0), torch.zeros(0)
    gradient = torch.ones_like(output)
    sizes = {'kW': 3, 'kH': 3, 'dW': 1, 'dH': 1, 'padW': 1, 'padH': 1}
    sizes.update(dilationW=1, dilationH=1, group=1, deformable_group=1, im2col_step=2)

    def backward(operators: Any) -> None:
        grads = [torch.zeros_like(t) for t in (x, offset, weight)]
        operators.deform_conv_backward_input(
            x, offset, gradient, *grads[:2], weight, scratch, **sizes
        )
        operators.deform_conv_backward_parameters(
            x, offset, gradient, grads[2], scratch, more_scratch, scale=1, **sizes
        )

    forward = _use('deform_conv_forward', x, weight, offset, output, scratch, more_scratch, **sizes)
    yield 'deformable convolution, 64 channels, 50 x 50', forward
    yield 'deformable convolution, backward', backward
    numbers = (3, 3, 1, 1, 1, 1, 1, 1, 1, 1, True)
    label, inputs = 'modulated deformable convolution', (x, weight, bias, scratch, offset, mask)
    results = (output, more_scratch)
    yield label, _use('modulated_deform_conv_forward', *inputs, *results, *numbers)
    grads = [torch.zeros_like(t) for t in (x, weight, bias, offset, mask)]
    arguments = (*inputs, more_scratch, *grads, gradient, *numbers)
    yield f'{label}, backward', _use('modulated_deform_conv_backward', *arguments)


def _prediction(random: Callable[..., Tensor]) -> Iterator[tuple[str, Use]]:  # noqa: ARG001
    """Yield a detector's prediction on mmdet's path, whose NMS takes its operators from mmcv."""
    module = importlib.import_module('mmcv.ops.nms')  # mmcv.ops.nms is the function
    with photo() as file:
        calls, _ = prediction('retinanet_lite_evit_m0_coco', (640, 640), 1, file)
    predict = next(call for row, call in calls if row.name == 'whole, from tensors, mmdet')

    def use(operators: Any) -> object:
        # no public way to call mmcv's functions with other operators than it was imported with
        vars(module)['ext_module'] = operators
        return predict()

    yield 'RetinaNet-lite-M0, 640x640, prediction', use
