"""Two processes take the steps of one, on the CPU over gloo."""

import os
import subprocess
import sys

import pytest

from evit_mm.datasets import make_shapes

from .conftest import ROOT
from .recording import read_losses
from .test_engine import write_config

EXTRA = """
model['backbone']['norm_eval'] = True
train_dataloader['batch_size'] = {batch_size}
train_dataloader['dataset']['pipeline'] = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='PackDetInputs'),
]
train_cfg = dict(max_epochs=1, val_interval=1)
custom_hooks = [dict(type='RecordLossHook', path={record!r})]
"""


def launch(script, args, processes):
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    env.update(PORT=str(29600 + os.getpid() % 300), PYTHON=sys.executable)
    args = [str(a) for a in args]
    if processes == 1:
        command = [sys.executable, f'tools/{script}.py', *args]
    else:
        cut = 1 if script == 'train' else 2
        command = [f'tools/dist_{script}.sh', *args[:cut], str(processes), *args[cut:]]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_two_processes_of_four_equal_one_of_eight(tmp_path):
    data = make_shapes(tmp_path / 'set', 80, 9, size=(96, 96), quiet=True)
    losses, average_precision = {}, {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        record = folder / 'losses.jsonl'
        extra = EXTRA.format(batch_size=8 // processes, record=str(record))
        config = write_config(folder, data, extra)
        args = [config, '--work-dir', folder, '--seed', 3, '--device', 'cpu']
        launch('train', args, processes)
        losses[processes] = read_losses(record)
        args = [
            config,
            tmp_path / '1' / 'epoch_1.pth',
            '--work-dir',
            folder,
            '--device',
            'cpu',
            '--cfg-options',
            'model.test_cfg.score_thr=0.0',
        ]
        # nine images on two processes: the padded tenth must not count
        log = launch('test', args, processes)
        average_precision[processes] = [
            line.split('=')[-1] for line in log.splitlines() if 'Average' in line
        ]
    assert sorted(losses[1]) == sorted(losses[2]) == list(range(10))
    for iteration, loss in losses[1].items():
        assert losses[2][iteration] == pytest.approx(loss, rel=1e-4), iteration
    assert len(average_precision[1]) == 12
    assert average_precision[1] == average_precision[2]
