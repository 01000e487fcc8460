"""Parameters and multiply-adds of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(function: Callable[..., Any], *inputs: torch.Tensor) -> int:
    """Return the multiply-adds of one call: convolutions, linear layers, matrix products.

    Papers print this figure as "FLOPs". Normalisation, activations and additions do not count.

    Args:
        function: A module (put it in eval mode first) or any function of tensors.
        inputs: Its arguments; a batch of one gives the figure per image.

    Returns:
        Half of what torch's FLOP counter says, since that counts a multiply-add as two.

    Example:
        >>> count_macs(nn.Linear(10, 5), torch.rand(1, 10))
        50
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(*inputs)
    return counter.get_total_flops() // 2
