"""Blood cells (BCCD, 3 classes) at 320x240 from ``data/bccd``, in COCO's format.

Requires ``images/`` and ``annotations/instances_{train,val}.json`` there.
"""

_base_ = './coco_detection.py'

data_root = 'data/bccd/'
train_ann_file = 'annotations/instances_train.json'
val_ann_file = 'annotations/instances_val.json'
train_images = 'images/'
val_images = 'images/'
classes = ('RBC', 'WBC', 'Platelets')
scale = (320, 240)
batch_size = 8

num_classes = len(classes)
metainfo = dict(classes=classes)
# see coco_detection_640.py: this changes one step of the base's list
changes = dict(Resize=dict(scale=scale))
train_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.test_pipeline]
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        data_root=data_root,
        ann_file=train_ann_file,
        data_prefix=dict(img=train_images),
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    dataset=dict(
        data_root=data_root,
        ann_file=val_ann_file,
        data_prefix=dict(img=val_images),
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    ann_file=val_ann_file if val_ann_file[0] == '/' else f'{data_root.rstrip("/")}/{val_ann_file}',
    classwise=True,
)
test_evaluator = val_evaluator
