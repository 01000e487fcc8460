"""Training, stopping, resuming, testing, checkpoints, export, and mmdet's own tool."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from mmengine.hooks import Hook

from evit_mm.checkpoint import read_checkpoint
from evit_mm.data import make_shapes
from evit_mm.deploy.export import export
from evit_mm.deploy.export.evaluation import evaluate
from evit_mm.deploy.export.files import TORCH
from evit_mm.errors import CheckpointError, EvitError
from evit_mm.runner.config import load_config
from evit_mm.runner.train import train
from evit_mm.utils.provenance import need_torch
from tests.configs.test_drop_in import BLOCKS
from tests.conftest import ROOT, randomise
from tests.hostile import Call
from tests.mmdet_tool import train_with_mmdet
from tests.trainings import write_config


class StoppedError(Exception):
    pass


class StopHook(Hook):
    """Stop after the first iteration, when its checkpoint is there."""

    priority = 'LOWEST'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        raise StoppedError


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'set', 16, 4, size=(96, 80), quiet=True)


@pytest.fixture(scope='module')
def config(data, tmp_path_factory):
    extra = (
        'train_cfg.update(max_epochs=1, val_interval=1)\n'
        'default_hooks["checkpoint"] = dict(by_epoch=False, interval=1)\n'
    )
    return write_config(tmp_path_factory.mktemp('config'), data, extra)


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
    """The folder of a training of two iterations."""
    folder = tmp_path_factory.mktemp('whole')
    runner = train(config, str(folder), seed=1, device='cpu')
    assert runner.iter == 2
    return folder


def test_a_stopped_training_goes_on_to_the_same_weights(config, trained, tmp_path):
    with pytest.raises(StoppedError):
        train(config, str(tmp_path), seed=1, device='cpu', hooks=[StopHook()])
    assert not (tmp_path / 'iter_2.pth').exists()
    runner = train(config, str(tmp_path), resume='auto', device='cpu')
    assert runner.iter == 2
    whole, resumed = (read_checkpoint(f / 'iter_2.pth') for f in (trained, tmp_path))
    assert whole['state_dict'].keys() == resumed['state_dict'].keys()
    for name, value in whole['state_dict'].items():
        assert torch.equal(value, resumed['state_dict'][name]), name
    log = resumed['message_hub']['log_scalars']['train/loss']
    assert len(log.data[0]) == 2  # mmengine's history of both runs, read weights-only


def test_plain_and_fused_find_the_same(config, trained, tmp_path):
    arguments = config, trained / 'iter_2.pth'
    plain, fused = tmp_path / 'plain.json', tmp_path / 'fused.json'
    options = ('--out', plain, '--device', 'cpu', '--work-dir', tmp_path)
    done = subprocess.run(
        [sys.executable, *map(str, ('tools/test.py', *arguments, *options))],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    evaluate(*arguments, out=str(fused), work_dir=str(tmp_path), device='cpu', fuse=True)
    scores = [
        sorted(box['score'] for box in json.loads(file.read_text())) for file in (plain, fused)
    ]
    assert scores[0] and scores[0] == pytest.approx(scores[1], abs=1e-3)


@pytest.mark.parametrize('legacy', [False, True])
def test_a_hostile_file_is_refused_and_nothing_in_it_runs(config, trained, tmp_path, legacy):
    trap = tmp_path / 'went_off'
    content = read_checkpoint(trained / 'iter_2.pth')
    content['message_hub']['hidden'] = Call(os.mkdir, str(trap))
    path = tmp_path / 'iter_2.pth'
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match='was refused: .*No code from it was run'):
        train(config, str(tmp_path / 'work'), resume=str(path), device='cpu')
    with pytest.raises(CheckpointError, match='was refused: .*No code from it was run'):
        evaluate(config, path, work_dir=str(tmp_path / 'work'), device='cpu')
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()


def test_export(data, tmp_path):
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    config = write_config(tmp_path, data)
    init_default_scope('mmdet')
    model = randomise(MODELS.build(load_config(config).model))
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'weights.pth')
    arguments = config, tmp_path / 'weights.pth', tmp_path / 'model.onnx'
    try:
        need_torch(TORCH, 'An export')
    except EvitError as error:
        with pytest.raises(EvitError, match=f'An export needs torch {TORCH} or newer'):
            export(*arguments)
        pytest.skip(str(error))
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        if importlib.util.find_spec(package) is None:
            with pytest.raises(EvitError, match=f"needs the package '{package}'"):
                export(*arguments)
            pytest.skip(f'{package} is not installed')
    written = export(*arguments)
    assert written.file.is_file() and written.agreement is not None


def test_mmdets_own_tool_trains(data, tmp_path):
    """One of the blocks; ``tests/configs/test_drop_in.py`` has all, among what is slow."""
    train_with_mmdet(BLOCKS['Faster R-CNN'], data, tmp_path)
