"""What every run shares: hooks, logging, environment."""

custom_imports = dict(
    imports=['evit_mm.runner', 'evit_mm.models.heads', 'evit_mm.evaluation.coco_metric'],
    allow_failed_imports=False,
)
default_scope = 'mmdet'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # by name: 'auto' takes the first figure, which with classwise=True is one class's
    # written whole or not at all; by_epoch=False, interval=500 saves within epochs too
    checkpoint=dict(
        type='SafeCheckpointHook', interval=1, max_keep_ckpts=2, save_best='coco/bbox_mAP'
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
)
custom_hooks = [dict(type='NumClassCheckHook'), dict(type='DropCheckpointConfigHook')]

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
# without a name, so that a second run in one process does not log into the first one's files
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
