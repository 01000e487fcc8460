"""EfficientViT-M4 with a light head on the built-in shapes, from scratch, for two CPU cores.

Measured here: see docs/results.md.
"""

_base_ = [
    './_base_/models/efficientvit_release.py',
    './_base_/models/retinanet_evit_m4_light.py',
    './_base_/datasets/shapes_detection.py',
    './_base_/schedules/schedule_scratch.py',
    './_base_/default_runtime.py',
]

arch = 'm4'
model = dict(
    backbone=dict(arch=arch),
    neck=dict(in_channels=_base_.embed_dims[arch]),
    bbox_head=dict(num_classes=_base_.num_classes),
)

max_epochs = 12
train_cfg = dict(max_epochs=max_epochs, val_interval=6)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=max_epochs)
