"""A COCO config at a scale that two cores bear: only data, size and iterations differ."""

from tests.conftest import ROOT

CONFIG = """
_base_ = {base!r}
custom_imports = dict(
    imports=['evit_mm', 'evit_mm.models.heads', 'evit_mm.evaluation.coco_metric', 'tests.recording']
)
data_root = {data!r}
# there is no network here, so no ImageNet weights
model = dict(backbone=dict(init_cfg=None))
train_pipeline = _base_.train_pipeline
train_pipeline[2]['scale'] = (320, 192)
test_pipeline = _base_.test_pipeline
test_pipeline[1]['scale'] = (320, 192)
train_dataloader = dict(
    dataset=dict(data_root=data_root, pipeline=train_pipeline, indices=8))
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline, indices=12))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + '/annotations/instances_val2017.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=5, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=5),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
default_hooks = dict(logger=dict(interval=1))
custom_hooks = [dict(type='NumClassCheckHook'), dict(type='RecordLossHook', path={record!r})]
"""


def write_config(path, base, data, record):
    """Write a child of ``configs/BASE.py``: 20 iterations on 8 images, 12 to evaluate on."""
    base = str(ROOT / 'configs' / f'{base}.py')
    path.write_text(CONFIG.format(base=base, data=str(data), record=str(record)))
    return path


def assert_loss_falls(losses):
    """Compare the first and last epoch, which see the same eight images."""
    assert sorted(losses) == list(range(20))
    first, last = (sum(losses[i] for i in part) / 4 for part in (range(4), range(16, 20)))
    assert last < 0.95 * first
