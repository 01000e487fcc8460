"""EfficientViT-M4 Mask R-CNN on COCO with the authors' recipe (8 GPUs x 2 images, 12 epochs).

Published on val2017 (arXiv 2305.07027), AP / AP50 / AP75: boxes 32.8 / 54.4 / 34.5, masks
31.0 / 51.2 / 32.2. It was not run on COCO here.

Without a network connection, set the ImageNet weights as in ``retinanet_evit_m4_coco.py``.
"""

_base_ = [
    './_base_/models/efficientvit_release.py',
    './_base_/models/mask_rcnn_evit_m4.py',
    './_base_/datasets/coco_instance.py',
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
    roi_head=dict(
        bbox_head=dict(num_classes=_base_.num_classes),
        mask_head=dict(num_classes=_base_.num_classes),
    ),
)
