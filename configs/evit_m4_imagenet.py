"""EfficientViT-M4 on ImageNet-1k with the authors' recipe (8 GPUs x 256 images, 300 epochs).

Published: 74.266 top-1, 91.788 top-5 (the authors' README). It was not run on ImageNet here.
"""

_base_ = [
    './_base_/models/efficientvit_release.py',
    './_base_/models/evit_m4_imagenet.py',
    './_base_/datasets/imagenet.py',
    './_base_/schedules/imagenet_300e.py',
    './_base_/imagenet_runtime.py',
]

arch = 'm4'
model = dict(
    # a window is at most as large as its stage's map
    backbone=dict(
        arch=arch,
        window_sizes=tuple(min(7, -(-_base_.scale // stride)) for stride in (16, 32, 64)),
    ),
    head=dict(in_channels=_base_.embed_dims[arch][-1]),
)
