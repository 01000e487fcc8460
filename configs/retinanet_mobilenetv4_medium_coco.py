"""MobileNetV4-Conv-Medium RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

No RetinaNet AP with this recipe is known. It was not run on COCO here. timm's ImageNet weights come
from the Hugging Face hub.

The last map has 256 channels, as in the authors' detectors. timm's feature at this stride is the
960-channel convolution of the classifier.
"""

_base_ = './retinanet_mobilenetv2_coco.py'

model = dict(
    backbone=dict(
        model_name='mobilenetv4_conv_medium',
        out_indices=(1, 2, 3),
        init_cfg=dict(checkpoint='timm://mobilenetv4_conv_medium.e500_r256_in1k'),
    ),
    neck=dict(in_channels=[80, 160, 256]),
)
