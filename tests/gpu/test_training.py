"""Training: mixed precision, resuming, one process of several."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from mmengine.registry import init_default_scope

from evit_mm.data import make_shapes
from evit_mm.errors import ConfigError
from evit_mm.runner import batch_size
from evit_mm.runner.build import set_device
from evit_mm.runner.config import load_config
from evit_mm.runner.train import train
from tests import kills
from tests.conftest import ROOT, relative_error
from tests.recording import read_losses
from tests.runner import test_resuming
from tests.trainings import write_config

EPOCHS = """
train_cfg = dict(max_epochs=2, val_interval=2)
train_dataloader['batch_size'] = 4
custom_hooks = [dict(type='RecordLossHook', path={record!r})]
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'set', 24, 4, size=(96, 80), quiet=True)


def test_one_amp_step(device, is_gpu, half, figures, monkeypatch):
    """A step with loss scaling is a float32 step up to half precision's rounding."""
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmengine.optim import build_optim_wrapper

    if not is_gpu:
        test_resuming.amp_on_the_cpu(monkeypatch)
    cfg = load_config('retinanet_evit_m4_bccd')
    set_device(device)
    losses, changes = {}, {}
    for kind in ('OptimWrapper', 'AmpOptimWrapper'):
        init_default_scope('mmdet')
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        model.to(device).train()
        options = {'type': kind, 'optimizer': {'type': 'SGD', 'lr': 0.01}}
        if kind == 'AmpOptimWrapper':
            # at the usual 65536 the first steps may overflow, and so be skipped
            scale = {'init_scale': 1024.0}
            options.update(loss_scale=scale, dtype=str(half).removeprefix('torch.'))
        wrapper = build_optim_wrapper(model, options)
        torch.manual_seed(0)
        batch = demo_mm_inputs(2, [[3, 96, 128]] * 2, num_classes=3)
        before = model.bbox_head.retina_cls.weight.detach().clone()
        found = model.train_step(batch, wrapper)
        losses[kind] = float(found['loss'])
        changes[kind] = model.bbox_head.retina_cls.weight.detach() - before
        if kind == 'AmpOptimWrapper':
            figures['loss scale'] = wrapper.loss_scaler.get_scale()
    figures['loss, float32'], figures['loss, AMP'] = losses.values()
    plain, mixed = changes.values()
    figures['error of a step'] = relative_error(mixed, plain)
    assert losses['AmpOptimWrapper'] == pytest.approx(losses['OptimWrapper'], rel=0.02)
    assert plain.any() and figures['error of a step'] < 0.1


@pytest.mark.parametrize('precision', ['float32', 'AMP'])
@pytest.mark.parametrize('deterministic', [True, False], ids=['deterministic', 'free'])
def test_an_interrupted_run_and_an_undisturbed_one(
    data, tmp_path, device, is_gpu, precision, deterministic, figures, monkeypatch
):
    """Equal bit for bit with --deterministic; without, how far a GPU's sums let them drift."""
    extra, amp = kills.OFTEN, precision == 'AMP'
    if amp and not is_gpu:
        with pytest.raises(ConfigError, match='--amp needs a GPU'):
            train(write_config(tmp_path, data), str(tmp_path), amp=True, device=device)
        test_resuming.amp_on_the_cpu(monkeypatch)
        extra, amp = test_resuming.AMP, False
    config = write_config(tmp_path, data, test_resuming.COMMON + test_resuming.NOISY + extra)
    arguments = {'device': device, 'amp': amp, 'deterministic': deterministic}
    try:
        test_resuming.train(tmp_path, config, 'whole', **arguments)
        stop = test_resuming.InterruptHook(after_iter=7)
        test_resuming.train(tmp_path, config, 'cut', stop, **arguments)
        resumed = test_resuming.train(tmp_path, config, 'cut', **arguments)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    difference, lost = kills.differences(tmp_path / 'whole', tmp_path / 'cut', 1)
    figures.update({'largest difference': difference, 'lost iterations': lost})
    assert resumed.iter == 12 and lost == 0
    if deterministic:
        assert difference == 0


def test_one_process_of_several(data, tmp_path, device, is_gpu, figures):
    """DistributedDataParallel, over NCCL on a GPU, trains as a process of its own does."""
    records = []
    for name in ('alone', 'ddp'):
        folder = tmp_path / name
        folder.mkdir()
        records.append(folder / 'losses.jsonl')
        config = write_config(folder, data, EPOCHS.format(record=str(records[-1])))
        command = [sys.executable]
        if name == 'ddp':
            port = str(29700 + os.getpid() % 200)
            command += [
                '-m',
                'torch.distributed.run',
                '--nproc_per_node=1',
                f'--master_port={port}',
            ]
        command += ['tools/train.py', config, '--work-dir', str(folder), '--seed', '3']
        command += ['--device', device, *(['--amp'] if is_gpu else [])]
        command += ['--launcher', 'pytorch'] if name == 'ddp' else []
        env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path[1:]])}
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr[-2000:]
        summary = json.loads((folder / 'summary.json').read_text())
        figures[f'AP, {name}'] = summary['best']['value'] if summary.get('best') else None
    alone, ddp = map(read_losses, records)
    assert alone.keys() == ddp.keys() and len(ddp) == 12
    figures['largest difference of a loss'] = max(
        abs(ddp[key] - alone[key]) / abs(alone[key]) for key in alone
    )
    # AMP's first steps may be skipped alike; sums on a GPU are in no fixed order
    assert figures['largest difference of a loss'] < (0.05 if is_gpu else 1e-4)


def test_a_search_for_the_largest_batch_and_a_training_with_it(
    tmp_path, device, is_gpu, figures, monkeypatch, capsys
):
    """A child process that may use 1 GiB runs out of memory, goes on and finds a size."""
    if not is_gpu:
        pytest.skip('--batch-size auto needs a CUDA GPU')
    data = make_shapes(tmp_path / 'set', 256, 4, size=(96, 80), quiet=True)
    config = write_config(tmp_path, data, 'train_cfg = dict(max_epochs=1)\n')
    set_device(device)
    share = 2**30 / torch.cuda.mem_get_info()[1]
    limit = f'torch.cuda.set_per_process_memory_fraction({share}, {torch.cuda.current_device()})'
    monkeypatch.setattr(batch_size, 'CHILD', f'import torch; {limit}; {batch_size.CHILD}')
    runner = train(
        config,
        str(tmp_path / 'work'),
        device=device,
        batch_size='auto',
        cfg_options={'scale': (640, 640)},
    )
    said = capsys.readouterr().out
    sizes = [int(size) for size in re.findall(r'^  (\d+): \d\.\d\d GiB$', said, re.M)]
    over = [int(size) for size in re.findall(r'^  (\d+): out of memory$', said, re.M)]
    figures['largest batch size in 1 GiB'] = found = max(sizes)
    assert found < min(over) <= 9 * found / 8 + 1 and min(over) <= 256
    assert runner.train_dataloader.batch_sampler.batch_size == found and runner.epoch == 1
