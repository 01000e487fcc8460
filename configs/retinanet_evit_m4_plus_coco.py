"""EfficientViT-M4 RetinaNet on COCO with a longer schedule and multi-scale training.

The shorter side of a training image is drawn from 640 to 800 pixels, and the training has 36
epochs instead of 12. docs/recipes.md gives the sources, and compares these and other changes on a
small data set.

A 1333x800 image takes 165.31 G multiply-adds. The model has 17.70 M parameters
(``python tools/complexity.py``). No AP is published for it. It was not run on COCO here.
"""

_base_ = './retinanet_evit_m4_coco.py'

# mmdet's zoo: 36 epochs, with this range of sides, raise RetinaNet with ResNet-50 from 36.5 to 39.5
train_pipeline = [
    dict(
        type='RandomResize',
        scale=[(_base_.scale[0], _base_.scale[1] * 4 // 5), _base_.scale],
        keep_ratio=True,
    )
    if step['type'] == 'Resize'
    else step
    for step in _base_.train_pipeline
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

max_epochs = 36
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(
    end=max_epochs, milestones=[max(max_epochs * part // 12, 1) for part in (8, 11)]
)
