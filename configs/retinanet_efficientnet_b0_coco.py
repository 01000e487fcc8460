"""EfficientNet-B0 RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

No AP is published for it in this comparison.
Here: not run on COCO. The ImageNet weights are timm's, from the Hugging Face hub.
"""

_base_ = [
    './_base_/models/retinanet_fpn.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/schedule_1x.py',
    './_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        model_name='efficientnet_b0',
        out_indices=(2, 4, 6),
        init_cfg=dict(type='Pretrained', checkpoint='timm://efficientnet_b0.ra_in1k'),
    ),
    neck=dict(in_channels=[40, 112, 320]),
)
