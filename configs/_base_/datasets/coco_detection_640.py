"""COCO 2017 as in ``coco_detection.py``, no side longer than 640: for real time."""

_base_ = './coco_detection.py'

# a child replaces a list as a whole, so the one step that differs is changed in the base's
scale = (640, 640)
train_pipeline = _base_.train_pipeline
train_pipeline[2]['scale'] = scale
test_pipeline = _base_.test_pipeline
test_pipeline[1]['scale'] = scale

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
