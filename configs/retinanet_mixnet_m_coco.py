"""MixNet-M RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

Published: 31.3 AP on val2017, with FairNAS's recipe (arXiv 1907.01845).
It was not run on COCO here. timm's ImageNet weights come from the Hugging Face hub.
"""

_base_ = './retinanet_mobilenetv2_coco.py'

model = dict(
    backbone=dict(
        model_name='mixnet_m',
        out_indices=(2, 4, 5),
        init_cfg=dict(checkpoint='timm://mixnet_m.ft_in1k'),
    ),
    neck=dict(in_channels=[40, 120, 200]),
)
