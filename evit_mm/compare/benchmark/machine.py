"""What a figure was measured on, and what that machine can do at most."""

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
# a 3x3 convolution as large as a detector's head has them
CONV_CHANNELS, CONV_SIDE = 256, 100
COPIED_FLOATS = 64 * 2**20  # beyond every cache


def describe(threads: int, device: str = 'cpu') -> dict[str, Any]:
    """Return machine, versions, threads and date of a run.

    Args:
        threads: CPU threads.
        device: Where the networks are, ``'cpu'``, ``'cuda'``, ...
    """
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


def without_tf32() -> None:
    """Let float32 be float32 on a GPU, which may compute convolutions with 10 bits otherwise."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute without TF32."""
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    without_tf32()
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


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
    """Return the bytes that a call takes of a GPU's memory beyond what was held before it.

    Args:
        run: What to call; once before the measurement, so that its scratch memory is there.
        device: Where it runs; None is returned for a CPU.
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


def limits(device: str = 'cpu') -> dict[str, tuple[Callable[[], object], float]]:
    """Return what shows the machine's limits, to be timed with the rest.

    Args:
        device: ``'cpu'``, ``'cuda'``, ...

    Returns:
        Per name a function and what it does in one call: ``'convolution'`` floating point
        operations (a multiply-add is two), ``'memory'`` bytes read and written.
    """
    conv: Any = nn.Conv2d(CONV_CHANNELS, CONV_CHANNELS, 3, padding=1).requires_grad_(False)
    conv.to(device, memory_format=torch.channels_last)
    image = torch.rand(1, CONV_CHANNELS, CONV_SIDE, CONV_SIDE, device=device)
    image = image.to(memory_format=torch.channels_last)
    source = torch.rand(COPIED_FLOATS, device=device)
    target = torch.empty_like(source)
    return {
        'convolution': (lambda: conv(image), 2 * 9 * CONV_CHANNELS**2 * CONV_SIDE**2),
        'memory': (lambda: target.copy_(source), 2 * 4 * COPIED_FLOATS),
    }
