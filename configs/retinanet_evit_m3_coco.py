"""EfficientViT-M3 RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

No AP is published for it. It was not run on COCO here.
"""

_base_ = './retinanet_evit_m4_coco.py'

model = dict(
    backbone=dict(
        arch='m3',
        init_cfg=dict(checkpoint=_base_.release + 'efficientvit_m3.pth'),
    ),
    neck=dict(in_channels=[128, 240, 320]),
)
