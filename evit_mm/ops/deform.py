"""Deformable convolution and multi-scale deformable attention.

Shapes: images B, input channels C, output channels O, input size H x W, output size h x w, kernel
size k x k, offset groups G. mmcv passes the geometry of a convolution as keyword arguments.
"""

from __future__ import annotations

import operator
import threading
import weakref

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor
from torchvision.ops import deform_conv2d

from .precision import full_precision, gradients

Sizes = tuple[int, ...]
# the geometry in the order of torchvision's arguments, by mmcv's names for each convolution
_sizes = operator.itemgetter(
    'dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW', 'group', 'deformable_group'
)
_modulated_sizes = operator.itemgetter(
    *('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w'),
    *('group', 'deformable_group'),
)


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **geometry: int,
) -> None:
    """Write the deformable convolution (arXiv 1703.06211) into ``output``: ``(B, O, h, w)``.

    ``input`` is ``(B, C, H, W)``, ``weight`` is ``(O, C / groups, k, k)``, and ``offset`` is
    ``(B, 2 * G * k * k, h, w)``.
    """
    with full_precision(input, weight, offset) as (x, kernel, shifts):
        output.copy_(_convolve(x, kernel, shifts, None, None, _sizes(geometry)))


class _LastWeightGradient(threading.local):
    """Cache for the weight gradient, which torchvision computes together with the input gradient.

    mmcv requests the two gradients in two calls with the same output gradient, input and offset.
    All three must match, because two layers can have the same output gradient if their results are
    added.
    """

    kept: tuple[list[weakref.ref], Sizes, Tensor] | None = None

    def keep(self, tensors: tuple[Tensor, ...], sizes: Sizes, value: Tensor) -> None:
        self.kept = [weakref.ref(tensor, self._forget) for tensor in tensors], sizes, value

    def take(self, tensors: tuple[Tensor, ...], sizes: Sizes) -> Tensor | None:
        """Return the gradient for these tensors, or None, and clear the cache."""
        kept, self.kept = self.kept, None
        if kept is None:
            return None
        references, kept_sizes, value = kept
        same = all(ref() is tensor for ref, tensor in zip(references, tensors, strict=True))
        return value if same and kept_sizes == sizes else None

    def _forget(self, _: weakref.ref) -> None:
        self.kept = None


_last_weight_gradient = _LastWeightGradient()


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    """Write the gradients of :func:`deform_conv_forward` with respect to input and offset."""
    sizes = _sizes(geometry)
    tensors = (grad_output, input, weight, offset)
    with full_precision(*tensors) as (gradient, x, kernel, shifts):
        by_input, by_weight, by_offset, *_ = _backward(gradient, x, kernel, shifts, None, sizes)
    grad_input.copy_(by_input)
    grad_offset.copy_(by_offset)
    shape = (*sizes, *weight.shape)
    _last_weight_gradient.keep((grad_output, input, offset), shape, by_weight)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **geometry: int,
) -> None:
    """Add ``scale`` times the gradient of :func:`deform_conv_forward` w.r.t. the weight."""
    sizes = _sizes(geometry)
    shape = (*sizes, *grad_weight.shape)
    by_weight = _last_weight_gradient.take((grad_output, input, offset), shape)
    if by_weight is None:
        tensors = (grad_output, input, grad_weight, offset)
        with full_precision(*tensors) as (gradient, x, kernel, shifts):
            by_weight = _backward(gradient, x, kernel, shifts, None, sizes)[1]
    grad_weight.add_(by_weight.to(grad_weight), alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Write the modulated deformable convolution (arXiv 1811.11168) into ``output``.

    ``mask`` is ``(B, G * k * k, h, w)`` and ``bias`` is ``(O,)``. For the other arguments, see
    :func:`deform_conv_forward`. Offsets and masks can be larger than the output, see
    ``_first_places``.
    """
    offset, mask = (_first_places(x, output.shape[2:]) for x in (offset, mask))
    tensors = (input, weight, offset, mask, bias)
    with full_precision(*tensors) as (x, kernel, shifts, factors, constant):
        constant = constant if with_bias else None
        found = _convolve(x, kernel, shifts, factors, constant, _modulated_sizes(geometry))
        output.copy_(found.view_as(output))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Write the gradients of :func:`modulated_deform_conv_forward`."""
    offset, mask = (_first_places(x, grad_output.shape[2:]) for x in (offset, mask))
    tensors = (grad_output, input, weight, offset, mask)
    with full_precision(*tensors) as (gradient, x, kernel, shifts, factors):
        found = _backward(gradient, x, kernel, shifts, factors, _modulated_sizes(geometry))
    targets = (grad_input, grad_weight, grad_offset, grad_mask)
    for target, value in zip(targets, found, strict=False):
        if target.shape != value.shape:  # reverse of _first_places
            flat = value.flatten(1)
            value = F.pad(flat, (0, target[0].numel() - flat.shape[1])).view_as(target)
        target.copy_(value)
    if with_bias:
        grad_bias.copy_(found[4])


def _first_places(values: Tensor, size: torch.Size) -> Tensor:
    """Read offsets or masks ``(B, channels, H, W)`` as ``(B, channels, *size)``, as mmcv does.

    mmcv's kernels read the values of an image in memory order and assume the output size. The real
    map can be larger. mmdet's DyHead depends on this: it convolves a level with the offsets of
    another level, which has four times as many positions.
    """
    if values.shape[2:] == size or values.shape[2:].numel() < size.numel():
        return values  # if there are too few values, torchvision raises an error
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
    stride, padding, dilation = sizes[:2], sizes[2:4], sizes[4:6]
    return deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)


def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    sizes: Sizes,
) -> tuple[Tensor, ...]:
    """Return the gradients with respect to input, weight, offset, mask and bias."""
    bias = x.new_zeros(len(weight))
    factors = x.new_zeros((len(x), 1)) if mask is None else mask
    back = torch.ops.torchvision._deform_conv2d_backward
    return back(gradient, x, weight, offset, factors, bias, *sizes, mask is not None)


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,  # not used: spatial_shapes determines it
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Return multi-scale deformable attention (arXiv 2010.04159), with mmcv's PyTorch function.

    Shapes:
        value: ``(B, keys, heads, D)``, with the levels concatenated.
        spatial_shapes: ``(levels, 2)``, height and width.
        sampling_locations: ``(B, queries, heads, levels, points, 2)``, x and y from 0 to 1.
        attention_weights: ``(B, queries, heads, levels, points)``.
        result: ``(B, queries, heads * D)``.
    """
    shapes = spatial_shapes.tolist()
    with full_precision(value, sampling_locations, attention_weights) as inputs:
        return _attend(shapes, *inputs).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
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
