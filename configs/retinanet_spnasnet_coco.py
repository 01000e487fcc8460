"""Single-Path NAS RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

Published: 30.7 AP on val2017, with FairNAS's recipe (arXiv 1907.01845, table 4). The EfficientViT
paper calls this network "SPOS": see docs/reproduce.md.
It was not run on COCO here. timm's ImageNet weights come from the Hugging Face hub.
"""

_base_ = './retinanet_mobilenetv2_coco.py'

model = dict(
    backbone=dict(
        model_name='spnasnet_100',
        out_indices=(2, 4, 6),
        init_cfg=dict(checkpoint='timm://spnasnet_100.rmsp_in1k'),
    ),
    neck=dict(in_channels=[40, 96, 320]),
)
