"""Half precision and gradients for all operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torchvision  # noqa: F401 - registers torch.ops.torchvision
from torch import Tensor


@contextmanager
def full_precision(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """Yield the tensors in float32 (float64 if one of them is float64), and disable autocast.

    mmcv's operators return the type of their inputs. mmcv's kernels also compute in this type, but
    half precision is too coarse for coordinates. At 1000 pixels, the spacing is half a pixel in
    float16 and four pixels in bfloat16.
    """
    double = any(x.dtype == torch.float64 for x in tensors)
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield [x.double() if double else x.float() for x in tensors]


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of a function by running the function again.

    Args:
        function: Function of the inputs that returns one tensor.
        inputs: Floating-point tensors.
        grad_output: Gradient of the result, with the shape of the result.

    Returns:
        One gradient for each input.
    """
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        return torch.autograd.grad(function(*leaves), leaves, grad_output)
