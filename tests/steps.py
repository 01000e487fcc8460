"""One step of a detector on made-up images: losses, gradients, a prediction."""

import torch
from mmengine.registry import init_default_scope


def train_a_step_and_predict(cfg):
    """Build a config's detector, ask it for a loss with gradients and for detections."""
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs

    init_default_scope('mmdet')
    cfg.model.backbone.init_cfg = None
    if 'roi_head' in cfg.model:  # fewer regions, or this one takes half a minute
        cfg.model.train_cfg.rcnn.sampler.num = 32
        cfg.model.test_cfg.rpn.max_per_img = 50
        cfg.model.test_cfg.rcnn.max_per_img = 5
    model = MODELS.build(cfg.model)
    model.init_weights()
    assert tuple(model.backbone.out_channels) == tuple(cfg.model.neck.in_channels)
    head = cfg.model.get('bbox_head') or cfg.model.roi_head.bbox_head
    inputs = demo_mm_inputs(
        2,
        [[3, 64, 96], [3, 96, 64]],
        num_classes=head.num_classes,
        with_mask='mask_head' in cfg.model.get('roi_head', {}),
    )
    data = model.data_preprocessor(inputs, True)
    losses = model.train().loss(data['inputs'], data['data_samples'])
    total = sum(sum(v) if isinstance(v, list) else v for v in losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is not None for p in model.parameters())
    data = model.data_preprocessor(inputs, False)
    found = model.eval().predict(data['inputs'], data['data_samples'])
    assert len(found) == 2 and 'scores' in found[0].pred_instances
