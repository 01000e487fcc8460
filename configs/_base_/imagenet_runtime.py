"""What every classification run shares, beside what ``default_runtime.py`` names."""

_base_ = './default_runtime.py'

custom_imports = dict(
    imports=[
        'evit_mm',
        'evit_mm.runner',
        'evit_mm.models.classifier',
        'evit_mm.runner.adaptive_clipping',
    ]
)
default_scope = 'mmpretrain'

default_hooks = dict(
    logger=dict(interval=100),
    checkpoint=dict(save_best='accuracy/top1', rule='greater'),
    visualization=dict(_delete_=True, type='ClsVisualizationHook', enable=False),
)
custom_hooks = [
    # decay 0.99996, statistics of BatchNorm too; validation and test use the plain weights, which
    # the authors report
    dict(
        type='EMAHook',
        momentum=4e-5,
        update_buffers=True,
        evaluate_on_ema=False,
        evaluate_on_origin=True,
    ),
]

env_cfg = dict(cudnn_benchmark=True)  # all images have one size
visualizer = dict(type='UniversalVisualizer')
