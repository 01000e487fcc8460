"""A lite RetinaNet for real time: stride 8 comes from the stem, neck and head are narrow.

No transposed convolution, 96 channels in place of 256, 2 convolutions in place of 4, 6 anchors a
place in place of 9. Predictors are half of so narrow a head: three anchors less save a fifth of its
multiply-adds, and RetinaNet's authors saw no gain beyond 6 to 9 (arXiv 1708.02002).
"""

_base_ = './retinanet_evit_m4.py'

channels = 96
model = dict(
    backbone=dict(out_stem=True),
    neck=dict(out_channels=channels, num_extra_trans_convs=0),
    bbox_head=dict(
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=2,
        anchor_generator=dict(scales_per_octave=2),
    ),
)
