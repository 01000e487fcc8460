"""EfficientViT-M1 RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

No AP is published for it. It was not run on COCO here.
"""

_base_ = './retinanet_evit_m4_coco.py'

model = dict(
    backbone=dict(
        arch='m1',
        init_cfg=dict(checkpoint=_base_.release + 'efficientvit_m1.pth'),
    ),
    neck=dict(in_channels=[128, 144, 192]),
)
