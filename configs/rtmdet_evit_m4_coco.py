"""EfficientViT-M4 RTMDet on COCO at 640 pixels, for real time; batch size 256, 300 epochs.

A 640x640 image takes 5.72 G multiply-adds. The model has 3.65 M parameters
(``python tools/complexity.py configs/rtmdet_evit_m4_coco.py --size 640 640``).
No AP is published for it. It was not run on COCO here.
"""

_base_ = [
    './_base_/models/efficientvit_release.py',
    './_base_/models/rtmdet_evit.py',
    './_base_/datasets/coco_mosaic_640.py',
    './_base_/schedules/schedule_300e.py',
]

arch = 'm4'
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
