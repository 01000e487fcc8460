"""Deformable convolution and multi-scale deformable attention.

Shapes: B images, C channels in, O channels out, H x W map in, h x w map out, k x k kernel,
G groups of offsets.
"""

from __future__ import annotations

import operator
import threading
import weakref

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor

from .precision import full_precision, gradients

Sizes = tuple[int, ...]


def deform_conv_forward(
    input: Tensor,  # noqa: A002 - mmcv's names
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,  # noqa: ARG001 - mmcv's scratch memory
    ones: Tensor,  # noqa: ARG001
    kW: int,  # noqa: N803, ARG001
    kH: int,  # noqa: N803, ARG001
    dW: int,  # noqa: N803
    dH: int,  # noqa: N803
    padW: int,  # noqa: N803
    padH: int,  # noqa: N803
    dilationW: int,  # noqa: N803
    dilationH: int,  # noqa: N803
    group: int,
    deformable_group: int,
    im2col_step: int,  # noqa: ARG001 - torchvision chooses its own
) -> None:
    """Write the deformable convolution (arXiv 1703.06211) into ``output``.

    Args:
        input: ``(B, C, H, W)``.
        weight: ``(O, C / group, k, k)``.
        offset: ``(B, 2 * G * k * k, h, w)``.
        output: ``(B, O, h, w)``.
        columns: Unused.
        ones: Unused.
        kW: Unused.
        kH: Unused.
        dW: Stride across.
        dH: Stride down.
        padW: Padding across.
        padH: Padding down.
        dilationW: Dilation across.
        dilationH: Dilation down.
        group: Groups of the convolution.
        deformable_group: G.
        im2col_step: Unused.
    """
    sizes = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    with full_precision(input, weight, offset) as (x, kernel, shifts):
        output.copy_(_convolve(x, kernel, shifts, None, None, sizes))


class _LastWeightGradient(threading.local):
    """The weight's gradient, which torchvision computes together with the input's.

    mmcv asks for the two one after the other with the same gradient of the output, input and
    offset. Two layers may share the first alone: those whose results are added.
    """

    def __init__(self) -> None:
        self.asked_with: list[weakref.ref] = []
        self.sizes: Sizes = ()
        self.value: Tensor | None = None

    def keep(self, tensors: tuple[Tensor, ...], sizes: Sizes, value: Tensor) -> None:
        self.asked_with = [weakref.ref(tensor, self._forget) for tensor in tensors]
        self.sizes, self.value = sizes, value

    def take(self, tensors: tuple[Tensor, ...], sizes: Sizes) -> Tensor | None:
        """Return the gradient that belongs to these tensors, if it is there, and forget it."""
        kept = [reference() for reference in self.asked_with]
        fits = self.sizes == sizes and all(map(operator.is_, kept, tensors))
        value = self.value if fits else None
        self._forget()
        return value

    def _forget(self, reference: object = None) -> None:  # noqa: ARG002
        self.asked_with, self.sizes, self.value = [], (), None


_last_weight_gradient = _LastWeightGradient()


def deform_conv_backward_input(
    input: Tensor,  # noqa: A002 - mmcv's names
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,  # noqa: ARG001
    kW: int,  # noqa: N803, ARG001
    kH: int,  # noqa: N803, ARG001
    dW: int,  # noqa: N803
    dH: int,  # noqa: N803
    padW: int,  # noqa: N803
    padH: int,  # noqa: N803
    dilationW: int,  # noqa: N803
    dilationH: int,  # noqa: N803
    group: int,
    deformable_group: int,
    im2col_step: int,  # noqa: ARG001
) -> None:
    """Write the gradients of :func:`deform_conv_forward` by input and offset."""
    sizes = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    tensors = (grad_output, input, weight, offset)
    with full_precision(*tensors) as (gradient, x, kernel, shifts):
        by_input, by_weight, by_offset, *_ = _backward(gradient, x, kernel, shifts, None, sizes)
    grad_input.copy_(by_input)
    grad_offset.copy_(by_offset)
    shape = (*sizes, *weight.shape)
    _last_weight_gradient.keep((grad_output, input, offset), shape, by_weight)


def deform_conv_backward_parameters(
    input: Tensor,  # noqa: A002 - mmcv's names
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,  # noqa: ARG001
    ones: Tensor,  # noqa: ARG001
    kW: int,  # noqa: N803, ARG001
    kH: int,  # noqa: N803, ARG001
    dW: int,  # noqa: N803
    dH: int,  # noqa: N803
    padW: int,  # noqa: N803
    padH: int,  # noqa: N803
    dilationW: int,  # noqa: N803
    dilationH: int,  # noqa: N803
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,  # noqa: ARG001
) -> None:
    """Add ``scale`` times the gradient of :func:`deform_conv_forward` by weight."""
    sizes = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    shape = (*sizes, *grad_weight.shape)
    by_weight = _last_weight_gradient.take((grad_output, input, offset), shape)
    if by_weight is None:
        tensors = (grad_output, input, grad_weight, offset)
        with full_precision(*tensors) as (gradient, x, kernel, shifts):
            by_weight = _backward(gradient, x, kernel, shifts, None, sizes)[1]
    grad_weight.add_(by_weight.to(grad_weight), alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,  # noqa: A002 - mmcv's names
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,  # noqa: ARG001
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,  # noqa: ARG001
    kernel_h: int,  # noqa: ARG001
    kernel_w: int,  # noqa: ARG001
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the deformable convolution with a weight for each sample into ``output``.

    arXiv 1811.11168. ``mask`` is ``(B, G * k * k, h, w)``, ``bias`` ``(O,)``; the rest as in
    :func:`deform_conv_forward`. Offsets and masks may have more places than the output, see
    ``_first_places``.
    """
    offset, mask = (_first_places(x, output.shape[2:]) for x in (offset, mask))
    sizes = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    tensors = (input, weight, offset, mask, bias)
    with full_precision(*tensors) as (x, kernel, shifts, factors, constant):
        constant = constant if with_bias else None
        output.copy_(_convolve(x, kernel, shifts, factors, constant, sizes).view_as(output))


def modulated_deform_conv_backward(
    input: Tensor,  # noqa: A002 - mmcv's names
    weight: Tensor,
    bias: Tensor,  # noqa: ARG001 - its gradient does not depend on it
    ones: Tensor,  # noqa: ARG001
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,  # noqa: ARG001
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,  # noqa: ARG001
    kernel_w: int,  # noqa: ARG001
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the gradients of :func:`modulated_deform_conv_forward`."""
    offset, mask = (_first_places(x, grad_output.shape[2:]) for x in (offset, mask))
    sizes = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    tensors = (grad_output, input, weight, offset, mask)
    with full_precision(*tensors) as (gradient, x, kernel, shifts, factors):
        found = _backward(gradient, x, kernel, shifts, factors, sizes)
    targets = (grad_input, grad_weight, grad_offset, grad_mask)
    for target, value in zip(targets, found, strict=False):
        if target.shape != value.shape:  # as _first_places reads them
            flat = value.flatten(1)
            value = F.pad(flat, (0, target[0].numel() - flat.shape[1])).view_as(target)
        target.copy_(value)
    if with_bias:
        grad_bias.copy_(found[4])


def _first_places(values: Tensor, size: torch.Size) -> Tensor:
    """Read offsets or masks ``(B, channels, H, W)`` as ``(B, channels, *size)``, as mmcv does.

    mmcv's kernels take the numbers of an image one after the other, in the output's size, whatever
    the size of the map that they come from. mmdet's DyHead relies on it: it convolves a level with
    the offsets of the level above, which has four times the places.
    """
    if values.shape[2:] == size or values.shape[2:].numel() < size.numel():
        return values  # too few are an error of torchvision's
    count = values.shape[1] * size.numel()
    return values.flatten(1)[:, :count].view(len(values), -1, *size)


def _convolve(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    sizes: Sizes,
) -> Tensor:
    if not len(x):
        return x.new_zeros((0, len(weight), *offset.shape[2:]))
    bias = x.new_zeros(len(weight)) if bias is None else bias
    factors = x.new_zeros((len(x), 1)) if mask is None else mask
    convolve = torch.ops.torchvision.deform_conv2d
    return convolve(x, weight, offset, factors, bias, *sizes, mask is not None)


def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    sizes: Sizes,
) -> tuple[Tensor, ...]:
    """Return the gradients by input, weight, offset, mask and bias."""
    bias = x.new_zeros(len(weight))
    factors = x.new_zeros((len(x), 1)) if mask is None else mask
    back = torch.ops.torchvision._deform_conv2d_backward
    return back(gradient, x, weight, offset, factors, bias, *sizes, mask is not None)


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,  # noqa: ARG001 - follows from the shapes
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,  # noqa: ARG001
) -> Tensor:
    """Return multi-scale deformable attention (arXiv 2010.04159) by mmcv's function in PyTorch.

    Args:
        value: ``(B, keys, heads, D)``, the levels one after the other.
        spatial_shapes: ``(levels, 2)`` int64, height and width.
        level_start_index: Unused.
        sampling_locations: ``(B, queries, heads, levels, points, 2)`` in 0 to 1, as (x, y).
        attention_weights: ``(B, queries, heads, levels, points)``.
        im2col_step: Unused.

    Returns:
        ``(B, queries, heads * D)``.
    """
    shapes = spatial_shapes.tolist()
    with full_precision(value, sampling_locations, attention_weights) as inputs:
        return _attend(shapes, *inputs).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,  # noqa: ARG001
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,  # noqa: ARG001
) -> None:
    """Write the gradients of :func:`ms_deform_attn_forward`."""
    shapes = spatial_shapes.tolist()
    tensors = (value, sampling_locations, attention_weights, grad_output)
    with full_precision(*tensors) as (*inputs, gradient):
        found = gradients(lambda *leaves: _attend(shapes, *leaves), inputs, gradient)
    for target, result in zip(
        (grad_value, grad_sampling_loc, grad_attn_weight), found, strict=True
    ):
        target.copy_(result)


def _attend(shapes: list[list[int]], value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
