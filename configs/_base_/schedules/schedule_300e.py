"""RTMDet's schedule: 300 epochs, AdamW, EMA, batch size 256 (8 GPUs x 32 images).

The last 20 epochs, a fifteenth of them, use no mosaics. The learning rate is constant in the first
half and follows a cosine in the second half.
"""

_base_ = '../default_runtime.py'

max_epochs = 300
last_epochs, base_lr = max_epochs // 15, 0.004
train_cfg = dict(
    type='ExactTrainLoop',
    max_epochs=max_epochs,
    val_interval=10,
    dynamic_intervals=[(max_epochs - last_epochs, 1)],
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=1000),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=max_epochs // 2,
        end=max_epochs,
        T_max=max_epochs - max_epochs // 2,
        eta_min=base_lr * 0.05,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=base_lr, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        bypass_duplicate=True,  # RTMDet's levels share their convolutions
        custom_keys={'attention_biases': dict(decay_mult=0.0)},
    ),
)
custom_hooks = [
    *_base_.custom_hooks,
    # also enables YOLOX's L1 loss, which RTMDet's head does not use
    dict(type='YOLOXModeSwitchHook', num_last_epochs=last_epochs, priority=48),
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=0.0002,
        update_buffers=True,
        priority=49,
    ),
]
# `--auto-scale-lr` scales the learning rate if GPUs x batch size is not 256
auto_scale_lr = dict(enable=False, base_batch_size=256)
