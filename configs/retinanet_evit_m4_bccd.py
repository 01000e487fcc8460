"""EfficientViT-M4 with a light head on blood cells (BCCD, 3 classes) at 320x240, from scratch.

Requires ``data/bccd/`` with ``images/`` and ``annotations/instances_{train,val}.json``.
Measured here: see docs/results.md.
"""

_base_ = [
    './_base_/models/efficientvit_release.py',
    './_base_/models/retinanet_evit_m4_light.py',
    './_base_/datasets/bccd_detection.py',
    './_base_/schedules/schedule_scratch.py',
    './_base_/default_runtime.py',
]

arch = 'm4'
model = dict(
    backbone=dict(arch=arch),
    neck=dict(in_channels=_base_.embed_dims[arch]),
    bbox_head=dict(num_classes=_base_.num_classes),
)
