"""RepViT-M1.1 RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

No RetinaNet AP is known. Mask R-CNN on this network has 39.8 box AP and 37.2 mask AP on val2017, as
its authors report (arXiv 2307.09283). It was not run on COCO here. timm's ImageNet weights come
from the Hugging Face hub.
"""

_base_ = './retinanet_mobilenetv2_coco.py'

model = dict(
    backbone=dict(
        model_name='repvit_m1_1',
        out_indices=(1, 2, 3),
        init_cfg=dict(checkpoint='timm://repvit_m1_1.dist_300e_in1k'),
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
