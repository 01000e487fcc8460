"""EfficientViT-M0 RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

No AP is published for it. It was not run on COCO here.
"""

_base_ = './retinanet_evit_m4_coco.py'

model = dict(
    backbone=dict(
        arch='m0',
        init_cfg=dict(checkpoint=_base_.release + 'efficientvit_m0.pth'),
    ),
    neck=dict(in_channels=[64, 128, 192]),
)
