"""The M4 COCO config on real COCO images: only data, scale and iterations differ."""

import gc
import json
import weakref

import pytest

from evit_mm.runner.test import test as run_test
from evit_mm.runner.train import train
from tests.coco_mini import assert_loss_falls, write_config
from tests.recording import read_losses


@pytest.mark.slow
def test_trains_saves_evaluates_and_draws(real_data, tmp_path):
    record = tmp_path / 'losses.jsonl'
    data = real_data('coco_mini')
    config = write_config(tmp_path / 'coco_mini.py', 'retinanet_evit_m4_coco', data, record)
    work = tmp_path / 'work'
    runner = train(config, str(work), seed=0, device='cpu')
    assert_loss_falls(read_losses(record))

    scalars = next(work.glob('*/vis_data/scalars.json')).read_text().splitlines()
    assert 'coco/bbox_mAP' in json.loads(scalars[-1])

    metrics = run_test(
        config,
        work / 'epoch_5.pth',
        show_dir=str(tmp_path / 'pictures'),
        work_dir=str(work),
        device='cpu',
    )
    assert set(metrics) >= {'coco/bbox_mAP', 'coco/bbox_mAP_s'}
    assert len(runner.val_evaluator.metrics[0].cat_ids) == 80
    assert len(list((tmp_path / 'pictures').glob('*.jpg'))) == 12

    ended = weakref.ref(runner)
    del runner
    gc.collect()
    assert ended() is None  # and with it the workers of its data
