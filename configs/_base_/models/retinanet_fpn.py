"""RetinaNet on backbones that have a map at stride 8: mmdet's standard pyramid P3 to P7.

Recipe and head are those of EfficientViT; only the backbone and its neck differ.
"""

_base_ = './retinanet_evit_m4.py'

model = dict(
    backbone=dict(_delete_=True, type='TIMMMobileNet', norm_eval=True, channels_last=True),
    neck=dict(_delete_=True, type='FPN', out_channels=256, add_extra_convs='on_input', num_outs=5),
)
