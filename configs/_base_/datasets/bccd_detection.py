"""Blood cells (BCCD, 3 classes) at 320x240 from ``data/bccd``, in COCO's format.

Requires ``images/`` and ``annotations/instances_{train,val}.json`` there.
"""

_base_ = './coco_detection.py'

data_root = 'data/bccd/'
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'))
images = dict(data_root=data_root, data_prefix=dict(img='images/'), metainfo=metainfo)
# see coco_detection_640.py: this changes one step of the base's list
changes = dict(Resize=dict(scale=(320, 240)))
train_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.test_pipeline]
train_dataloader = dict(
    batch_size=8,
    dataset=dict(ann_file='annotations/instances_train.json', pipeline=train_pipeline, **images),
)
val_dataloader = dict(
    batch_size=8,
    dataset=dict(ann_file='annotations/instances_val.json', pipeline=test_pipeline, **images),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json', classwise=True)
test_evaluator = val_evaluator
