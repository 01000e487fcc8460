"""EfficientViT-M4 RetinaNet on COCO with seven additional training switches.

The switches extend ``retinanet_evit_m4_coco.py``: trained BatchNorm, stride 8 from the stem, no
weight decay on norms and biases, drop path, multi-scale training, EMA, 36 epochs. docs/recipes.md
explains them and shows their effect on two small data sets.

A 1333x800 image takes 163.78 G multiply-adds. The model has 17.46 M parameters
(``python tools/complexity.py``). No AP is published for it. It was not run on COCO here.
"""

_base_ = './retinanet_evit_m4_coco.py'

sync_bn = 'torch'  # mmengine ignores it with one process
model = dict(
    backbone=dict(norm_eval=False, out_stem=True, drop_path_rate=0.1),
    neck=dict(
        in_channels=[_base_.embed_dims[_base_.arch][0] // 2, *_base_.embed_dims[_base_.arch]],
        num_extra_trans_convs=0,
    ),
)

train_pipeline = [
    dict(
        type='RandomResize',
        scale=[(_base_.scale[0], _base_.scale[1] * 4 // 5), _base_.scale],
        keep_ratio=True,
    )
    if step['type'] == 'Resize'
    else step
    for step in _base_.train_pipeline
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

max_epochs = 36
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(
    end=max_epochs, milestones=[max(max_epochs * part // 12, 1) for part in (8, 11)]
)
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=0.0002,
        gamma=2000,
        update_buffers=True,
    ),
]
