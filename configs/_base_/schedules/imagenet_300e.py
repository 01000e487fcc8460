"""The authors' ImageNet recipe: 300 epochs, AdamW, cosine, batch size 2048 (8 GPUs x 256 images).

Their learning rate is 1e-3 x batch size / 512 and changes once per epoch. Their cosine starts at
epoch 0, during the warm-up. Here it starts after the warm-up. At the same epoch, the two learning
rates differ by at most 1.6 % of the peak.
"""

max_epochs = 300
warmup_epochs = min(5, max_epochs // 2)
train_cfg = dict(type='ExactTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()

param_scheduler = [
    # 1e-6 in epoch 0, full learning rate in epoch 5: mmengine counts both ends
    dict(type='LinearLR', start_factor=1e-6 / 4e-3, by_epoch=True, begin=0, end=warmup_epochs + 1),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs - warmup_epochs,
        eta_min=1e-5,
        by_epoch=True,
        begin=warmup_epochs,
        end=max_epochs,
    ),
]
optim_wrapper = dict(
    type='AGCOptimWrapper',
    clip_factor=0.02,
    optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.025),
    # As in timm, vectors (biases and BatchNorm) have no weight decay. The authors also exclude the
    # attention biases.
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={'attention_biases': dict(decay_mult=0.0)},
    ),
)
# `--auto-scale-lr` scales the learning rate if GPUs x batch size is not 2048
auto_scale_lr = dict(enable=False, base_batch_size=2048)
