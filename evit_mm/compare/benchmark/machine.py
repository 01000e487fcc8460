"""Description of the machine of a measurement, and its peak rate."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...utils.provenance import commit, cpu, versions

PACKAGES = ('torch', 'timm', 'mmengine', 'mmcv', 'mmdet', 'onnxruntime', 'openvino')
# a 3x3 convolution of the size used in a detector head
CONV_CHANNELS, CONV_SIDE = 256, 100
CONV_FLOP = 2 * 9 * CONV_CHANNELS**2 * CONV_SIDE**2  # per call; a multiply-add counts as two


def describe(threads: int, device: str = 'cpu') -> dict[str, Any]:
    """Return the machine, the versions, the number of CPU threads and the date."""
    return {
        **_describe_device(torch.device(device)),
        'cpu': cpu(),
        'instructions': torch.backends.cpu.get_cpu_capability(),
        'threads': threads,
        'python': platform.python_version(),
        **versions(PACKAGES),
        'commit': commit(),
        'date': datetime.date.today().isoformat(),
    }


def allow_tf32(allowed: bool) -> None:
    """Allow or forbid TF32, with a 10-bit mantissa, for float32 convolutions and products."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in a ``with`` block, and restore the setting afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow_tf32(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _describe_device(device: torch.device) -> dict[str, Any]:
    if device.type != 'cuda':
        return {'device': device.type.upper()}
    card = torch.cuda.get_device_properties(device)
    return {
        'device': card.name,
        'device memory': f'{card.total_memory / 2**30:.0f} GiB',
        'multiprocessors': card.multi_processor_count,
        'CUDA': torch.version.cuda,
        'cuDNN': torch.backends.cudnn.version(),
        'TF32': torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32,
    }


def peak_memory(run: Callable[[], object], device: str) -> int | None:
    """Return the peak GPU memory of a call in bytes, without the memory in use before it.

    A first, unmeasured call allocates the scratch memory. The result is None on a CPU.
    """
    if torch.device(device).type != 'cuda':
        return None
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def build_convolution(device: str) -> Callable[[], object]:
    """Return a call of a large convolution, the reference for the rate of a network."""
    conv: Any = nn.Conv2d(CONV_CHANNELS, CONV_CHANNELS, 3, padding=1).requires_grad_(False)
    conv.to(device, memory_format=torch.channels_last)
    image = torch.rand(1, CONV_CHANNELS, CONV_SIDE, CONV_SIDE, device=device)
    image = image.to(memory_format=torch.channels_last)
    return lambda: conv(image)
