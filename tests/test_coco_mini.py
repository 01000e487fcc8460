"""The M4 COCO config on real COCO images: only data, scale and iterations differ."""

import json

import pytest

from evit_mm import engine

from .conftest import ROOT
from .recording import read_losses

CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['evit_mm', 'evit_mm.heads', 'tests.recording'])
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


@pytest.mark.slow
def test_trains_saves_resumes_evaluates_and_draws(real_data, tmp_path):
    record = tmp_path / 'losses.jsonl'
    config = tmp_path / 'coco_mini.py'
    config.write_text(
        CONFIG.format(
            base=str(ROOT / 'configs' / 'retinanet_evit_m4_coco.py'),
            data=str(real_data('coco_mini')),
            record=str(record),
        )
    )
    work = tmp_path / 'work'
    runner = engine.train(config, str(work), seed=0, device='cpu')
    losses = read_losses(record)
    assert sorted(losses) == list(range(20))
    # each epoch sees the same eight images
    first, last = (sum(losses[i] for i in part) / 4 for part in (range(4), range(16, 20)))
    assert last < 0.95 * first

    runner = engine.train(
        config,
        str(work),
        resume='auto',
        cfg_options={'train_cfg.max_epochs': 6, 'train_cfg.val_interval': 6},
        device='cpu',
    )
    assert runner.iter == 24 and sorted(read_losses(record)) == list(range(24))
    scalars = next(work.glob('*/vis_data/scalars.json')).read_text().splitlines()
    assert 'coco/bbox_mAP' in json.loads(scalars[-1])

    metrics = engine.test(
        config,
        work / 'epoch_6.pth',
        show_dir=str(tmp_path / 'pictures'),
        work_dir=str(work),
        device='cpu',
    )
    assert set(metrics) >= {'coco/bbox_mAP', 'coco/bbox_mAP_s'}
    assert len(runner.val_evaluator.metrics[0].cat_ids) == 80
    assert len(list((tmp_path / 'pictures').glob('*.jpg'))) == 12
