"""Operators that a compiled mmcv has only for GPUs, and RoIAlign's maximum, against plain loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation

from evit_mm.ops import PROVIDED, deform, focal_loss, pooling

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


@pytest.mark.parametrize('weighted', [False, True])
def test_targets_outside_the_classes(weighted):
    """Those of the sigmoid loss are background, and those of the softmax loss are ignored."""
    logits = numbers((3, 4), 15, -3, 3).double()
    weight = numbers((4,), 16).double() if weighted else logits.new_zeros(0)
    targets = torch.tensor([-1, 2, 7])
    results = [torch.zeros(3, 4).double() for _ in range(4)]
    for loss, gradient, target in zip(
        results[::2], results[1::2], (targets, targets.clip(max=4)), strict=True
    ):
        focal_loss.sigmoid_focal_loss_forward(logits, target, weight, loss, 2.0, 0.25)
        focal_loss.sigmoid_focal_loss_backward(logits, target, weight, gradient, 2.0, 0.25)
    p = logits.sigmoid()
    for row in (0, 2):
        torch.testing.assert_close(results[0][row], -0.75 * p[row] ** 2 * (1 - p[row]).log())
    for found, expected in zip(results[:2], results[2:], strict=True):
        assert torch.equal(found, expected)
    p, target = logits.softmax(1), torch.tensor([-1, 2, 3])
    loss, common, gradient = (logits.new_full(shape, 5.0) for shape in ((3,), (3,), (3, 4)))
    focal_loss.softmax_focal_loss_forward(p, target, weight, loss, 2.0, 0.25)
    focal_loss.softmax_focal_loss_backward(p, target, weight, common, gradient, 2.0, 0.25)
    assert loss[0] == common[0] == 0 and not gradient[0].any()
    assert (loss[1:] > 0).all() and common[1:].all() and gradient[1:].all()


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('stride', [(1, 2), (2, 1)])
@pytest.mark.parametrize(('padding', 'dilation'), [((2, 1), (1, 3)), ((0, 3), (2, 1))])
def test_deformable_convolutions_without_offsets_are_convolutions(
    stride, padding, dilation, groups
):
    """Each part of the geometry differs between rows and columns, and from the others."""
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    leaves = [numbers((2, 4, 8, 11), 17), numbers((6, 4 // groups, 3, 2), 18), numbers((6,), 19)]
    x, weight, bias = leaves = [leaf.double().requires_grad_() for leaf in leaves]
    geometry = (stride, padding, dilation, groups)
    plain = F.conv2d(x, weight, None, *geometry)
    offset = x.new_zeros((2, 2 * 2 * 6, *plain.shape[2:]))
    mask = torch.full_like(offset[:, ::2], 0.5)
    for found, expected, number in (
        (deform_conv2d(x, offset, weight, *geometry, 2), plain, 2),
        (
            modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry, 2),
            0.5 * plain + bias[:, None, None],
            3,
        ),
        (modulated_deform_conv2d(x, offset, mask, weight, None, *geometry, 2), 0.5 * plain, 2),
    ):
        torch.testing.assert_close(found, expected)
        gradients = [
            torch.autograd.grad((y**2).sum(), leaves[:number], retain_graph=True)
            for y in (found, expected)
        ]
        torch.testing.assert_close(*gradients)


def test_the_weight_gradient_is_kept_for_one_call_with_the_same_geometry(monkeypatch):
    """Computed once more for any other call, scaled, and added; nothing is done for no images."""
    calls, backward = [], deform._backward
    monkeypatch.setattr(deform, '_backward', lambda *args: calls.append(1) or backward(*args))
    geometry = dict(dW=1, dH=1, padW=1, padH=1, dilationW=1, dilationH=1)
    geometry.update(kW=3, kH=3, group=1, deformable_group=1, im2col_step=1)
    wider = {**geometry, 'padW': 2, 'padH': 2, 'dilationW': 2, 'dilationH': 2}
    x, weight = numbers((2, 2, 5, 6), 20).double(), numbers((3, 2, 3, 3), 21).double()
    weight.requires_grad_()
    gradient, offset = numbers((2, 3, 5, 6), 22).double(), x.new_zeros(2, 18, 5, 6)
    unused, expected = x.new_zeros(0), {}
    for size in (1, 2):
        result = F.conv2d(x, weight, padding=size, dilation=size)
        expected[size] = torch.autograd.grad(result, weight, gradient)[0]
    # whether the input's gradient was asked for before, and how often the weight's is computed
    for kept, sizes, number in ((False, geometry, 2), (True, geometry, 2), (True, wider, 3)):
        calls.clear()
        found = torch.ones_like(weight).detach()
        if kept:
            deform.deform_conv_backward_input(
                x, offset, gradient, x.clone(), offset.clone(), weight.detach(), unused, **geometry
            )
        for total in (0.25, 0.5):
            deform.deform_conv_backward_parameters(
                x, offset, gradient, found, unused, unused, 0.25, **sizes
            )
            torch.testing.assert_close(found, 1 + total * expected[sizes['padW']])
        assert len(calls) == number
    passing = gradient.clone()
    deform.deform_conv_backward_input(
        x, offset, passing, x.clone(), offset.clone(), weight.detach(), unused, **geometry
    )
    assert deform._last_weight_gradient.kept
    del passing  # with which the kept gradient goes
    assert deform._last_weight_gradient.kept is None
    none = x.new_ones((0, 3, 5, 6))
    deform.deform_conv_forward(x[:0], weight, offset[:0], none, unused, unused, **geometry)


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


@pytest.mark.parametrize('ratio', [0, 2])
def test_the_maximum_does_not_depend_on_how_many_samples_fit(monkeypatch, ratio):
    from mmcv.ops import roi_align

    x = numbers((2, 2, 7, 9), 11, -1, 1).double()
    rois = torch.cat((REGIONS, REGIONS + torch.tensor([0.0, 1, 1, 1, 1]))).double()
    expected = roi_align(x, rois, (2, 3), 0.5, ratio, 'max')
    for samples in (1, 200):
        monkeypatch.setattr(pooling, 'SAMPLES', samples)
        assert torch.equal(roi_align(x, rois, (2, 3), 0.5, ratio, 'max'), expected)


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
