"""EfficientViT-M5 RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

Published: 34.3 AP with this recipe (arXiv 2503.23135). It was not run on COCO here.
"""

_base_ = './retinanet_evit_m4_coco.py'

arch = 'm5'
model = dict(
    backbone=dict(
        arch=arch,
        init_cfg=dict(checkpoint=f'{_base_.release}efficientvit_{arch}.pth'),
    ),
    neck=dict(in_channels=_base_.embed_dims[arch]),
)
