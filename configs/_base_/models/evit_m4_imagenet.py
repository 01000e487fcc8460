"""EfficientViT-M4 with the authors' head for the 1000 classes of ImageNet at 224 px."""

model = dict(
    type='EfficientViTClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    # A window is at most as large as its stage's map. The maps have sides of 14, 7 and 4.
    backbone=dict(type='EfficientViT', arch='m4', window_sizes=(7, 7, 4), channels_last=True),
    head=dict(
        type='EfficientViTClsHead',
        in_channels=384,
        num_classes=1000,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    # each batch uses one of the two, each with probability 1/2
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
