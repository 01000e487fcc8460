"""COCO 2017 in ``data/coco`` at 1333x800 with flips, evaluated with COCO's twelve metrics."""

dataset_type = 'TolerantCocoDataset'  # mmdet's CocoDataset, also for incomplete annotation files
data_root = 'data/coco/'
train_ann_file = 'annotations/instances_train2017.json'
val_ann_file = 'annotations/instances_val2017.json'
train_images = 'train2017/'
val_images = 'val2017/'
classes = None  # CocoDataset names COCO's 80 classes
scale = (1333, 800)
batch_size = 2
backend_args = None

num_classes = len(classes) if classes else 80
metainfo = dict(classes=classes) if classes else dict()

train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),  # after Resize: the boxes keep the original scale
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file=train_ann_file,
        data_prefix=dict(img=train_images),
        metainfo=metainfo,
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
        backend_args=backend_args,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file=val_ann_file,
        data_prefix=dict(img=val_images),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=backend_args,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='HotCocoMetric',  # same metrics as CocoMetric, which uses pycocotools
    ann_file=val_ann_file if val_ann_file[0] == '/' else f'{data_root.rstrip("/")}/{val_ann_file}',
    metric='bbox',
    proposal_nums=(1, 10, 100),  # COCO's own recall columns
    backend_args=backend_args,
)
test_evaluator = val_evaluator
