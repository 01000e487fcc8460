"""A lite RetinaNet for real time: stride 8 comes from the stem, and neck and head are narrow.

It has no transposed convolution, 96 channels instead of 256, 2 convolutions instead of 4, and 6
anchors per location instead of 9. The predictors are half of this narrow head, so three fewer
anchors save a fifth of its multiply-adds. RetinaNet's authors found no gain from more than 6 to 9
anchors (arXiv 1708.02002).
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
