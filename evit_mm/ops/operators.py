"""The table of operators. Importing this module imports torchvision."""

import torch

from . import deform, focal_loss, nms, pooling, resampling, sync_bn


def get_compiler_version() -> str:
    """Return the compiler that mmcv reports for its operators."""
    return 'none, operators of evit_mm.ops'


def get_compiling_cuda_version() -> str:
    """Return the CUDA version that mmcv reports for its operators, which is PyTorch's."""
    return torch.version.cuda or 'not available'


#: name of each operator in mmcv, and the function that replaces it
OPERATORS = {
    function.__name__: function
    for function in (
        nms.nms,
        nms.softnms,
        nms.nms_match,
        nms.nms_rotated,
        nms.nms_quadri,
        nms.bbox_overlaps,
        nms.box_iou_rotated,
        nms.box_iou_quadri,
        pooling.roi_align_forward,
        pooling.roi_align_backward,
        pooling.roi_pool_forward,
        pooling.roi_pool_backward,
        pooling.deform_roi_pool_forward,
        pooling.deform_roi_pool_backward,
        deform.deform_conv_forward,
        deform.deform_conv_backward_input,
        deform.deform_conv_backward_parameters,
        deform.modulated_deform_conv_forward,
        deform.modulated_deform_conv_backward,
        deform.ms_deform_attn_forward,
        deform.ms_deform_attn_backward,
        focal_loss.sigmoid_focal_loss_forward,
        focal_loss.sigmoid_focal_loss_backward,
        focal_loss.softmax_focal_loss_forward,
        focal_loss.softmax_focal_loss_backward,
        resampling.carafe_forward,
        resampling.carafe_backward,
        resampling.carafe_naive_forward,
        resampling.carafe_naive_backward,
        resampling.masked_im2col_forward,
        resampling.masked_col2im_forward,
        sync_bn.sync_bn_forward_mean,
        sync_bn.sync_bn_forward_var,
        sync_bn.sync_bn_forward_output,
        sync_bn.sync_bn_backward_param,
        sync_bn.sync_bn_backward_data,
        get_compiler_version,
        get_compiling_cuda_version,
    )
}
