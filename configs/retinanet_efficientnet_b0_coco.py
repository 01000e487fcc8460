"""EfficientNet-B0 RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

No AP is published for it in this comparison.
It was not run on COCO here. timm's ImageNet weights come from the Hugging Face hub.
"""

_base_ = './retinanet_mobilenetv2_coco.py'

model = dict(
    backbone=dict(
        model_name='efficientnet_b0',
        out_indices=(2, 4, 6),
        init_cfg=dict(checkpoint='timm://efficientnet_b0.ra_in1k'),
    ),
    neck=dict(in_channels=[40, 112, 320]),
)
