"""Import the stack and try mmcv's operators, in a process of its own: python probe.py.

A broken build may end the interpreter, and then it must not end the doctor's. One line of JSON is
printed before each step and one after it, so that the step at which the process died is known.
"""

from __future__ import annotations

import importlib
import json
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

MODULES: tuple[str, ...] = ('torch', 'torchvision', 'cv2', 'rich', 'mmengine', 'mmcv')
MODULES += ('evit_mm.ops', 'mmcv.ops', 'mmdet', 'mmpretrain')
# operators sum in another order than the oracle
TOLERANCE = 1e-4


def main() -> None:
    """Run every step and print how it went."""
    for name in MODULES:
        step(f'import {name}', partial(importlib.import_module, name))
    try:
        import torch
    except Exception:  # noqa: BLE001 - said above, and nothing works without it
        return
    has_gpu = torch.cuda.is_available()
    step('gpu', torch.cuda.get_device_name if has_gpu else str)
    for device in ['cpu', 'cuda'] if has_gpu else ['cpu']:
        step(f'torchvision.nms {device}', partial(torchvision_nms, torch, device))
        step(f'mmcv.nms {device}', partial(nms, torch, device))
        step(f'mmcv.roi_align {device}', partial(roi_align, torch, device))
        step(f'mmcv.deform_conv2d {device}', partial(deform_conv, torch, device))


def step(name: str, run: Callable[[], Any]) -> None:
    """Print ``{"step": name}``, run, and print the same with ``error`` and ``note``."""
    record = {'step': name}
    print(json.dumps(record), flush=True)  # noqa: T201 - the protocol
    try:
        note = run()
        record |= {'error': '', 'note': note if isinstance(note, str) else ''}
    except BaseException as failure:  # noqa: BLE001 - SystemExit too: broken packages do that
        last = traceback.format_exception_only(type(failure), failure)[-1]
        record |= {'error': ' '.join(last.split())[:400], 'note': ''}
    print(json.dumps(record), flush=True)  # noqa: T201


def made_boxes(torch: Any, number: int = 60) -> tuple[Any, Any]:
    """Return overlapping boxes ``(N, 4)`` and distinct scores ``(N,)``."""
    generator = torch.Generator().manual_seed(0)
    corner = 60 * torch.rand(number, 2, generator=generator)
    size = 5 + 30 * torch.rand(number, 2, generator=generator)
    return torch.cat([corner, corner + size], 1), torch.randperm(number, generator=generator) / 60


def kept_by_loop(boxes: Any, scores: Any, threshold: float) -> list[int]:
    """Return what greedy suppression keeps, by plain Python in float64."""
    corners = boxes.double().tolist()

    def iou(a: list[float], b: list[float]) -> float:
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        inter = max(width, 0) * max(height, 0)
        areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
        return inter / (areas - inter)

    kept: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        if all(iou(corners[index], corners[other]) <= threshold for other in kept):
            kept.append(index)
    return kept


def torchvision_nms(torch: Any, device: str) -> None:
    """Compare torchvision's suppression with the loop: is the package whole, and torch's own?"""
    import torchvision

    boxes, scores = made_boxes(torch)
    kept = torchvision.ops.nms(boxes.to(device), scores.to(device), 0.5)
    differ(kept.tolist() == kept_by_loop(boxes, scores, 0.5))


def nms(torch: Any, device: str) -> None:
    """Compare mmcv's suppression with the loop."""
    from mmcv.ops import nms as mmcv_nms

    boxes, scores = made_boxes(torch)
    _, kept = mmcv_nms(boxes.to(device), scores.to(device), 0.5)
    differ(kept.tolist() == kept_by_loop(boxes, scores, 0.5))


def roi_align(torch: Any, device: str) -> None:
    """Compare mmcv's RoIAlign with torchvision's."""
    import torchvision
    from mmcv.ops import roi_align as mmcv_roi_align

    boxes, _ = made_boxes(torch, 8)
    rois = torch.cat([torch.zeros(8, 1), boxes], 1).to(device)
    features = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1)).to(device)
    found = mmcv_roi_align(features, rois, 5, 0.25, 2, 'avg', True)
    expected = torchvision.ops.roi_align(features, rois, 5, 0.25, 2, True)
    differ(torch.allclose(found, expected, atol=TOLERANCE))


def deform_conv(torch: Any, device: str) -> None:
    """Compare mmcv's deformable convolution with torchvision's, and its gradients."""
    import torchvision
    from mmcv.ops import deform_conv2d as mmcv_deform_conv

    generator = torch.Generator().manual_seed(2)
    shapes = ((1, 4, 9, 9), (1, 18, 9, 9), (6, 4, 3, 3))
    tensors = [torch.rand(shape, generator=generator).to(device) for shape in shapes]
    results = []
    for function in (
        lambda *inputs: mmcv_deform_conv(*inputs, 1, 1),
        lambda *inputs: torchvision.ops.deform_conv2d(*inputs, padding=1),
    ):
        inputs = [tensor.clone().requires_grad_() for tensor in tensors]
        out = function(*inputs)
        out.square().sum().backward()
        results.append((out.detach(), *(tensor.grad for tensor in inputs)))
    close = (torch.allclose(a, b, 1e-3, TOLERANCE) for a, b in zip(*results, strict=True))
    differ(all(close))


def differ(equal: bool) -> None:
    """Raise unless the results are equal.

    Raises:
        ArithmeticError: They are not.
    """
    if not equal:
        raise ArithmeticError('the results are wrong')


if __name__ == '__main__':
    main()
