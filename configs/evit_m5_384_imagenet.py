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

arch = 'm5'
scale = 384
model = dict(
    backbone=dict(  # the maps have sides of 24, 12 and 6
        arch=arch, window_sizes=tuple(min(7, -(-scale // stride)) for stride in (16, 32, 64))
    ),
    head=dict(in_channels=_base_.embed_dims[arch][-1]),
    init_cfg=dict(type='Pretrained', checkpoint=f'{_base_.release}efficientvit_{arch}.pth'),
)

# A child config replaces a list as a whole, so this changes the steps of the base's list.
changes = dict(
    RandomResizedCrop=dict(scale=scale),
    ResizeEdge=dict(scale=scale * 8 // 7),
    CenterCrop=dict(crop_size=scale),
)
train_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

max_epochs = 30
warmup_epochs = min(5, max_epochs // 2)
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=2e-8 / 4e-5, by_epoch=True, begin=0, end=warmup_epochs + 1),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs - warmup_epochs,
        eta_min=2e-7,
        by_epoch=True,
        begin=warmup_epochs,
        end=max_epochs,
    ),
]
optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=1e-8))
