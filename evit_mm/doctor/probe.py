"""Import the package and test mmcv's operators in a separate process: python probe.py.

A broken build can crash the interpreter, and this must not crash the doctor. Each step prints its
name before it starts and its outcome after it ends, so that the output shows which step crashed.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from typing import Any

MODULES = ('evit_mm', 'evit_mm.ops', 'mmcv.ops', 'mmdet')
# mmcv's operators and torchvision's operators sum in a different order
RTOL, ATOL = 1e-3, 1e-4


def main() -> None:
    """Run all steps, but stop if an import fails."""
    for name in MODULES:
        if not step(f'import {name}', partial(importlib.import_module, name)):
            return
    # mmengine needs it to read base configs such as mmdet::...
    step('import pkg_resources of setuptools<82', lambda: importlib.import_module('pkg_resources'))
    import torch

    for device in ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']:
        step(f'mmcv.nms {device}', partial(nms, torch, device))
        step(f'mmcv.roi_align {device}', partial(roi_align, torch, device))
        step(f'mmcv.deform_conv2d {device}', partial(deform_conv, torch, device))


def step(name: str, run: Callable[[], Any]) -> bool:
    """Run a step, print its name and ``ok`` or the exception, and return whether it succeeded."""
    outcome = 'ok'
    print(f'{name}: ', end='', flush=True)  # noqa: T201 - stack.py reads this output
    try:
        with redirect_stdout(sys.stderr):
            run()
    except BaseException as error:  # noqa: BLE001 - broken packages can also raise SystemExit
        last = traceback.format_exception_only(type(error), error)[-1]
        outcome = ' '.join(last.split())[:400]
    print(outcome, flush=True)  # noqa: T201
    return outcome == 'ok'


def made_boxes(torch: Any, number: int = 60) -> tuple[Any, Any]:
    """Return overlapping boxes ``(N, 4)`` with distinct scores ``(N,)``."""
    generator = torch.Generator().manual_seed(0)
    corner = 60 * torch.rand(number, 2, generator=generator)
    size = 5 + 30 * torch.rand(number, 2, generator=generator)
    return torch.cat([corner, corner + size], 1), torch.randperm(number, generator=generator) / 60


def nms(torch: Any, device: str) -> None:
    """Compare mmcv's NMS with torchvision's NMS on the CPU."""
    import torchvision
    from mmcv.ops import nms as mmcv_nms

    boxes, scores = made_boxes(torch)
    _, kept = mmcv_nms(boxes.to(device), scores.to(device), 0.5)
    torch.testing.assert_close(kept.cpu(), torchvision.ops.nms(boxes, scores, 0.5))


def roi_align(torch: Any, device: str) -> None:
    """Compare mmcv's RoIAlign with torchvision's RoIAlign."""
    import torchvision
    from mmcv.ops import roi_align as mmcv_roi_align

    boxes, _ = made_boxes(torch, 8)
    rois = torch.cat([torch.zeros(8, 1), boxes], 1).to(device)
    features = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1)).to(device)
    found = mmcv_roi_align(features, rois, 5, 0.25, 2, 'avg', True)
    expected = torchvision.ops.roi_align(features, rois, 5, 0.25, 2, True)
    torch.testing.assert_close(found, expected, rtol=RTOL, atol=ATOL)


def deform_conv(torch: Any, device: str) -> None:
    """Compare mmcv's deformable convolution and its gradients with torchvision's."""
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
    torch.testing.assert_close(*results, rtol=RTOL, atol=ATOL)


if __name__ == '__main__':
    main()
