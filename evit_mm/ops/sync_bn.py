"""Operators of mmcv's ``SyncBatchNorm``.

mmcv's module exchanges the statistics between the processes. The statistics and the normalised
values for the backward pass are float32.

Shapes: images B, channels C, map positions S.
"""

from __future__ import annotations

from torch import Tensor


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Write the mean of each channel of ``(B, C, S)`` into ``mean``: ``(C,)``."""
    mean.copy_(input.float().mean((0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Write the biased variance of each channel of ``(B, C, S)`` into ``var``: ``(C,)``."""
    var.copy_((input.float() - mean[:, None]).square_().mean((0, 2)))


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: Tensor | float,
    group_size: int,
) -> None:
    """Normalise ``input (B, C, S)`` and update the running statistics, each ``(C,)``.

    ``mean`` and ``var`` are the statistics over all ``group_size`` processes. ``norm (B, C, S)``
    receives the values before weight and bias. ``std (C,)`` receives the standard deviation.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((input.float() - mean[:, None]) / std[:, None])
    output.copy_(norm * weight[:, None] + bias[:, None])
    count = len(input) * input.shape[2] * group_size
    unbiased = var * (count / (count - 1)) if count > 1 else var
    for running, now in ((running_mean, mean), (running_var, unbiased)):
        running.copy_(momentum * now + (1 - momentum) * running)


def sync_bn_backward_param(
    grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor
) -> None:
    """Write the gradients with respect to weight and bias, each ``(C,)``."""
    gradient = grad_output.float()
    grad_weight.copy_((gradient * norm).sum((0, 2)))
    grad_bias.copy_(gradient.sum((0, 2)))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Write the gradient with respect to the input: ``(B, C, S)``.

    ``grad_weight`` and ``grad_bias`` are the means over all processes.
    """
    count = len(grad_output) * grad_output.shape[2]
    common = (grad_weight[:, None] * norm + grad_bias[:, None]) / count
    grad_input.copy_(weight[:, None] * (grad_output.float() - common) / std[:, None])
