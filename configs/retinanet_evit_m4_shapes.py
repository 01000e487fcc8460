"""EfficientViT-M4 with a light head on the built-in shapes, from scratch; two cores suffice.

Measured here: see docs/results.md.
"""

_base_ = [
    './_base_/models/retinanet_evit_m4_light.py',
    './_base_/datasets/shapes_detection.py',
    './_base_/schedules/schedule_scratch.py',
    './_base_/default_runtime.py',
]

model = dict(bbox_head=dict(num_classes=5))

max_epochs = 12
train_cfg = dict(max_epochs=max_epochs, val_interval=6)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        T_max=max_epochs,
        eta_min=1e-5,
        convert_to_iter_based=True,
    ),
]
