"""MobileNetV3-Large RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

Published: 29.9 AP on val2017, with FairNAS's recipe (arXiv 1907.01845).
It was not run on COCO here. timm's ImageNet weights come from the Hugging Face hub.
"""

_base_ = './retinanet_mobilenetv2_coco.py'

model = dict(
    backbone=dict(
        model_name='mobilenetv3_large_100',
        out_indices=(2, 4, 5),
        init_cfg=dict(checkpoint='timm://mobilenetv3_large_100.ra_in1k'),
    ),
    neck=dict(in_channels=[40, 112, 160]),
)
