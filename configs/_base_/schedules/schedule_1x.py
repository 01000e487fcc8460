"""The authors' detection recipe: 12 epochs, AdamW, steps after 8 and 11, 8 GPUs x 2 images."""

max_epochs = 12
train_cfg = dict(type='ExactTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_epochs,
        by_epoch=True,
        milestones=[max(max_epochs * part // 12, 1) for part in (8, 11)],
        gamma=0.1,
    ),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    # the authors disable weight decay only for these
    paramwise_cfg=dict(custom_keys={'attention_biases': dict(decay_mult=0.0)}),
)
# `--auto-scale-lr` scales the learning rate if GPUs x batch size is not 16
auto_scale_lr = dict(enable=False, base_batch_size=16)
