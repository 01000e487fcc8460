"""What a figure was measured on, and what that machine can do at most."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..provenance import commit, cpu, versions

PACKAGES = ('torch', 'timm', 'mmengine', 'mmcv', 'mmdet', 'onnxruntime', 'openvino')
# a 3x3 convolution as large as a detector's head has them
CONV_CHANNELS, CONV_SIDE = 256, 100
COPIED_FLOATS = 64 * 2**20  # beyond every cache


def describe(threads: int) -> dict[str, Any]:
    """Return machine, versions, threads and date of a run."""
    return {
        'device': 'CPU',  # where the suites build their networks
        'cpu': cpu(),
        'instructions': torch.backends.cpu.get_cpu_capability(),
        'threads': threads,
        'python': platform.python_version(),
        **versions(PACKAGES),
        'commit': commit(),
        'date': datetime.date.today().isoformat(),
    }


def limits() -> dict[str, tuple[Callable[[], object], float]]:
    """Return what shows the machine's limits, to be timed with the rest.

    Returns:
        Per name a function and what it does in one call: ``'convolution'`` floating point
        operations (a multiply-add is two), ``'memory'`` bytes read and written.
    """
    conv: Any = nn.Conv2d(CONV_CHANNELS, CONV_CHANNELS, 3, padding=1).requires_grad_(False)
    conv.to(memory_format=torch.channels_last)
    image = torch.rand(1, CONV_CHANNELS, CONV_SIDE, CONV_SIDE)
    image = image.to(memory_format=torch.channels_last)
    source, target = torch.rand(COPIED_FLOATS), torch.empty(COPIED_FLOATS)
    return {
        'convolution': (lambda: conv(image), 2 * 9 * CONV_CHANNELS**2 * CONV_SIDE**2),
        'memory': (lambda: target.copy_(source), 2 * 4 * COPIED_FLOATS),
    }
