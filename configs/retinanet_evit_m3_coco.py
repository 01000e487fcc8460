"""EfficientViT-M3 RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

No AP is published for it. It was not run on COCO here.
"""

_base_ = './retinanet_evit_m4_coco.py'

arch = 'm3'
model = dict(
    backbone=dict(
        arch=arch,
        init_cfg=dict(checkpoint=f'{_base_.release}efficientvit_{arch}.pth'),
    ),
    neck=dict(in_channels=_base_.embed_dims[arch]),
)
