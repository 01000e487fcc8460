"""SHViT-S4 RetinaNet on COCO, with the neck and the recipe of ``retinanet_evit_m4_coco.py``.

Published: 38.8 AP on val2017 (arXiv 2401.16456), with the same neck and recipe.
It was not run on COCO here. timm's ImageNet weights come from the Hugging Face hub.
"""

_base_ = './retinanet_evit_m4_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='TIMMNet',
        model_name='shvit_s4',
        norm_eval=True,
        channels_last=True,
        init_cfg=dict(type='Pretrained', checkpoint='timm://shvit_s4.in1k'),
    ),
    neck=dict(in_channels=[224, 336, 448]),
)
