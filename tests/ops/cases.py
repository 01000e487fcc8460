"""Calls of mmcv's operators with fixed inputs, and what a compiled mmcv returned for them.

``python -m tests.ops.cases`` in an environment with a compiled mmcv writes ``compiled.npz``.
The operators that a compiled mmcv has only for GPUs are not among these cases; they are held
against naive loops in ``test_against_loops.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

RECORDED = Path(__file__).with_name('compiled.npz')
CASES: dict[str, Callable[[], dict[str, Tensor]]] = {}


def case(function):
    """Register a case by its name."""
    CASES[function.__name__] = function
    return function


def numbers(shape: tuple[int, ...], seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Return the same random numbers with every version of every library."""
    values = np.random.RandomState(seed).uniform(low, high, shape)
    return torch.from_numpy(values.astype(np.float32))


def boxes_of(count: int, seed: int, size: float = 200.0) -> Tensor:
    corners = numbers((count, 2), seed, 0, size)
    return torch.cat((corners, corners + numbers((count, 2), seed + 1, 5, size / 3)), 1)


def rotated(count: int, seed: int) -> Tensor:
    parts = [numbers((count, 2), seed, 0, 60), numbers((count, 2), seed + 1, 5, 40)]
    return torch.cat((*parts, numbers((count, 1), seed + 2, -3, 3)), 1)


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> dict[str, Tensor]:
    """Return the output and, for the sum of its products with fixed numbers, all gradients."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    factors = numbers(tuple(output.shape), 99, -1, 1).to(output)
    gradients = torch.autograd.grad((output * factors).sum(), leaves)
    return {'output': output.detach(), **{f'by_{k}': g for k, g in enumerate(gradients)}}


def _nms_family(boxes: Tensor, scores: Tensor) -> dict[str, Tensor]:
    from mmcv.ops import batched_nms, nms, nms_match, soft_nms

    found = {}
    for offset in (0, 1):
        for threshold in (0.3, 0.5):
            found[f'nms_{offset}_{threshold}'] = nms(boxes, scores, threshold, offset)[1]
        for method in ('naive', 'linear', 'gaussian'):
            dets, kept = soft_nms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
            found[f'{method}_{offset}_dets'], found[f'{method}_{offset}_kept'] = dets, kept
    found['above'] = nms(boxes, scores, 0.5, score_threshold=0.4, max_num=5)[1]
    groups = nms_match(torch.cat((boxes, scores[:, None]), 1), 0.5)
    found['match'] = torch.cat([torch.tensor([-1]), *groups])
    if len(boxes):  # mmcv's batched_nms takes no empty tensors
        classes = torch.arange(len(boxes)) % 3
        found['batched'] = batched_nms(
            boxes, scores, classes, {'type': 'nms', 'iou_threshold': 0.5}
        )[1]
    return found


@case
def nms_random():
    return _nms_family(boxes_of(500, 0), numbers((500,), 2))


@case
def nms_none():
    return _nms_family(torch.zeros(0, 4), torch.zeros(0))


@case
def nms_one():
    return _nms_family(boxes_of(1, 3), numbers((1,), 4))


@case
def nms_ties():
    """Whole numbers, in which overlaps are exactly the thresholds, and equal scores.

    Up to 16 numbers, torch's sort keeps the order of equal ones; beyond, it depends on its version.
    """
    corners = numbers((120, 2), 5, 0, 12).round()
    boxes = torch.cat((corners, corners + numbers((120, 2), 6, 1, 10).round()), 1)
    found = _nms_family(boxes, numbers((120,), 7))
    few = _nms_family(boxes[:16], (numbers((16,), 7) * 2).round() / 2 + 0.1)
    return {**found, **{f'equal_{name}': value for name, value in few.items()}}


@case
def nms_same_box():
    return _nms_family(torch.tensor([[1.0, 2, 30, 40]]).repeat(6, 1), torch.full((6,), 0.5))


@case
def nms_without_area():
    boxes = boxes_of(30, 8)
    boxes[::3, 2:] = boxes[::3, :2]
    boxes[1::3, 2] -= 300
    found = _nms_family(boxes, numbers((30,), 9))
    # mmcv's Gaussian soft-NMS makes NaN of two boxes without an area
    return {name: value for name, value in found.items() if not name.startswith('gaussian')}


@case
def rotated_boxes():
    from mmcv.ops import box_iou_rotated, nms_rotated

    first, second, scores = rotated(40, 10), rotated(40, 13), numbers((40,), 16)
    first[:5] = second[:5]
    found = {'kept': nms_rotated(first, scores, 0.3)[1]}
    found['labelled'] = nms_rotated(first, scores, 0.3, labels=torch.arange(40.0) % 2)[1]
    for mode in ('iou', 'iof'):
        found[mode] = box_iou_rotated(first, second, mode)
        found[f'{mode}_aligned'] = box_iou_rotated(first, second, mode, aligned=True)
    found['turned'] = box_iou_rotated(first, second, clockwise=False)
    found['none'] = box_iou_rotated(first[:0], second)
    return found


@case
def quadrilaterals():
    """Turned rectangles: for other shapes mmcv's test of a point inside is not exact."""
    from mmcv.ops import box_iou_quadri, nms_quadri

    found = []
    for boxes in (rotated(30, 20), rotated(30, 23)):
        x, y, w, h, a = boxes.double().unbind(1)
        corners = []
        for dx, dy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            corners.append(x + dx * w / 2 * a.cos() - dy * h / 2 * a.sin())
            corners.append(y + dx * w / 2 * a.sin() + dy * h / 2 * a.cos())
        found.append(torch.stack(corners, 1).float())
    first, second = found
    return {
        'iou': box_iou_quadri(first, second),
        'iof': box_iou_quadri(first, second, 'iof', aligned=True),
        'kept': nms_quadri(first, numbers((30,), 26), 0.3)[1],
    }


@case
def upright_overlaps():
    from mmcv.ops import bbox_overlaps

    first, second = boxes_of(20, 30), boxes_of(20, 33)
    found = {}
    for mode in ('iou', 'iof'):
        for offset in (0, 1):
            for aligned in (False, True):
                name = f'{mode}_{offset}_{aligned}'
                found[name] = bbox_overlaps(first, second, mode, aligned, offset)
    found['none'] = bbox_overlaps(first[:0], second)
    return found


def _regions() -> Tensor:
    """Inside, across the border, outside, tiny, empty and on a second image."""
    return torch.tensor(
        [
            [0, 3.2, 4.1, 40.7, 50.3],
            [0, -20, -10, 30, 25],
            [1, 10, 10, 200, 180],
            [1, 300, 300, 400, 380],
            [0, 8, 8, 8.5, 8.5],
            [1, 12, 12, 12, 12],
        ]
    )


@case
def roi_align_average():
    from mmcv.ops import roi_align

    found = {}
    for ratio in (0, 2):
        for aligned in (False, True):
            for name, value in with_gradients(
                lambda x, r=ratio, a=aligned: roi_align(x, _regions(), (3, 4), 0.25, r, 'avg', a),
                numbers((2, 3, 14, 17), 40),
            ).items():
                found[f'{ratio}_{aligned}_{name}'] = value
    found['none'] = roi_align(numbers((2, 3, 14, 17), 40), _regions()[:0], 3)
    return found


@case
def roi_align_maximum():
    from mmcv.ops import roi_align

    found = {}
    for ratio in (0, 2):
        for aligned in (False, True):
            for name, value in with_gradients(
                lambda x, r=ratio, a=aligned: roi_align(x, _regions(), (3, 4), 0.25, r, 'max', a),
                numbers((2, 3, 14, 17), 41),
            ).items():
                found[f'{ratio}_{aligned}_{name}'] = value
    return found


def _convolution(groups: int, deform_groups: int, stride: int, seed: int) -> list[Tensor]:
    side = -(-9 // stride)
    return [
        numbers((2, 8, 9, 9), seed),
        numbers((2, 18 * deform_groups, side, side), seed + 1, -3.3, 3.3),
        numbers((6, 8 // groups, 3, 3), seed + 2, -1, 1),
    ]


@case
def deformable_convolution():
    from mmcv.ops import deform_conv2d

    found = {}
    for groups, deform_groups, stride in ((1, 1, 1), (2, 1, 2), (1, 4, 1)):
        inputs = _convolution(groups, deform_groups, stride, 50)
        for name, value in with_gradients(
            lambda x, o, w, g=groups, d=deform_groups, s=stride: deform_conv2d(
                x, o, w, s, 1, 1, g, d
            ),
            *inputs,
        ).items():
            found[f'{groups}_{deform_groups}_{stride}_{name}'] = value
    return found


@case
def modulated_deformable_convolution():
    from mmcv.ops import modulated_deform_conv2d

    found = {}
    for groups, deform_groups, stride in ((1, 1, 1), (2, 2, 2)):
        x, offset, weight = _convolution(groups, deform_groups, stride, 60)
        mask = numbers((2, 9 * deform_groups, *offset.shape[2:]), 63)
        for name, value in with_gradients(
            lambda x, o, m, w, b, g=groups, d=deform_groups, s=stride: modulated_deform_conv2d(
                x, o, m, w, b, s, 1, 1, g, d
            ),
            x,
            offset,
            mask,
            weight,
            numbers((6,), 64),
        ).items():
            found[f'{groups}_{deform_groups}_{stride}_{name}'] = value
        without = modulated_deform_conv2d(
            x, offset, mask, weight, None, stride, 1, 1, groups, deform_groups
        )
        found[f'{groups}_{deform_groups}_{stride}_without_bias'] = without
    return found


@case
def modulated_deformable_convolution_with_the_offsets_of_a_larger_map():
    """As mmdet's DyHead calls it: the kernels read the first numbers of each image."""
    from mmcv.ops import modulated_deform_conv2d

    x, offset, weight = _convolution(1, 1, 1, 70)
    height, width = x.shape[2:]
    offset = numbers((2, 18, 2 * height, 2 * width), 71, -1.5, 1.5)
    mask = numbers((2, 9, 2 * height, 2 * width), 72)
    return with_gradients(
        lambda x, o, m, w: modulated_deform_conv2d(x, o, m, w, None, 1, 1),
        x,
        offset,
        mask,
        weight,
    )


def run() -> dict[str, np.ndarray]:
    """Return the results of all cases by ``CASE/NAME``."""
    return {
        f'{name}/{key}': value.detach().numpy()
        for name, function in CASES.items()
        for key, value in function().items()
    }


if __name__ == '__main__':
    import mmcv._ext

    assert getattr(mmcv._ext, '__file__', None), 'this mmcv has no compiled operators'
    np.savez_compressed(RECORDED, **run())
