"""EfficientViT-M2 RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

No AP is published for it. It was not run on COCO here.
"""

_base_ = './retinanet_evit_m4_coco.py'

model = dict(
    backbone=dict(
        arch='m2',
        init_cfg=dict(checkpoint=_base_.release + 'efficientvit_m2.pth'),
    ),
    neck=dict(in_channels=[128, 192, 224]),
)
