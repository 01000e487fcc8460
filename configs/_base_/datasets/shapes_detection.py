"""The built-in shapes (``python tools/make_shapes.py data/shapes``), 256x256 resized to 192x192."""

_base_ = './coco_detection.py'

data_root = 'data/shapes/'
# see coco_detection_640.py: this changes one step of the base's list
changes = dict(Resize=dict(scale=(192, 192)))
train_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.test_pipeline]
metainfo = dict(
    classes=('circle', 'square', 'triangle', 'star', 'cross'),
    palette=[(230, 60, 60), (60, 150, 230), (250, 200, 50), (80, 190, 90), (180, 90, 210)],
)
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        # images without objects also train the background
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=train_pipeline,
        metainfo=metainfo,
    ),
)
val_dataloader = dict(
    batch_size=8,
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        pipeline=test_pipeline,
        metainfo=metainfo,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator
