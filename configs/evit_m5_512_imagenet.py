"""EfficientViT-M5 fine-tuned at 512 px for 30 epochs, from its 224 px weights.

Published: 80.8 top-1 (arXiv 2305.07027). Here: not run on ImageNet.

The 224 px weights are fetched from the authors' release on first use; attention biases are resized
to the windows. Images are tested as at 224 px, a centre crop of 7/8 of the short edge.
"""

_base_ = [
    './_base_/models/evit_m4_imagenet.py',
    './_base_/datasets/imagenet.py',
    './_base_/schedules/imagenet_finetune_30e.py',
    './_base_/imagenet_runtime.py',
]

model = dict(
    backbone=dict(arch='m5', window_sizes=(7, 7, 7)),  # the maps have 32, 16 and 8 tokens a side
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/'
        'releases/download/v1.0/efficientvit_m5.pth',
    ),
)

train_pipeline = _base_.train_pipeline
train_pipeline[1]['scale'] = 512
test_pipeline = _base_.test_pipeline
test_pipeline[1]['scale'] = 585
test_pipeline[2]['crop_size'] = 512
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
