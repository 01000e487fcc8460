"""EfficientViT-M1 on ImageNet-1k with the authors' recipe (8 GPUs x 256 images, 300 epochs).

Published: 68.356 top-1, 88.672 top-5 (the authors' README). It was not run on ImageNet here.
"""

_base_ = './evit_m4_imagenet.py'

arch = 'm1'
model = dict(backbone=dict(arch=arch), head=dict(in_channels=_base_.embed_dims[arch][-1]))
