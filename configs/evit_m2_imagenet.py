"""EfficientViT-M2 on ImageNet-1k with the authors' recipe (8 GPUs x 256 images, 300 epochs).

Published: 70.786 top-1, 90.150 top-5 (the authors' README). It was not run on ImageNet here.
"""

_base_ = './evit_m4_imagenet.py'

model = dict(backbone=dict(arch='m2'), head=dict(in_channels=224))
