"""EfficientViT-M4 lite RetinaNet on COCO at 640 pixels, for real time; batch size 16, 12 epochs.

A 640x640 image takes 13.69 G multiply-adds. The model has 10.29 M parameters
(``python tools/complexity.py configs/retinanet_lite_evit_m4_coco.py --size 640 640``).
No AP is published for it. It was not run on COCO here.
"""

_base_ = [
    './_base_/models/efficientvit_release.py',
    './_base_/models/retinanet_evit_lite.py',
    './_base_/datasets/coco_detection_640.py',
    './_base_/schedules/schedule_1x.py',
    './_base_/default_runtime.py',
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
    neck=dict(
        in_channels=[_base_.embed_dims[arch][0] // 2, *_base_.embed_dims[arch]], out_channels=128
    ),
    bbox_head=dict(num_classes=_base_.num_classes, in_channels=128, feat_channels=128),
)
