"""SPOS RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

The network is Single Path One-Shot (megvii's release). No AP is published for it. The row that the
EfficientViT paper calls "SPOS" is Single-Path NAS: see docs/reproduce.md. It was not run on COCO
here.

Its ImageNet weights are on a shared drive without a stable address. Its repository
(megvii-model/SinglePathOneShot) links to the drive. Download the file in the folder ``Evaluation``
and save it under the name below. ``model.backbone.init_cfg=None`` trains from scratch.
"""

_base_ = './retinanet_mobilenetv2_coco.py'

model = dict(
    # the network was trained on BGR pixels from 0 to 255
    data_preprocessor=dict(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0], bgr_to_rgb=False),
    backbone=dict(
        _delete_=True,
        type='SPOSNet',
        norm_eval=True,
        channels_last=True,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/spos_megvii.pth.tar'),
    ),
    neck=dict(in_channels=[160, 320, 640]),
)
