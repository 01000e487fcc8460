"""COCO 2017 as in ``coco_detection.py``, with no side longer than 640 pixels, for real time."""

_base_ = './coco_detection.py'

# A child config replaces a list as a whole, so this changes one step of the base's list.
scale = (640, 640)
changes = dict(Resize=dict(scale=scale))
train_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
