"""Runner, hooks, logging and environment of all detection trainings.

The config names everything that runs in addition to the model, the data and the schedule. mmdet's
own ``tools/train.py`` and ``tools/test.py`` therefore give the same results as the tools here. To
use these parts in your own config, add
``custom_imports = dict(imports=['evit_mm', 'evit_mm.runner'])``:

- ``runner_type='CheckedRunner'``: reads checkpoints safely and checks that they fit the model.
  ``resume=True`` finds the last complete checkpoint. Config errors are short.
- ``SafeCheckpointHook``: never leaves an incomplete checkpoint.
- ``DataCheckHook``: checks the data sets before the training starts.
- ``NonFiniteLossHook``: stops on a NaN loss before it changes the weights.
- ``ResumedOptimizerHook``: a resumed training follows the config, also where it has changed.
- ``ConsoleLoggerHook``: prints short lines to the console and full lines to the log file.
- ``PictureHook``: draws the pictures of ``--show-dir``, in the subfolders of the images.
- ``BestMetricHook`` and ``SummaryHook``: write ``summary.json`` and print the next commands.
- ``train_cfg.type='ExactTrainLoop'`` (in the schedules): a resumed training is bit-identical to an
  uninterrupted one.

``default_hooks.NAME=None`` disables a hook.
"""

custom_imports = dict(
    imports=['evit_mm', 'evit_mm.runner', 'evit_mm.models.heads', 'evit_mm.evaluation.coco_metric'],
    allow_failed_imports=False,
)
# A child config and --cfg-options can set these variables of the bases: see docs/your_data.md
variables = (
    'arch',
    'batch_size',
    'classes',
    'data_root',
    'max_epochs',
    'scale',
    'train_ann_file',
    'train_images',
    'val_ann_file',
    'val_images',
)
default_scope = 'mmdet'
runner_type = 'CheckedRunner'

# not in custom_hooks, because a child config replaces that list as a whole
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='ConsoleLoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # save_best='auto' would use the first metric. With classwise=True, this is the AP of one class.
    # by_epoch=False, interval=500 also saves within epochs.
    checkpoint=dict(
        type='SafeCheckpointHook', interval=1, max_keep_ckpts=2, save_best='coco/bbox_mAP'
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='PictureHook'),
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
# without a name: otherwise a second training in the process would log into the first one's files
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
