"""EfficientViT-M0 YOLOX on blood cells (BCCD, 3 classes) at 320x240, from scratch.

Requires ``data/bccd/`` with ``images/`` and ``annotations/instances_{train,val}.json``.
Measured here: see docs/recipes.md.
"""

_base_ = [
    './_base_/models/efficientvit_release.py',
    './_base_/models/yolox_evit.py',
    './_base_/datasets/bccd_detection.py',
    './_base_/schedules/schedule_scratch.py',
    './_base_/default_runtime.py',
]

arch = 'm0'
model = dict(
    backbone=dict(arch=arch),
    neck=dict(in_channels=[_base_.embed_dims[arch][0] // 2, *_base_.embed_dims[arch][:2]]),
    bbox_head=dict(num_classes=_base_.num_classes),
)

# 624 iterations in 12 epochs; the schedule's batch size would give 312
batch_size = 4
train_dataloader = dict(batch_size=batch_size)
auto_scale_lr = dict(base_batch_size=4)
max_epochs = 12
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=max_epochs)
