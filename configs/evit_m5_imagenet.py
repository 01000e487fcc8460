"""EfficientViT-M5 on ImageNet-1k with the authors' recipe (8 GPUs x 256 images, 300 epochs).

Published: 77.124 top-1, 93.360 top-5 (the authors' README). It was not run on ImageNet here.
"""

_base_ = './evit_m4_imagenet.py'

arch = 'm5'
model = dict(backbone=dict(arch=arch), head=dict(in_channels=_base_.embed_dims[arch][-1]))
