"""CARAFE upsampling and masked convolution.

Shapes: images B, channels C, map size H x W, kernel size k x k, scale factor s, groups G.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor

from .precision import full_precision, gradients


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the features, upsampled with one kernel per output position, into ``output``.

    CARAFE (arXiv 1905.02188) maps features ``(B, C, H, W)`` and kernels
    ``(B, G * k * k, s * H, s * W)`` to ``(B, C, s * H, s * W)``. ``rfeatures`` receives a copy of
    the features, which mmcv passes to the backward pass.
    """
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of :func:`carafe_forward`."""
    sizes = (kernel_size, group_size, scale_factor)
    carafe_naive_backward(grad_output, rfeatures, masks, grad_input, grad_masks, *sizes)


def carafe_naive_forward(
    features: Tensor,
    masks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the same result as :func:`carafe_forward`, without the copy of the features."""
    with full_precision(features, masks) as (x, kernels):
        # one image at a time, because the neighbourhoods need k * k times the memory of the map
        for image, kernel, result in zip(x, kernels, output, strict=True):
            result.copy_(_reassemble(image, kernel, kernel_size, group_size, scale_factor))


def carafe_naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of :func:`carafe_naive_forward`."""

    def forward(image: Tensor, kernel: Tensor) -> Tensor:
        return _reassemble(image, kernel, kernel_size, group_size, scale_factor)

    with full_precision(grad_output, features, masks) as tensors:
        for index, (gradient, image, kernel) in enumerate(zip(*tensors, strict=True)):
            by_image, by_kernel = gradients(forward, (image, kernel), gradient)
            grad_input[index] = by_image.to(grad_input)
            grad_masks[index] = by_kernel.to(grad_masks)


def _reassemble(image: Tensor, kernel: Tensor, k: int, groups: int, s: int) -> Tensor:
    """Upsample one image: ``(C, H, W)`` and ``(G * k * k, s * H, s * W) -> (C, s * H, s * W)``."""
    channels, height, width = image.shape
    around = F.unfold(image[None], k, padding=k // 2)[0]
    around = around.view(groups, channels // groups, k * k, height * width)
    kernel = kernel.view(groups, k * k, height, s, width, s).transpose(3, 4)
    kernel = kernel.reshape(groups, k * k, height * width, s * s)
    # one matrix product per pixel: (C / G, k * k) x (k * k, s * s)
    result = around.permute(0, 3, 1, 2) @ kernel.transpose(1, 2)
    result = result.view(groups, height, width, channels // groups, s, s)
    return result.permute(0, 3, 1, 4, 2, 5).reshape(channels, height * s, width * s)


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write the neighbourhoods of P positions in ``im (1, C, H, W)`` into ``col``.

    ``col`` is ``(C * kernel_h * kernel_w, P)``. A neighbourhood starts ``pad_h`` rows above and
    ``pad_w`` columns left of its position.
    """
    # enough zeros for positions at the bottom and right edges
    padded = F.pad(im[0], (pad_w, kernel_w, pad_h, kernel_h))
    rows = mask_h_idx[:, None] + torch.arange(kernel_h, device=im.device)
    cols = mask_w_idx[:, None] + torch.arange(kernel_w, device=im.device)
    found = padded[:, rows[:, :, None], cols[:, None]]  # (C, P, kernel_h, kernel_w)
    col.copy_(found.permute(0, 2, 3, 1).reshape(col.shape))


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Write values ``(C, P)`` to their positions in ``im``: ``(1, C, H, W)``."""
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im)
