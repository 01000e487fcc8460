"""Runner, hooks, logging and environment of all ImageNet trainings; see ``default_runtime.py``."""

custom_imports = dict(
    imports=[
        'evit_mm',
        'evit_mm.runner',
        'evit_mm.models.classifier',
        'evit_mm.runner.adaptive_clipping',
    ],
    allow_failed_imports=False,
)
# A child config and --cfg-options can set these variables of the bases: see docs/your_data.md
variables = ('arch', 'batch_size', 'data_root', 'max_epochs', 'scale')
default_scope = 'mmpretrain'
runner_type = 'CheckedRunner'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='ConsoleLoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='SafeCheckpointHook',
        interval=1,
        max_keep_ckpts=2,
        save_best='accuracy/top1',
        rule='greater',
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='ClsVisualizationHook', enable=False),
    data_check=dict(type='DataCheckHook'),
    non_finite_loss=dict(type='NonFiniteLossHook', policy='stop'),
    resumed_optimizer=dict(type='ResumedOptimizerHook'),
    best_metric=dict(type='BestMetricHook'),
    summary=dict(type='SummaryHook'),
)
custom_hooks = [
    # Decay 0.99996, BatchNorm statistics included. Validation and test use the plain weights, as
    # the authors report them.
    dict(
        type='EMAHook',
        momentum=4e-5,
        update_buffers=True,
        evaluate_on_ema=False,
        evaluate_on_origin=True,
    ),
]

env_cfg = dict(
    cudnn_benchmark=True,  # all images have the same size
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
# without a name: otherwise a second training in the process would log into the first one's files
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
