"""EfficientViT-M4 RetinaNet on COCO with the authors' recipe (8 GPUs x 2 images, 12 epochs).

Published: 32.7 AP on val2017 (arXiv 2305.07027). It was not run on COCO here.

The first use downloads the ImageNet weights from the authors' release. Without a network
connection, download the file on another machine and add
``--cfg-options model.backbone.init_cfg.checkpoint=efficientvit_m4.pth``.
"""

_base_ = [
    './_base_/models/efficientvit_release.py',
    './_base_/models/retinanet_evit_m4.py',
    './_base_/datasets/coco_detection.py',
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
    neck=dict(in_channels=_base_.embed_dims[arch]),
    bbox_head=dict(num_classes=_base_.num_classes),
)
