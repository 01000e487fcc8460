"""Networks in mmengine's root registry. This package needs neither mmdet nor mmpretrain."""

from .efficientvit import EfficientViT, EfficientViTHead
from .efficientvit_fpn import EfficientViTFPN
from .spos import SPOSHead, SPOSNet
from .timm_networks import TIMMNet
from .variants import VARIANTS, Variant

__all__ = [
    'VARIANTS',
    'EfficientViT',
    'EfficientViTFPN',
    'EfficientViTHead',
    'SPOSHead',
    'SPOSNet',
    'TIMMNet',
    'Variant',
]
