"""What every run shares: runner, hooks, logging, environment.

All that runs beside model, data and schedule is named here, so mmdet's own ``tools/train.py`` and
``tools/test.py`` do with a config what this project's do. A config of your own gets any of these
by its name, with ``custom_imports = dict(imports=['evit_mm', 'evit_mm.runner'])``:

- ``runner_type='CheckedRunner'``: checkpoints are read safely and must fit; ``resume=True`` finds
  the last whole one; errors of a config are one sentence.
- ``SafeCheckpointHook``: a checkpoint is whole or not there.
- ``DataCheckHook``: the data sets are checked before anything long starts.
- ``NonFiniteLossHook``: a loss that is NaN stops the run before it reaches the weights.
- ``ResumedOptimizerHook``: a run is resumed with the optimizer it was trained with.
- ``ConsoleLoggerHook``: short lines on the console, all of them in the log file.
- ``BestMetricHook`` and ``SummaryHook``: ``summary.json``, and the commands to type next.
- ``train_cfg.type='ExactTrainLoop'``, in the schedules: an interrupted run that is resumed does
  bit for bit what an uninterrupted one does.

``default_hooks.NAME=None`` switches a hook off.
"""

custom_imports = dict(
    imports=['evit_mm', 'evit_mm.runner', 'evit_mm.models.heads', 'evit_mm.evaluation.coco_metric'],
    allow_failed_imports=False,
)
default_scope = 'mmdet'
runner_type = 'CheckedRunner'

# not in custom_hooks, which a config of your own replaces as a whole
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='ConsoleLoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # by name: 'auto' takes the first figure, which with classwise=True is one class's
    # by_epoch=False, interval=500 saves within epochs too
    checkpoint=dict(
        type='SafeCheckpointHook', interval=1, max_keep_ckpts=2, save_best='coco/bbox_mAP'
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
    data_check=dict(type='DataCheckHook'),
    non_finite_loss=dict(type='NonFiniteLossHook', policy='stop'),
    resumed_optimizer=dict(type='ResumedOptimizerHook'),
    best_metric=dict(type='BestMetricHook'),
    summary=dict(type='SummaryHook'),
)
custom_hooks = [dict(type='NumClassCheckHook')]

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
