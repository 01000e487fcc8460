"""EfficientViT-M5 on ImageNet-1k, fine-tuned at 384 px for 30 epochs from its 224 px weights.

Published: 79.8 top-1 (arXiv 2305.07027). It was not run on ImageNet here.

The first use downloads the 224 px weights from the authors' release. The attention biases are
resized to the windows. As at 224 px, the test image is a centre crop of 7/8 of the short edge.

Epochs and weight decay are the authors'. Their learning rate is not published. The peak, start and
floor of the learning rate are from SHViT's fine-tuning in the authors' code base
(github.com/ysj9909/SHViT, issue 5). The batch size stays 2048.
"""

_base_ = [
    './_base_/models/efficientvit_release.py',
    './_base_/models/evit_m4_imagenet.py',
    './_base_/datasets/imagenet.py',
    './_base_/schedules/imagenet_300e.py',
    './_base_/imagenet_runtime.py',
]

model = dict(
    backbone=dict(arch='m5', window_sizes=(7, 7, 6)),  # of maps with sides of 24, 12 and 6
    init_cfg=dict(type='Pretrained', checkpoint=_base_.release + 'efficientvit_m5.pth'),
)

# A child config replaces a list as a whole, so this changes the steps of the base's list.
changes = dict(
    RandomResizedCrop=dict(scale=384), ResizeEdge=dict(scale=438), CenterCrop=dict(crop_size=384)
)
train_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=30)
param_scheduler = [
    dict(type='LinearLR', start_factor=2e-8 / 4e-5, by_epoch=True, begin=0, end=6),
    dict(type='CosineAnnealingLR', T_max=25, eta_min=2e-7, by_epoch=True, begin=5, end=30),
]
optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=1e-8))
