"""Operators that a compiled mmcv has only for GPUs, and RoIAlign's maximum, against plain loops."""

import math

import numpy as np
import pytest
import torch

from evit_mm.ops import PROVIDED

from .cases import numbers

pytestmark = pytest.mark.skipif(PROVIDED == 'compiled', reason='compiled ones are for GPUs only')

# the slopes of bilinear samples have kinks at whole numbers, which these regions avoid
REGIONS = torch.tensor(
    [[0, 1.3, 2.1, 9.7, 11.2], [1, -3.1, -2.2, 6.3, 5.4], [1, 2.6, 3.3, 2.9, 3.8]]
)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('gamma', [2.0, 0.5])
def test_sigmoid_focal_loss(gamma, weighted):
    from mmcv.ops import sigmoid_focal_loss

    logits = numbers((6, 4), 0, -3, 3).double().requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 4, 4])  # 4 is the background
    weight = numbers((4,), 1).double() if weighted else None
    loss = sigmoid_focal_loss(logits, target, gamma, 0.25, weight, 'none')
    p = logits.sigmoid()
    for n in range(6):
        for c in range(4):
            if target[n] == c:
                expected = -0.25 * (1 - p[n, c]) ** gamma * p[n, c].log()
            else:
                expected = -0.75 * p[n, c] ** gamma * (1 - p[n, c]).log()
            if weighted and target[n] < 4:
                expected = expected * weight[target[n]]
            torch.testing.assert_close(loss[n, c], expected, rtol=1e-12, atol=0)
            found, right = (
                torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss.sum(), expected)
            )
            torch.testing.assert_close(found[n, c], right[n, c], rtol=1e-10, atol=1e-14)


def test_focal_losses_of_certain_logits_are_finite():
    from mmcv.ops import sigmoid_focal_loss, softmax_focal_loss

    logits = torch.tensor([[-200.0, 200.0], [200.0, -200.0]]).requires_grad_()
    for loss in (sigmoid_focal_loss, softmax_focal_loss):
        value = loss(logits, torch.tensor([0, 1]), 2.0, 0.25, None, 'sum')
        assert value.isfinite()
        assert torch.autograd.grad(value, logits)[0].isfinite().all()


def test_softmax_focal_loss():
    from mmcv.ops import softmax_focal_loss

    logits = numbers((5, 4), 2, -3, 3).double().requires_grad_()
    target, weight = torch.tensor([0, 3, 1, 2, 2]), numbers((4,), 3).double()
    loss = softmax_focal_loss(logits, target, 2.0, 0.25, weight, 'mean')
    p = logits.softmax(1)[torch.arange(5), target]
    expected = (-0.25 * (1 - p) ** 2 * p.log() * weight[target]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    found, right = (torch.autograd.grad(x, logits)[0] for x in (loss, expected))
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize('naive', [False, True])
def test_carafe(naive):
    from mmcv.ops import carafe, carafe_naive

    k, groups, s = 3, 2, 2
    x = numbers((2, 4, 3, 5), 4).double()
    masks = numbers((2, groups * k * k, 6, 10), 5).double()
    upsample = carafe_naive if naive else carafe
    found = upsample(x, masks, k, groups, s)
    expected = torch.zeros_like(found)
    for b, c, i, j in np.ndindex(*found.shape):
        for di, dj in np.ndindex(k, k):
            row, column = i // s + di - 1, j // s + dj - 1
            if 0 <= row < 3 and 0 <= column < 5:
                kernel = masks[b, (c // 2 * k + di) * k + dj, i, j]
                expected[b, c, i, j] += x[b, c, row, column] * kernel
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    if not naive:  # mmcv's naive one has its backward pass for GPUs only
        leaves = (x.requires_grad_(), masks.requires_grad_())
        assert torch.autograd.gradcheck(
            lambda a, b: carafe(a, b, k, groups, s), leaves, fast_mode=True
        )


@pytest.mark.parametrize(('kernel', 'padding'), [((3, 1), (1, 0)), ((1, 5), (0, 2))])
def test_neighbourhoods_of_a_kernel_that_is_not_square(kernel, padding):
    from evit_mm.ops.resampling import masked_im2col_forward

    image = numbers((1, 2, 4, 6), 9)
    rows, cols = torch.cartesian_prod(torch.arange(4), torch.arange(6)).unbind(1)
    found = torch.zeros(2 * math.prod(kernel), 24)
    masked_im2col_forward(image, rows, cols, found, *kernel, *padding)
    assert torch.equal(found, torch.nn.functional.unfold(image, kernel, padding=padding)[0])


def test_masked_convolution():
    from mmcv.ops import MaskedConv2d

    for padding in (0, 1):
        conv = MaskedConv2d(3, 4, 3, padding=padding)
        x = numbers((1, 3, 7, 8), 6)
        everywhere = conv(x)
        mask = torch.zeros(1, 7, 8)
        mask[:, : everywhere.shape[2], : everywhere.shape[3]] = (
            numbers((1, *everywhere.shape[2:]), 7) > 0.6
        )
        found = conv(x, mask)
        chosen = mask[:, : everywhere.shape[2], : everywhere.shape[3]]
        torch.testing.assert_close(found, everywhere * chosen, rtol=1e-5, atol=1e-6)
        assert not conv(x, torch.zeros(1, 7, 8)).any()


def test_roi_pool():
    from mmcv.ops import roi_pool

    x = numbers((2, 3, 7, 9), 8, -1, 1).double().requires_grad_()
    rois = torch.cat((REGIONS, torch.tensor([[0.0, 50, 50, 60, 60], [1, 5, 5, 3, 3]]))).double()
    scale, size = 0.5, (2, 3)
    found = roi_pool(x, rois, size, scale)
    expected = torch.zeros_like(found)
    for k, c, ph, pw in np.ndindex(*found.shape):
        image, x1, y1, x2, y2 = rois[k].tolist()
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        if x2 <= x1 or y2 <= y1:
            continue
        bin_h, bin_w = (y2 - y1) / size[0], (x2 - x1) / size[1]
        rows = range(
            min(max(math.floor(ph * bin_h + y1), 0), 7),
            min(max(math.ceil((ph + 1) * bin_h + y1), 0), 7),
        )
        columns = range(
            min(max(math.floor(pw * bin_w + x1), 0), 9),
            min(max(math.ceil((pw + 1) * bin_w + x1), 0), 9),
        )
        values = [x[int(image), c, i, j] for i in rows for j in columns]
        if values:
            expected[k, c, ph, pw] = torch.stack(values).max()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    found, right = (torch.autograd.grad((v**2).sum(), x)[0] for v in (found, expected))
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


def bilinear(image, y, x):
    """Sample as mmcv does: the border's value up to a pixel outside, 0 beyond."""
    height, width = image.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return image.sum() * 0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    return (
        image[y0, x0] * (y0 + 1 - y) * (x0 + 1 - x)
        + image[y0, x1] * (y0 + 1 - y) * (x - x0)
        + image[y1, x0] * (y - y0) * (x0 + 1 - x)
        + image[y1, x1] * (y - y0) * (x - x0)
    )


@pytest.mark.parametrize('with_offsets', [False, True])
@pytest.mark.parametrize('ratio', [0, 2])
def test_deformable_roi_pooling(ratio, with_offsets):
    from mmcv.ops import deform_roi_pool

    x = numbers((2, 2, 7, 9), 9, -1, 1).double()
    rois, scale, size, gamma = REGIONS.double(), 0.5, (2, 3), 0.3
    offset = numbers((3, 2, *size), 10, -1, 1).double() if with_offsets else None
    found = deform_roi_pool(x, rois, offset, size, scale, ratio, gamma)
    expected = torch.zeros_like(found)
    for k, c, ph, pw in np.ndindex(*found.shape):
        image, x1, y1, x2, y2 = rois[k].tolist()
        x1, y1, x2, y2 = (v * scale - 0.5 for v in (x1, y1, x2, y2))
        height, width = y2 - y1, x2 - x1
        grid_h = ratio or math.ceil(height / size[0])
        grid_w = ratio or math.ceil(width / size[1])
        if with_offsets:
            x1 += gamma * width * offset[k, 0, ph, pw].item()
            y1 += gamma * height * offset[k, 1, ph, pw].item()
        for iy, ix in np.ndindex(grid_h, grid_w):
            y = y1 + (ph + (iy + 0.5) / grid_h) * height / size[0]
            column = x1 + (pw + (ix + 0.5) / grid_w) * width / size[1]
            expected[k, c, ph, pw] += bilinear(x[int(image), c], y, column) / (grid_h * grid_w)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    leaves = (
        (x.requires_grad_(), offset.requires_grad_()) if with_offsets else (x.requires_grad_(),)
    )
    assert torch.autograd.gradcheck(
        lambda x, o=None: deform_roi_pool(x, rois, o, size, scale, ratio, gamma), leaves
    )


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_gradients(ratio, aligned, mode):
    from mmcv.ops import roi_align

    x = numbers((2, 2, 7, 9), 11, -1, 1).double().requires_grad_()
    rois = REGIONS.double()
    assert torch.autograd.gradcheck(
        lambda x: roi_align(x, rois, (2, 3), 0.5, ratio, mode, aligned), (x,)
    )


def test_multi_scale_deformable_attention():
    """mmcv's module on a GPU against its function in PyTorch, which a CPU takes."""
    from mmcv.ops.multi_scale_deform_attn import (
        MultiScaleDeformableAttnFunction,
        multi_scale_deformable_attn_pytorch,
    )

    shapes = torch.tensor([[4, 5], [2, 3]])
    start = torch.tensor([0, 20])
    value = numbers((2, 26, 2, 3), 12).double().requires_grad_()
    locations = numbers((2, 4, 2, 2, 3, 2), 13, -0.1, 1.1).double().requires_grad_()
    weights = numbers((2, 4, 2, 2, 3), 14).double().requires_grad_()
    leaves = (value, locations, weights)
    found = MultiScaleDeformableAttnFunction.apply(value, shapes, start, locations, weights, 64)
    expected = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    torch.testing.assert_close(found, expected)
    for a, b in zip(
        *(torch.autograd.grad((v**2).sum(), leaves) for v in (found, expected)), strict=True
    ):
        torch.testing.assert_close(a, b)
