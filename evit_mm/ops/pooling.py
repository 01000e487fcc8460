"""RoI pooling: RoIAlign, RoIPool and deformable RoI pooling.

Shapes: images B, channels C, map size H x W, regions K as ``(image, x1, y1, x2, y2)``, bins h x w
per region. ``spatial_scale`` is the map size divided by the image size. With ``sampling_ratio`` 0,
there is about one sample per pixel of the map.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor

from ..errors import EvitError
from ..utils.text import counted
from .precision import full_precision, gradients

MAX = 0  # mmcv's pool mode for the maximum; the other mode is the average
BILINEAR, BORDER = 0, 1  # options of grid_sample's backward function
NOTHING = -10000.0  # mmcv's maximum of an empty bin
SAMPLES = 2**22  # number of samples in memory at the same time


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the average or maximum of bilinear samples into ``output``: ``(K, C, h, w)``.

    For the maximum, ``argmax_y`` and ``argmax_x`` receive the row and the column of the largest
    sample in its bin, or -1 if there is none.
    """
    size = (aligned_height, aligned_width)
    _check_regions(rois, input)
    with full_precision(input, rois) as (features, regions):
        align = torch.ops.torchvision.roi_align
        if pool_mode != MAX:
            output.copy_(align(features, regions, spatial_scale, *size, sampling_ratio, aligned))
            return
        grids = _bins(regions, size, spatial_scale, sampling_ratio, aligned)[2]
        output.fill_(NOTHING)
        argmax_y.fill_(-1)
        if not output.numel():
            return
        for grid, alike in _by_grid(grids):
            # RoIAlign on a finer grid, with one sample per bin, returns the samples
            fine = [count * samples for count, samples in zip(size, grid, strict=True)]
            together = max(SAMPLES // (features.shape[1] * fine[0] * fine[1]), 1)
            for chosen in alike.split(together):
                samples = align(features, regions[chosen], spatial_scale, *fine, 1, aligned)
                largest, place = F.max_pool2d(samples, grid, return_indices=True)
                row = place.div(fine[1], rounding_mode='floor').remainder_(grid[0])
                argmax_y[chosen] = row.masked_fill_(largest <= NOTHING, -1).to(output)
                output[chosen] = largest.clamp_(min=NOTHING).to(output)
                argmax_x[chosen] = place.remainder_(grid[1]).to(output)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of :func:`roi_align_forward` to ``grad_input``: ``(B, C, H, W)``."""
    size = (aligned_height, aligned_width)
    with full_precision(grad_output, rois) as (gradient, regions):
        if pool_mode != MAX:
            back = torch.ops.torchvision._roi_align_backward
            shape = (*size, *grad_input.shape)
            options = (sampling_ratio, aligned)
            grad_input += back(gradient, regions, spatial_scale, *shape, *options)
            return
        start, bins, grids = _bins(regions, size, spatial_scale, sampling_ratio, aligned)
        gradient = gradient * (argmax_y >= 0)
        positions = []
        for axis, largest in enumerate((argmax_y, argmax_x)):
            first, step, samples = (v[:, axis, None, None, None] for v in (start, bins, grids))
            number = torch.arange(size[axis], device=rois.device)
            number = number[:, None] if axis == 0 else number
            inside = (largest.to(first) + 0.5) / samples.clamp(min=1)
            positions.append(first + (number + inside) * step)
        _scatter(gradient, regions[:, 0].long(), *positions, grad_input)


def _check_regions(rois: Tensor, maps: Tensor) -> None:
    """Raise an EvitError for regions that make torchvision read outside the maps on a CPU."""
    if rois.device.type != 'cpu':
        return  # the check would synchronise with the GPU
    known = (rois[:, 0] >= 0) & (rois[:, 0] < len(maps))
    for fine, fault in (
        (rois.isfinite().all(1), 'is not finite; the training has probably diverged'),
        (known, f'has an image index outside the batch of {counted(len(maps), "image")}'),
    ):
        if not fine.all():
            number = int(fine.logical_not().nonzero()[0])
            raise EvitError(f'region {number}, {rois[number].tolist()}, {fault}')


def _bins(
    rois: Tensor, size: tuple[int, int] | torch.Size, scale: float, ratio: int, aligned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the start of each region on the map, the bin size and the samples per bin.

    Each result is ``(K, 2)`` as (y, x).
    """
    start = rois[:, (2, 1)] * scale
    length = rois[:, (4, 3)] * scale - start
    if aligned:
        start = start - 0.5
    else:
        length = length.clamp(min=1)
    bins = length / length.new_tensor(list(size))
    grids = bins.ceil().clamp(min=0).long()
    return start, bins, grids if ratio <= 0 else torch.full_like(grids, ratio)


def _by_grid(grids: Tensor) -> Iterator[tuple[list[int], Tensor]]:
    """Yield each number of samples per bin (rows, columns) and the indices of its regions."""
    for grid in grids.unique(dim=0).tolist():
        if 0 not in grid:
            yield grid, (grids == grids.new_tensor(grid)).all(1).nonzero()[:, 0]


def _scatter(gradient: Tensor, images: Tensor, y: Tensor, x: Tensor, target: Tensor) -> None:
    """Add the gradient of bilinear samples at ``y`` and ``x`` to the maps ``target``.

    ``y`` and ``x`` are ``(K, C, h, w)``. ``images (K,)`` is the image index of each region.
    """
    grid, inside = _as_grid(x, y, target.shape[2:])
    gradient = gradient * inside
    back = torch.ops.aten.grid_sampler_2d_backward
    for image in images.unique().tolist():
        mine = (images == image).nonzero()[:, 0]
        # each channel has different sample positions, so the channels become the batch
        places = grid[mine].transpose(0, 1).flatten(1, 3)[:, :, None]
        values = gradient[mine].transpose(0, 1).flatten(1)[:, None, :, None]
        maps = target[image][:, None].to(values)
        options = (BILINEAR, BORDER, True, (True, False))
        target[image] += back(values, maps, places, *options)[0][:, 0]


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the maximum of the pixels in each bin into ``output``: ``(K, C, h, w)``.

    torchvision rounds a region to whole pixels and then divides it into bins. mmcv rounds each bin
    instead. Therefore, each bin is passed to torchvision as a separate region. ``argmax`` receives
    the pixel index of each maximum, or -1 for an empty bin.
    """
    size = (pooled_height, pooled_width)
    _check_regions(rois, input)
    with full_precision(input, rois) as (features, regions):
        bins = _pixel_bins(regions, size, spatial_scale, input.shape[2:])
        filled, place = torch.ops.torchvision.roi_pool(features, bins.to(features), 1.0, 1, 1)
        empty = ((bins[:, 3] < bins[:, 1]) | (bins[:, 4] < bins[:, 2]))[:, None, None, None]
        for result, target in (
            (filled.masked_fill(empty, 0), output),
            (place.masked_fill(empty, -1), argmax),
        ):
            by_region = result.view(len(rois), *size, input.shape[1])
            target.copy_(by_region.permute(0, 3, 1, 2))


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add the gradient of :func:`roi_pool_forward` to ``grad_input``: ``(B, C, H, W)``."""
    place = argmax.flatten(2).long()
    gradient = grad_output.flatten(2).masked_fill(place < 0, 0).to(grad_input)
    flat = grad_input.view(*grad_input.shape[:2], -1)
    channels = torch.arange(flat.shape[1], device=flat.device)[None, :, None]
    images = rois[:, 0].long()[:, None, None]
    flat.index_put_((images, channels, place.clamp(min=0)), gradient, accumulate=True)


def _pixel_bins(rois: Tensor, size: tuple[int, int], scale: float, limits: torch.Size) -> Tensor:
    """Return the bins as regions with inclusive pixel bounds: ``(K * h * w, 5)``, int64."""
    starts = rois[:, (2, 1)] * scale  # (K, 2) as (y, x)
    lengths = (rois[:, (4, 3)] + 1) * scale - starts
    valid = (lengths > 0).all(1)
    edges = []
    for axis in range(2):
        steps = torch.arange(size[axis] + 1, device=rois.device, dtype=rois.dtype)
        lines = steps * (lengths[:, axis, None] / size[axis]) + starts[:, axis, None]
        low = lines[:, :-1].floor().clamp(0, limits[axis])
        high = lines[:, 1:].ceil().clamp(0, limits[axis]) - 1
        edges.append((low.long(), torch.where(valid[:, None], high.long(), -1)))
    (top, bottom), (left, right) = edges
    shape = (len(rois), *size)
    image = rois[:, 0].long()[:, None, None]
    parts = (image, left[:, None], top[:, :, None], right[:, None], bottom[:, :, None])
    return torch.stack([part.expand(shape) for part in parts], -1).view(-1, 5)


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Write the average of bins that are shifted by learned offsets into ``output``.

    ``offset`` is ``(K, 2, h, w)`` as (x, y), relative to ``gamma`` times the region size, or empty.
    """
    options = (spatial_scale, sampling_ratio, gamma)
    _check_regions(rois, input)
    with full_precision(input, offset, rois) as (features, offsets, regions):
        shifts = offsets if offsets.numel() else None
        output.copy_(_deform_roi_pool(features, shifts, regions, output.shape[2:], *options))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Add the gradients of :func:`deform_roi_pool_forward`."""
    size = (pooled_height, pooled_width)
    options = (spatial_scale, sampling_ratio, gamma)
    with full_precision(grad_output, input, offset, rois) as (gradient, features, offsets, regions):

        def forward(x: Tensor, shifts: Tensor | None = None) -> Tensor:
            return _deform_roi_pool(x, shifts, regions, size, *options)

        inputs = (features, offsets) if offsets.numel() else (features,)
        targets = (grad_input, grad_offset)
        found = gradients(forward, inputs, gradient)
        for target, value in zip(targets, found, strict=False):
            target += value


def _deform_roi_pool(
    features: Tensor,
    offsets: Tensor | None,
    rois: Tensor,
    size: tuple[int, int] | torch.Size,
    scale: float,
    ratio: int,
    gamma: float,
) -> Tensor:
    start, bins, grids = _bins(rois, size, scale, ratio, True)
    start = start.flip(1)  # (K, 2) as (x, y), like the offsets
    extent = (bins * bins.new_tensor(list(size))).flip(1)
    result = features.new_zeros((len(rois), features.shape[1], *size))
    for grid, chosen in _by_grid(grids):
        axes = []
        for axis, (count, samples) in enumerate(zip(size[::-1], grid[::-1], strict=True)):
            steps = torch.arange(count * samples, device=rois.device, dtype=rois.dtype) + 0.5
            lines = steps.view(count, samples) / (count * samples)
            axes.append(start[chosen, axis, None, None] + extent[chosen, axis, None, None] * lines)
        x = axes[0][:, None, :, None, :].expand(-1, *size, *grid)
        y = axes[1][:, :, None, :, None].expand(-1, *size, *grid)
        if offsets is not None:
            shift = gamma * extent[chosen, :, None, None] * offsets[chosen]
            x, y = (v + s[..., None, None] for v, s in zip((x, y), shift.unbind(1), strict=True))
        images = rois[chosen, 0].long()
        for image in images.unique().tolist():
            mine = images == image
            sampled = _sample(features[image], x[mine].flatten(3), y[mine].flatten(3))
            result = result.index_put((chosen[mine],), sampled.mean(-1))
    return result


def _sample(features: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample a map ``(C, H, W)`` at points ``(K, h, w, S)``: ``(K, C, h, w, S)``.

    Points up to one pixel outside the map get the border value. Points farther outside get 0.
    """
    grid, inside = _as_grid(x, y, features.shape[1:])
    grid = grid.flatten(0, 2)[None]  # (1, K * h * w, S, 2)
    sampled = F.grid_sample(features[None], grid, padding_mode='border', align_corners=True)
    return sampled[0].unflatten(1, x.shape[:3]).movedim(0, 1) * inside[:, None]


def _as_grid(x: Tensor, y: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Return the points in the coordinates of ``grid_sample``, and which points are inside."""
    height, width = size
    inside = (x >= -1) & (x <= width) & (y >= -1) & (y <= height)
    return torch.stack((2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1), -1), inside
