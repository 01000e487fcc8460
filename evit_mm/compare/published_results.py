"""Published figures of the comparison; none of them was measured here.

Sources: EfficientViT (arXiv 2305.07027), whose other rows agree digit for digit with table 4 of
FairNAS (arXiv 1907.01845); LSNet (arXiv 2503.23135) for EfficientViT-M5; Guo et al. (arXiv
1904.00420) for SPOS; EfficientNet (arXiv 1905.11946).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """What the papers print about one backbone.

    Attributes:
        label: Name for people.
        macs: Multiply-adds of the classifier at 224 px, which the papers call FLOPs.
        params: Parameters of the classifier.
        coco: AP, AP50, AP75, AP small, medium and large on COCO val2017 with RetinaNet and 12
            epochs, as far as they are published; in percent.
    """

    label: str
    macs: float | None = None
    params: float | None = None
    coco: tuple[float, ...] = ()


# By the NAME in configs/retinanet_NAME_coco.py.
PUBLISHED = {
    'evit_m0': Published('EfficientViT-M0', 79e6, 2.3e6),
    'evit_m1': Published('EfficientViT-M1', 167e6, 3.0e6),
    'evit_m2': Published('EfficientViT-M2', 201e6, 4.2e6),
    'evit_m3': Published('EfficientViT-M3', 263e6, 6.9e6),
    'evit_m4': Published('EfficientViT-M4', 299e6, 8.8e6, (32.7, 52.2, 34.1, 17.6, 35.3, 46.0)),
    'evit_m5': Published('EfficientViT-M5', 522e6, 12.4e6, (34.3,)),
    'mobilenetv2': Published('MobileNetV2', 300e6, 3.4e6, (28.3, 46.7, 29.3, 14.8, 30.7, 38.1)),
    'mobilenetv3': Published(
        'MobileNetV3-Large', 217e6, 5.4e6, (29.9, 49.3, 30.8, 14.9, 33.3, 41.1)
    ),
    # printed as "SPOS" in the EfficientViT paper
    'spnasnet': Published('Single-Path NAS', 365e6, 4.3e6, (30.7, 49.8, 32.2, 15.4, 33.9, 41.6)),
    'mixnet_m': Published('MixNet-M', 360e6, 5.0e6, (31.3, 51.7, 32.4, 17.0, 35.0, 41.9)),
    'efficientnet_b0': Published('EfficientNet-B0', 390e6, 5.3e6),
    'spos': Published('SPOS', 323e6, 3.5e6),
}
# Mask R-CNN with EfficientViT-M4 on COCO val2017, 12 epochs: AP, AP50, AP75 of boxes and masks
MASK_RCNN_EVIT_M4 = {'box': (32.8, 54.4, 34.5), 'mask': (31.0, 51.2, 32.2)}
# ImageNet-1k: top-1 and, where it is published, top-5, by the NAME in configs/NAME_imagenet.py
IMAGENET = {
    'evit_m0': (63.296, 85.150),
    'evit_m1': (68.356, 88.672),
    'evit_m2': (70.786, 90.150),
    'evit_m3': (73.390, 91.350),
    'evit_m4': (74.266, 91.788),
    'evit_m5': (77.124, 93.360),
    'evit_m5_384': (79.8,),
    'evit_m5_512': (80.8,),
}
# the authors' release; by the config that its file belongs to
RELEASE = 'https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/releases/download/v1.0/'
WEIGHTS = {
    'retinanet_evit_m4_coco': 'retinanet_efficientvit_m4_fpn_1x_coco.pth',
    'mask_rcnn_evit_m4_coco': 'mask_rcnn_efficientvit_m4_fpn_1x_coco.pth',
    **{f'evit_m{i}_imagenet': f'efficientvit_m{i}.pth' for i in range(6)},
}
# timm's names of the networks above
TIMM_NAMES = {
    'mobilenetv2_100': 'mobilenetv2',
    'mobilenetv3_large_100': 'mobilenetv3',
    'spnasnet_100': 'spnasnet',
    'mixnet_m': 'mixnet_m',
    'efficientnet_b0': 'efficientnet_b0',
}


def label_of(name: str) -> str:
    """Return a backbone's name for people, or the name itself where it is not in the table."""
    return PUBLISHED[name].label if name in PUBLISHED else name
