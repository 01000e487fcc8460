"""MobileNetV2 1.0 RetinaNet on COCO, with the recipe of ``retinanet_evit_m4_coco.py``.

Published: 28.3 AP on val2017, with FairNAS's recipe (arXiv 1907.01845).
It was not run on COCO here. timm's ImageNet weights come from the Hugging Face hub.
"""

_base_ = [
    './_base_/models/retinanet_evit_m4.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/schedule_1x.py',
    './_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='TIMMNet',
        model_name='mobilenetv2_100',
        out_indices=(2, 4, 6),
        norm_eval=True,
        channels_last=True,
        init_cfg=dict(type='Pretrained', checkpoint='timm://mobilenetv2_100.ra_in1k'),
    ),
    # mmdet's standard pyramid P3 to P7, because this backbone has a map at stride 8
    neck=dict(
        _delete_=True,
        type='FPN',
        in_channels=[32, 96, 320],
        out_channels=256,
        add_extra_convs='on_input',
        num_outs=5,
    ),
    bbox_head=dict(num_classes=_base_.num_classes),
)
