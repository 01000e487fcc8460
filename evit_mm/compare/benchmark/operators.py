"""mmcv's operators: compiled, and by evit_mm.ops, on the same inputs.

Needs an mmcv with compiled operators, whose functions are called beside this package's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ...ops.operators import OPERATORS
from .detection import CASES, cases

Call = Callable[[Any], object]
THEIRS, OURS = 'compiled', 'evit_mm.ops'
REGIONS, MAP = 500, (256, 100, 168)  # of RoIAlign: channels, height, width of a map of stride 8


def calls() -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    """Yield what is timed together: a label, and functions named ``THEIRS`` and ``OURS``.

    Raises:
        ConfigError: This mmcv has no compiled operators.
    """
    compiled = importlib.import_module('mmcv._ext')
    if getattr(compiled, '__file__', None) is None:
        raise ConfigError('the suite operators needs an mmcv with compiled ones: docs/install.md')

    ours = SimpleNamespace(**OPERATORS)

    def both(call: Call) -> dict[str, Callable[[], object]]:
        return {THEIRS: lambda: call(compiled), OURS: lambda: call(ours)}

    for label, call in _operators():
        yield label, both(call)
    yield 'RetinaNet-lite-M0, 640x640, prediction', both(_prediction())


def _operators() -> Iterator[tuple[str, Call]]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    for count in (1000, 5000):
        low = random(count, 2) * 800
        boxes, scores = torch.cat((low, low + 8 + random(count, 2) * 200), 1), random(count)
        dets = torch.cat((boxes, scores[:, None]), 1)
        yield f'nms, {count} boxes', lambda ext, b=boxes, s=scores: ext.nms(b, s, 0.5, 0)
        if count == 1000:
            for number, method in enumerate(('naive', 'linear', 'gaussian')):
                yield (
                    f'soft-nms {method}, {count} boxes',
                    lambda ext, b=boxes, s=scores, d=dets, m=number: ext.softnms(
                        b, s, torch.empty_like(d), 0.3, 0.5, 0.05, m, 0
                    ),
                )
            yield f'nms_match, {count} boxes', lambda ext, d=dets: ext.nms_match(d, 0.5)
            yield (
                f'bbox_overlaps, {count} x {count}',
                lambda ext, b=boxes: ext.bbox_overlaps(
                    b, b, torch.empty(len(b), len(b)), 0, False, 0
                ),
            )
    centre = random(500, 2) * 800
    turned = torch.cat((centre, 8 + random(500, 2) * 200, random(500, 1) * 6), 1)
    yield (
        'box_iou_rotated, 500 x 500',
        lambda ext: ext.box_iou_rotated(turned, turned, torch.empty(500 * 500), 0, False),
    )
    order = torch.arange(500)
    none = torch.empty(0, dtype=torch.int)
    yield (
        'nms_rotated, 500 boxes',
        lambda ext: ext.nms_rotated(
            turned, torch.linspace(1, 0, 500), order, turned, none, 0.3, False
        ),
    )
    yield from _pooling(random)
    yield from _convolutions(random)


def _pooling(random: Callable[..., Tensor]) -> Iterator[tuple[str, Call]]:
    features = random(1, *MAP)
    low = random(REGIONS, 2) * 600
    rois = torch.cat((torch.zeros(REGIONS, 1), low, low + 16 + random(REGIONS, 2) * 300), 1)
    for mode, name in ((1, 'average'), (0, 'maximum')):
        for ratio in (0, 2):
            size = (REGIONS, MAP[0], 7, 7)
            output, y, x = (torch.zeros(size) for _ in range(3))
            options = (7, 7, 0.125, ratio, mode, True)
            yield (
                f'RoIAlign {name}, sampling_ratio={ratio}',
                lambda ext, a=(features, rois, output, y, x, *options): ext.roi_align_forward(*a),
            )
            yield (
                f'RoIAlign {name}, sampling_ratio={ratio}, backward',
                lambda ext, a=(output, rois, y, x), o=options: ext.roi_align_backward(
                    *a, torch.zeros_like(features), *o
                ),
            )


def _convolutions(random: Callable[..., Tensor]) -> Iterator[tuple[str, Call]]:
    x, weight = random(2, 64, 50, 50), random(64, 64, 3, 3)
    offset, mask = random(2, 18, 50, 50) * 4 - 2, random(2, 9, 50, 50)
    output, scratch, bias = torch.zeros(2, 64, 50, 50), torch.zeros(0), random(64)
    sizes = {'kW': 3, 'kH': 3, 'dW': 1, 'dH': 1, 'padW': 1, 'padH': 1}
    sizes.update(dilationW=1, dilationH=1, group=1, deformable_group=1, im2col_step=2)

    def backward(ext: Any) -> None:
        scratch, gradient = torch.zeros(0), output + 1
        grads = [torch.zeros_like(t) for t in (x, offset, weight)]
        ext.deform_conv_backward_input(x, offset, gradient, *grads[:2], weight, scratch, **sizes)
        ext.deform_conv_backward_parameters(
            x, offset, gradient, grads[2], scratch, torch.zeros(0), scale=1, **sizes
        )

    yield (
        'deformable convolution, 64 channels, 50 x 50',
        lambda ext: ext.deform_conv_forward(
            x, weight, offset, output, torch.zeros(0), torch.zeros(0), **sizes
        ),
    )
    yield 'deformable convolution, backward', backward
    numbers = (3, 3, 1, 1, 1, 1, 1, 1, 1, 1, True)
    yield (
        'modulated deformable convolution',
        lambda ext: ext.modulated_deform_conv_forward(
            x, weight, bias, torch.zeros(0), offset, mask, output, scratch, *numbers
        ),
    )

    def modulated_backward(ext: Any) -> None:
        grads = [torch.zeros_like(t) for t in (x, weight, bias, offset, mask)]
        ext.modulated_deform_conv_backward(
            x, weight, bias, torch.zeros(0), offset, mask, torch.zeros(0), *grads,
            output + 1, *numbers,
        )  # fmt: skip

    yield 'modulated deformable convolution, backward', modulated_backward


def _prediction() -> Call:
    """Return a detector's prediction on mmdet's path with the operators that it is given."""
    module = importlib.import_module('mmcv.ops.nms')  # mmcv.ops.nms is the function
    chosen = [case for case in CASES if case[0] == 'retinanet_lite_evit_m0_coco'][:1]
    (case,) = cases('cpu', chosen)
    predict = case['whole, from tensors, mmdet']

    def run(ext: Any) -> object:
        vars(module)['ext_module'] = ext
        return predict()

    return run
