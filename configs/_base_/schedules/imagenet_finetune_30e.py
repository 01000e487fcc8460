"""Fine-tuning at a higher resolution: 30 epochs, almost no weight decay, batch 2048.

Epochs and decay are the authors' (arXiv 2305.07027); their rate is not published. Peak, start and
floor of the rate are those with which SHViT was fine-tuned in the authors' code base
(github.com/ysj9909/SHViT, issue 5).
"""

_base_ = './imagenet_300e.py'

train_cfg = dict(max_epochs=30)
param_scheduler = [
    dict(type='LinearLR', start_factor=2e-8 / 4e-5, by_epoch=True, begin=0, end=6),
    dict(type='CosineAnnealingLR', T_max=25, eta_min=2e-7, by_epoch=True, begin=5, end=30),
]
optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=1e-8))
