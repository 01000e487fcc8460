"""EfficientViT-M5 fine-tuned at 512 px, with the recipe of ``evit_m5_384_imagenet.py``.

Published: 80.8 top-1 (arXiv 2305.07027). It was not run on ImageNet here.
"""

_base_ = './evit_m5_384_imagenet.py'

scale = 512
model = dict(
    backbone=dict(  # the maps have sides of 32, 16 and 8
        window_sizes=tuple(min(7, -(-scale // stride)) for stride in (16, 32, 64))
    )
)

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
