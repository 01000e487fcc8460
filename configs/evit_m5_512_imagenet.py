"""EfficientViT-M5 fine-tuned at 512 px, with the recipe of ``evit_m5_384_imagenet.py``.

Published: 80.8 top-1 (arXiv 2305.07027). It was not run on ImageNet here.
"""

_base_ = './evit_m5_384_imagenet.py'

model = dict(backbone=dict(window_sizes=(7, 7, 7)))  # of maps with sides of 32, 16 and 8

changes = dict(
    RandomResizedCrop=dict(scale=512), ResizeEdge=dict(scale=585), CenterCrop=dict(crop_size=512)
)
train_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
