"""COCO 2017 in mosaics of four images at 640x640, as in YOLOX-tiny; tests use single images.

RTMDet uses this pipeline too. RTMDet's own pipeline caches earlier images, and a resumed training
cannot restore the cache. Without a cache, resuming is exact.
"""

_base_ = './coco_detection.py'

scale = (640, 640)
batch_size = 32
img_scale = scale
pad_val = dict(img=(114.0, 114.0, 114.0))
train_pipeline = [
    dict(type='Mosaic', img_scale=img_scale, pad_val=114.0),
    dict(
        type='RandomAffine',
        scaling_ratio_range=(0.5, 1.5),
        border=(-img_scale[0] // 2, -img_scale[1] // 2),
    ),
    dict(type='YOLOXHSVRandomAug'),
    dict(type='RandomFlip', prob=0.5),
    # for the last epochs, which have no mosaics
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    dict(type='Pad', pad_to_square=True, pad_val=pad_val),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), keep_empty=False),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    dict(type='Pad', pad_to_square=True, pad_val=pad_val),
    *_base_.test_pipeline[2:],
]
images = _base_.train_dataloader.dataset
images.update(
    pipeline=_base_.train_pipeline[:2], filter_cfg=dict(filter_empty_gt=False, min_size=32)
)
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=8,
    batch_sampler=None,
    dataset=dict(
        _delete_=True, type='MultiImageMixDataset', dataset=images, pipeline=train_pipeline
    ),
)
val_dataloader = dict(batch_size=8, num_workers=4, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
