"""EfficientViT-M5 RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

Published: 34.3 AP with this recipe (arXiv 2503.23135). It was not run on COCO here.
"""

_base_ = './retinanet_evit_m4_coco.py'

model = dict(
    backbone=dict(
        arch='m5',
        init_cfg=dict(checkpoint=_base_.release + 'efficientvit_m5.pth'),
    ),
    neck=dict(in_channels=[192, 288, 384]),
)
