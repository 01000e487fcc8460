"""Focal losses (arXiv 1708.02002).

Shapes: samples N, classes C.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor

from .precision import full_precision

LOWEST_LOG = -87.33654475  # log of the smallest normal float32, at which mmcv clamps logarithms


def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the sigmoid focal loss of logits ``(N, C)`` into ``output``: ``(N, C)``.

    A ``target`` outside 0 to C - 1 is background. ``weight`` contains one factor per class, or is
    empty.
    """
    with full_precision(input) as (logits,):
        wrong, log_right, sign = _answers(logits, target)
        loss = -_alphas(sign, alpha) * wrong**gamma * log_right
        output.copy_(loss * _class_weights(weight, target))


def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the gradient of :func:`sigmoid_focal_loss_forward` with respect to the logits."""
    with full_precision(input) as (logits,):
        wrong, log_right, sign = _answers(logits, target)
        slope = wrong**gamma * (gamma * (1 - wrong) * log_right - wrong)
        slope *= sign * _alphas(sign, alpha)
        grad_input.copy_(slope * _class_weights(weight, target))


def _answers(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the probability of the wrong answer, the log of the right answer, and 1 or -1."""
    classes = torch.arange(logits.shape[1], device=logits.device)
    sign = (target[:, None] == classes).to(logits) * 2 - 1
    signed = logits * sign
    return (-signed).sigmoid(), F.logsigmoid(signed).clamp(min=LOWEST_LOG), sign


def _alphas(sign: Tensor, alpha: float) -> Tensor:
    return (sign > 0).to(sign) * (2 * alpha - 1) + (1 - alpha)


def _class_weights(weight: Tensor, target: Tensor) -> Tensor | float:
    """Return one factor per sample, ``(N, 1)``. The factor of background is 1."""
    if not weight.numel():
        return 1.0
    padded = F.pad(weight.float() if weight.dtype != torch.float64 else weight, (0, 1), value=1.0)
    outside = (target < 0) | (target >= len(weight))
    return padded[target.masked_fill(outside, len(weight))][:, None]


def softmax_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the softmax focal loss of probabilities ``(N, C)`` into ``output``: ``(N,)``.

    A negative ``target`` is ignored. ``weight`` contains one factor per class, or is empty.
    """
    with full_precision(input) as (probabilities,):
        right, log_right, valid = _right_class(probabilities, target)
        loss = -alpha * (1 - right) ** gamma * log_right * valid
        output.copy_((loss[:, None] * _class_weights(weight, target))[:, 0])


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the gradient of :func:`softmax_focal_loss_forward` with respect to the logits.

    ``buff (N,)`` receives the factor that all classes of a sample have in common.
    """
    with full_precision(input) as (probabilities,):
        right, log_right, valid = _right_class(probabilities, target)
        wrong = 1 - right
        common = gamma * wrong ** (gamma - 1) * right * log_right - wrong**gamma
        common = alpha * common * valid
        common = common[:, None] * _class_weights(weight, target)
        classes = torch.arange(input.shape[1], device=input.device)
        grad_input.copy_(common * ((target[:, None] == classes).to(common) - probabilities))
        buff.copy_(common[:, 0])


def _right_class(probabilities: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the probability of the target class, its logarithm, and whether it is valid."""
    right = probabilities.gather(1, target.clamp(min=0)[:, None])[:, 0]
    return right, right.log().clamp(min=LOWEST_LOG), target >= 0
