"""RetinaNet on EfficientViT-M4 with a light head (64 channels, 2 convolutions) for small images.

It trains from scratch, so BatchNorm is trained. Anchors span 24 to 610 pixels, three quarters of
the usual sizes, because the images are small. The box loss has weight 2 for short trainings.
"""

_base_ = './retinanet_evit_m4.py'

model = dict(
    backbone=dict(norm_eval=False),
    neck=dict(out_channels=64),
    # the loss does not depend on the number of processes
    bbox_head=dict(
        type='SyncedRetinaHead',
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=3),
        loss_bbox=dict(loss_weight=2.0),
    ),
)
