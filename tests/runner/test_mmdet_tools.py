"""mmdet's own tools run our configs as ours do, and anybody's config gets our hooks by name."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.config import Config

from evit_mm.checkpoint import read_checkpoint
from evit_mm.data import make_shapes
from evit_mm.errors import ConfigError, DataError, EvitError
from tests.conftest import ROOT
from tests.recording import read_losses
from tests.trainings import write_config

MMDET = Path(mmdet.__file__).parent / '.mim' / 'tools'
OURS = ROOT / 'tools'
EXTRA = """
train_cfg = dict(max_epochs=3, val_interval=3)
train_dataloader['batch_size'] = 4
custom_imports['imports'].append('evit_mm.runner')
default_hooks['checkpoint'] = dict(by_epoch=False, interval=4)
default_hooks['record'] = dict(type='RecordLossHook', path={record!r})
randomness = dict(seed=3)
"""
# what a user adds to a config of mmdet's own
NAMED = {
    'data_check': {'type': 'DataCheckHook'},
    'non_finite_loss': {'type': 'NonFiniteLossHook'},
    'resumed_optimizer': {'type': 'ResumedOptimizerHook'},
    'checkpoint': {'type': 'SafeCheckpointHook', 'by_epoch': False, 'interval': 4},
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'set', 24, 8, size=(96, 80), quiet=True)


def config_in(folder, data, extra=''):
    folder.mkdir(exist_ok=True)
    return write_config(folder, data, EXTRA.format(record=str(folder / 'losses.jsonl')) + extra)


def plain_config_in(folder, data, extra=''):
    """A config as a user of mmdet has it, with mmengine's runner and our hooks named in it."""
    cfg = Config.fromfile(config_in(folder, data, extra))
    cfg.pop('runner_type')
    own = ('timer', 'param_scheduler', 'sampler_seed', 'record', 'poison')
    hooks = {name: hook for name, hook in cfg.default_hooks.items() if name in own}
    cfg.default_hooks = {**hooks, **NAMED, 'logger': {'type': 'LoggerHook', 'interval': 1}}
    path = folder / 'plain.py'
    cfg.dump(path)
    return str(path)


def run(tool, *arguments, monkeypatch):
    """Run a tool in this process, as ``python TOOL ARGUMENTS`` would."""
    monkeypatch.setattr(sys, 'argv', [str(tool), *map(str, arguments)])
    monkeypatch.setattr('mmengine.device.utils.DEVICE', 'cpu')
    runpy.run_path(str(tool), run_name='__main__')


def killed(tool, config, work, iteration):
    """Run a training in a process that SIGKILL ends after an iteration."""
    command = [sys.executable, tool, config, '--work-dir', work, '--cfg-options']
    command += ['default_hooks.kill.type=KillHook', f'default_hooks.kill.after_iter={iteration}']
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': ''},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, (done.stdout + done.stderr)[-3000:]


def weights(work):
    return read_checkpoint(work / 'iter_18.pth')['state_dict']


def metrics(work):
    """Return the figures of the newest log, of the test if it has one."""
    (newest,) = sorted(work.glob('2*'))[-1:]
    files = [*newest.glob('*.json'), newest / 'vis_data' / 'scalars.json']
    lines = (json.loads(line) for line in files[0].read_text().splitlines())
    return next({k: v for k, v in x.items() if 'mAP' in k} for x in lines if 'coco/bbox_mAP' in x)


@pytest.fixture(scope='module')
def ours(data, tmp_path_factory):
    """An uninterrupted training by our tool."""
    folder = tmp_path_factory.mktemp('ours')
    config = config_in(folder, data)
    with pytest.MonkeyPatch.context() as patched:
        run(OURS / 'train.py', config, '--work-dir', folder / 'work', monkeypatch=patched)
    assert sorted(read_losses(folder / 'losses.jsonl')) == list(range(18))
    return folder


def assert_same_run(one, other, work='work'):
    a, b = read_losses(one / 'losses.jsonl'), read_losses(other / 'losses.jsonl')
    assert a == b
    a, b = weights(one / 'work'), weights(other / work)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_mmdets_tools_train_and_test_as_ours(ours, data, tmp_path, monkeypatch):
    config = config_in(tmp_path, data)
    run(MMDET / 'train.py', config, '--work-dir', tmp_path / 'work', monkeypatch=monkeypatch)
    assert_same_run(ours, tmp_path)
    assert metrics(tmp_path / 'work') == metrics(ours / 'work')
    checkpoint = ours / 'work' / 'iter_18.pth'
    for name, tool in (('ours', OURS), ('theirs', MMDET)):
        run(tool / 'test.py', config, checkpoint, '--work-dir', tmp_path / name,
            monkeypatch=monkeypatch)  # fmt: skip
    tested = metrics(tmp_path / 'theirs')
    assert tested == metrics(tmp_path / 'ours') == metrics(ours / 'work')
    assert max(tested.values()) > 0  # else equal figures would show little


@pytest.mark.slow
def test_killed_in_our_tool_and_resumed_by_mmdets_is_an_uninterrupted_run(
    ours, data, tmp_path, monkeypatch
):
    config, work = config_in(tmp_path, data), tmp_path / 'work'
    killed(OURS / 'train.py', config, work, 9)
    assert sorted(read_losses(tmp_path / 'losses.jsonl')) == list(range(10))
    # iterations after the last checkpoint, iter_8.pth, are done again
    run(MMDET / 'train.py', config, '--work-dir', work, '--resume', monkeypatch=monkeypatch)
    assert_same_run(ours, tmp_path)


@pytest.mark.slow
def test_a_plain_config_with_our_hooks_is_resumed_exactly(ours, data, tmp_path, monkeypatch):
    config = plain_config_in(tmp_path, data)
    killed(MMDET / 'train.py', config, tmp_path / 'work', 9)
    run(MMDET / 'train.py', config, '--work-dir', tmp_path / 'work', '--resume',
        monkeypatch=monkeypatch)  # fmt: skip
    assert_same_run(ours, tmp_path)
    other = {'_delete_': True, 'type': 'SGD', 'lr': 0.1, 'weight_decay': 0.05}
    config = plain_config_in(tmp_path, data, f'optim_wrapper = dict(optimizer={other})\n')
    with pytest.raises(ConfigError, match='the optimizer SGD or its parameter groups differ'):
        run(MMDET / 'train.py', config, '--work-dir', tmp_path / 'work', '--resume',
            monkeypatch=monkeypatch)  # fmt: skip


def spoil_classes(data, folder):
    """Copy a data set and rename a class that the config names."""
    text = (data / 'annotations' / 'instances_train.json').read_text()
    (folder / 'renamed.json').write_text(text.replace('"star"', '"sun"'))
    return folder / 'renamed.json'


@pytest.mark.slow
@pytest.mark.parametrize('make_config', [config_in, plain_config_in], ids=['ours', 'plain'])
def test_the_data_check_stops_mmdets_tool(data, tmp_path, monkeypatch, make_config):
    config = make_config(tmp_path, data)
    with pytest.raises(DataError, match='have errors(.|\n)*star'):
        run(MMDET / 'train.py', config, '--work-dir', tmp_path / 'work', '--cfg-options',
            f'train_dataloader.dataset.ann_file={spoil_classes(data, tmp_path)}',
            monkeypatch=monkeypatch)  # fmt: skip
    assert not (tmp_path / 'losses.jsonl').exists()


@pytest.mark.slow
@pytest.mark.parametrize('make_config', [config_in, plain_config_in], ids=['ours', 'plain'])
def test_the_guard_stops_mmdets_tool_at_a_nan(data, tmp_path, monkeypatch, make_config):
    poison = "default_hooks['poison'] = dict(type='FatalHook', rank=0, how='nan')\n"
    config = make_config(tmp_path, data, poison)
    with pytest.raises(EvitError, match='loss_cls .nan. became NaN or infinite in iteration 2 on '):
        run(MMDET / 'train.py', config, '--work-dir', tmp_path / 'work', monkeypatch=monkeypatch)
    assert sorted(read_losses(tmp_path / 'losses.jsonl')) == [0]
