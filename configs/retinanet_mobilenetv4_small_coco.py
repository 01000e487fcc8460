"""MobileNetV4-Conv-Small RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

No RetinaNet AP with this recipe is known. It was not run on COCO here. timm's ImageNet weights come
from the Hugging Face hub.

The last map has 128 channels, as in the authors' detectors. timm's feature at this stride is the
960-channel convolution of the classifier.
"""

_base_ = './retinanet_mobilenetv2_coco.py'

model = dict(
    backbone=dict(
        model_name='mobilenetv4_conv_small',
        out_indices=(1, 2, 3),
        init_cfg=dict(checkpoint='timm://mobilenetv4_conv_small.e2400_r224_in1k'),
    ),
    neck=dict(in_channels=[64, 96, 128]),
)
