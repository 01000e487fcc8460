"""A light head (64 channels, 2 convs) for small images, trained from scratch: BatchNorm learns.

Anchors span 24 to 610 pixels, three quarters of the usual, and boxes weigh double: images are small
and training is short.
"""

_base_ = './retinanet_evit_m4.py'

model = dict(
    backbone=dict(norm_eval=False),
    neck=dict(out_channels=64),
    # the same steps on any number of processes
    bbox_head=dict(
        type='SyncedRetinaHead',
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=3),
        loss_bbox=dict(loss_weight=2.0),
    ),
)
