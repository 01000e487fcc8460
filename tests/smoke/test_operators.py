"""Every operator that evit_mm.ops provides, called as mmdet does: through mmcv.ops."""

import sys

import pytest
import torch

from evit_mm.ops import PROVIDED
from evit_mm.ops.operators import OPERATORS

# with every stack, what a compiled mmcv returned
from tests.ops.test_compiled import test_operators_return_what_compiled_ones_do  # noqa: F401

VERSIONS = {'get_compiler_version', 'get_compiling_cuda_version'}
CALLS = {}


def call(*operators):
    def register(function):
        CALLS[function.__name__] = operators, function
        return function

    return register


def leaf(*shape):
    return torch.rand(*shape, dtype=torch.float32).requires_grad_()


def backward(output, *leaves):
    output.square().sum().backward()
    for x in (output, *(x.grad for x in leaves)):
        assert torch.isfinite(x).all() and x.abs().sum() > 0


def boxes(count=20):
    corners = torch.rand(count, 2) * 40
    return torch.cat((corners, corners + 5 + torch.rand(count, 2) * 20), 1)


def turned(count=12):
    sizes = 5 + torch.rand(count, 2) * 10
    return torch.cat((torch.rand(count, 2) * 20, sizes, torch.rand(count, 1)), 1)


def corners(count=12):
    x1, y1, x2, y2 = boxes(count).unbind(1)
    return torch.stack((x1, y1, x2, y1, x2, y2, x1, y2), 1)


ROIS = torch.tensor([[0, 2.0, 3, 30, 40], [1, 0, 0, 20, 25]])


@call('nms')
def nms():
    from mmcv.ops import nms

    dets, kept = nms(boxes(), torch.rand(20), 0.3)
    assert 0 < len(kept) <= 20 and dets.shape == (len(kept), 5)


@call('softnms')
def soft_nms():
    from mmcv.ops import soft_nms

    dets, kept = soft_nms(boxes(), torch.rand(20), 0.3)
    assert 0 < len(kept) <= 20 and dets.shape == (len(kept), 5)


@call('nms_match')
def nms_match():
    from mmcv.ops import nms_match

    groups = nms_match(torch.cat((boxes(), torch.rand(20, 1)), 1), 0.3)
    assert sorted(int(i) for group in groups for i in group) == list(range(20))


@call('nms_rotated')
def nms_rotated():
    from mmcv.ops import nms_rotated

    assert 0 < len(nms_rotated(turned(), torch.rand(12), 0.3)[1]) <= 12


@call('nms_quadri')
def nms_quadri():
    from mmcv.ops import nms_quadri

    assert 0 < len(nms_quadri(corners(), torch.rand(12), 0.3)[1]) <= 12


@call('bbox_overlaps')
def bbox_overlaps():
    from mmcv.ops import bbox_overlaps

    found = boxes()
    assert torch.allclose(bbox_overlaps(found, found).diag(), torch.ones(20))


@call('box_iou_rotated')
def box_iou_rotated():
    from mmcv.ops import box_iou_rotated

    found = turned()
    assert torch.allclose(box_iou_rotated(found, found).diag(), torch.ones(12), atol=1e-4)


@call('box_iou_quadri')
def box_iou_quadri():
    from mmcv.ops import box_iou_quadri

    found = corners()
    assert torch.allclose(box_iou_quadri(found, found).diag(), torch.ones(12), atol=1e-4)


@call('roi_align_forward', 'roi_align_backward')
def roi_align():
    from mmcv.ops import roi_align

    for mode in ('avg', 'max'):
        x = leaf(2, 3, 12, 14)
        backward(roi_align(x, ROIS, (3, 4), 0.25, 2, mode), x)


@call('roi_pool_forward', 'roi_pool_backward')
def roi_pool():
    from mmcv.ops import roi_pool

    x = leaf(2, 3, 12, 14)
    backward(roi_pool(x, ROIS, (3, 4), 0.25), x)


@call('deform_roi_pool_forward', 'deform_roi_pool_backward')
def deform_roi_pool():
    from mmcv.ops import deform_roi_pool

    x, offset = leaf(2, 3, 12, 14), leaf(2, 2, 3, 3)
    backward(deform_roi_pool(x, ROIS, offset, (3, 3), 0.25, 2), x, offset)


@call('deform_conv_forward', 'deform_conv_backward_input', 'deform_conv_backward_parameters')
def deform_conv():
    from mmcv.ops import deform_conv2d

    leaves = leaf(2, 4, 7, 7), leaf(2, 18, 7, 7), leaf(5, 4, 3, 3)
    backward(deform_conv2d(*leaves, 1, 1), *leaves)


@call('modulated_deform_conv_forward', 'modulated_deform_conv_backward')
def modulated_deform_conv():
    from mmcv.ops import modulated_deform_conv2d

    leaves = leaf(2, 4, 7, 7), leaf(2, 18, 7, 7), leaf(2, 9, 7, 7), leaf(5, 4, 3, 3), leaf(5)
    backward(modulated_deform_conv2d(*leaves, 1, 1), *leaves)


@call('ms_deform_attn_forward', 'ms_deform_attn_backward')
def ms_deform_attn():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    shapes = torch.tensor([[6, 5], [3, 3]])
    starts = torch.tensor([0, 30])
    value, places, weights = leaf(2, 39, 2, 4), leaf(2, 7, 2, 2, 3, 2), leaf(2, 7, 2, 2, 3)
    output = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, places, weights, 2)
    backward(output, value, places, weights)


@call('sigmoid_focal_loss_forward', 'sigmoid_focal_loss_backward')
def sigmoid_focal_loss():
    from mmcv.ops import sigmoid_focal_loss

    x = leaf(6, 4)
    backward(sigmoid_focal_loss(x, torch.tensor([0, 1, 2, 3, 4, 4])), x)


@call('softmax_focal_loss_forward', 'softmax_focal_loss_backward')
def softmax_focal_loss():
    from mmcv.ops import softmax_focal_loss

    x = leaf(6, 4)
    backward(softmax_focal_loss(x, torch.tensor([0, 1, 2, 3, 3, 3])), x)


@call('carafe_forward', 'carafe_backward')
def carafe():
    from mmcv.ops import carafe

    x, masks = leaf(1, 4, 4, 5), leaf(1, 9, 8, 10)
    backward(carafe(x, masks, 3, 1, 2), x, masks)


@call('carafe_naive_forward', 'carafe_naive_backward')
def carafe_naive():
    from mmcv.ops import carafe, carafe_naive

    x, masks = leaf(1, 4, 4, 5), leaf(1, 9, 8, 10)
    output = carafe_naive(x, masks, 3, 1, 2)
    # mmcv's own backward insists on a GPU before it asks the operator
    sizes = {'kernel_size': 3, 'group_size': 1, 'scale_factor': 2}
    found = torch.zeros_like(x), torch.zeros_like(masks)
    extension = sys.modules['mmcv._ext']
    extension.carafe_naive_backward(2 * output.detach(), x, masks, *found, **sizes)
    carafe(x, masks, 3, 1, 2).square().sum().backward()
    for gradient, by in zip(found, (x, masks), strict=True):
        assert torch.allclose(gradient, by.grad, atol=1e-5)


@call('masked_im2col_forward', 'masked_col2im_forward')
def masked_conv():
    from mmcv.ops import MaskedConv2d

    conv, mask = MaskedConv2d(3, 5, 3, padding=1), torch.zeros(1, 6, 7)
    mask[0, 2:4, 3:6] = 1
    with torch.no_grad():
        found = conv(torch.rand(1, 3, 6, 7), mask)
    assert ((found != 0).any(1) == mask.bool()).all()


@call(
    *('sync_bn_forward_mean', 'sync_bn_forward_var', 'sync_bn_forward_output'),
    *('sync_bn_backward_param', 'sync_bn_backward_data'),
)
def sync_bn():
    import torch.distributed as dist
    from mmcv.ops import SyncBatchNorm

    # mmcv's module cannot be made outside a group of processes
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        x = leaf(4, 5, 6, 7)
        layer = SyncBatchNorm(5)
        backward(layer(x) + x, x)
        assert layer.weight.grad.isfinite().all()
    finally:
        dist.destroy_process_group()


def test_every_operator_has_a_call():
    assert {name for names, _ in CALLS.values() for name in names} == set(OPERATORS) - VERSIONS


@pytest.mark.parametrize('name', CALLS)
def test_operator(name, monkeypatch):
    operators, function = CALLS[name]
    import mmcv.ops  # noqa: F401

    extension, asked = sys.modules['mmcv._ext'], set()
    for operator in operators:
        own = getattr(extension, operator)

        def recorded(*args, own=own, operator=operator, **kwargs):
            asked.add(operator)
            return own(*args, **kwargs)

        monkeypatch.setattr(extension, operator, recorded)
    try:
        function()
    except RuntimeError as error:
        if PROVIDED == 'compiled' and 'implementation for device cpu not found' in str(error):
            pytest.skip(f'a compiled mmcv has it for GPUs only: {error}')
        raise
    assert asked == set(operators)


def test_versions_of_the_compiler_are_told():
    from mmcv.ops import get_compiler_version, get_compiling_cuda_version

    assert get_compiler_version() and get_compiling_cuda_version()
