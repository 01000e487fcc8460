"""PVTv2-B0 RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

Published: 37.1 AP on val2017 (mmdet's model zoo), with PVTv2's recipe.
It was not run on COCO here. timm's ImageNet weights come from the Hugging Face hub.
"""

_base_ = './retinanet_mobilenetv2_coco.py'

model = dict(
    backbone=dict(
        model_name='pvt_v2_b0',
        out_indices=(1, 2, 3),
        init_cfg=dict(checkpoint='timm://pvt_v2_b0.in1k'),
    ),
    neck=dict(in_channels=[64, 160, 256]),
)
