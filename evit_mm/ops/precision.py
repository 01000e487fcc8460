"""Half precision and gradients, as all operators need them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torchvision  # noqa: F401 - registers torch.ops.torchvision
from torch import Tensor


@contextmanager
def full_precision(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """Compute in float32, or float64 if one of the tensors has it, also under autocast.

    mmcv's operators return the type that they are given. Its kernels compute in that type too, in
    which a coordinate of 1000 pixels has steps of half a pixel (float16) or of four (bfloat16).
    """
    double = any(x.dtype == torch.float64 for x in tensors)
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield [x.double() if double else x.float() for x in tensors]


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of a function of tensors, computed by running it once more.

    Args:
        function: From the inputs to one tensor.
        inputs: Floating point tensors.
        grad_output: Gradient of the result, in its shape.

    Returns:
        One gradient for each input.
    """
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        return torch.autograd.grad(function(*leaves), leaves, grad_output)
