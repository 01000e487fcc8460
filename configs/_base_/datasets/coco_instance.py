"""COCO 2017 as in ``coco_detection.py``, with masks in training and evaluation."""

_base_ = './coco_detection.py'

# A child config replaces a list as a whole, so this changes one step of the base's list.
changes = dict(LoadAnnotations=dict(with_mask=True))
train_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator
