"""EfficientViT-M0 YOLOX on COCO at 640 pixels, for real time; batch size 256, 300 epochs.

A 640x640 image takes 3.48 G multiply-adds. The model has 1.79 M parameters
(``python tools/complexity.py configs/yolox_evit_m0_coco.py --size 640 640``).
No AP is published for it. It was not run on COCO here. docs/recipes.md shows
results on blood cells.
"""

_base_ = [
    './_base_/models/efficientvit_release.py',
    './_base_/models/yolox_evit.py',
    './_base_/datasets/coco_mosaic_640.py',
    './_base_/schedules/schedule_300e.py',
]

arch = 'm0'
model = dict(
    backbone=dict(
        arch=arch,
        init_cfg=dict(
            type='Pretrained',
            checkpoint=f'{_base_.release}efficientvit_{arch}.pth',
        ),
    ),
    neck=dict(in_channels=[_base_.embed_dims[arch][0] // 2, *_base_.embed_dims[arch][:2]]),
    bbox_head=dict(num_classes=_base_.num_classes),
)
