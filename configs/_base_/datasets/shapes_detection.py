"""The built-in shapes (``python tools/make_shapes.py data/shapes``), 256x256 resized to 192x192."""

_base_ = './coco_detection.py'

data_root = 'data/shapes/'
train_ann_file = 'annotations/instances_train.json'
val_ann_file = 'annotations/instances_val.json'
train_images = 'train/'
val_images = 'val/'
classes = ('circle', 'square', 'triangle', 'star', 'cross')
scale = (192, 192)
batch_size = 8

num_classes = len(classes)
# see coco_detection_640.py: this changes one step of the base's list
changes = dict(Resize=dict(scale=scale))
train_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.test_pipeline]
metainfo = dict(
    classes=classes,
    palette=[(230, 60, 60), (60, 150, 230), (250, 200, 50), (80, 190, 90), (180, 90, 210)],
)
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        data_root=data_root,
        ann_file=train_ann_file,
        data_prefix=dict(img=train_images),
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
        ann_file=val_ann_file,
        data_prefix=dict(img=val_images),
        pipeline=test_pipeline,
        metainfo=metainfo,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    ann_file=val_ann_file if val_ann_file[0] == '/' else f'{data_root.rstrip("/")}/{val_ann_file}'
)
test_evaluator = val_evaluator
