"""Exact resuming from every iteration and the times of evaluation, with a network of two layers."""

import json
import os
import sys

import numpy as np
import pytest
import torch
import torch.multiprocessing
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn

from evit_mm.checkpoint import read_checkpoint
from evit_mm.errors import ConfigError, DataError
from evit_mm.runner.build import CheckedRunner
from evit_mm.runner.train import how_to_continue
from tests.kills import free_port


@MODELS.register_module(force=True)
class Layers(BaseModel):
    """Everything that a resumed run must restore: statistics, momentum, random numbers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)
        )

    def forward(self, inputs, number=None, mode='tensor'):
        found = self.body(inputs)
        if mode == 'loss':
            return {'loss': (found - inputs.sum(1, keepdim=True)).square().mean()}
        return [{'value': float(x)} for x in found]


@DATASETS.register_module(force=True)
class Points:
    """Ten points with noise; ``broken`` ones cannot be read."""

    metainfo = {'classes': ('point',)}
    failures = []

    def __init__(self, broken=()):
        self.broken = broken

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index in self.broken:
            self.failures.append(index)
            raise AssertionError(f'failed to load image: {index}.jpg')
        inputs = torch.tensor([index, 1.0, -index]) + torch.from_numpy(np.random.rand(3))
        return {'inputs': inputs.float() / 10, 'number': index}

    def get_data_info(self, index):
        return {'img_path': f'{index}.jpg'}


@METRICS.register_module(force=True)
class Mean(BaseMetric):
    """The mean of the predictions."""

    def process(self, data_batch, data_samples):
        self.results.extend(sample['value'] for sample in data_samples)

    def compute_metrics(self, results):
        return {'mean': sum(results) / len(results)}


class Watch(Hook):
    """Note the batches with their losses, and the epochs that are evaluated."""

    def __init__(self):
        self.losses, self.evaluated, self.seeds = {}, [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        place = (runner.iter, runner.epoch, batch_idx)
        self.losses[place] = (data_batch['number'].tolist(), outputs['loss'].item())
        self.seeds.append(torch.initial_seed())

    def after_val_epoch(self, runner, metrics=None):
        self.evaluated.append(runner.epoch)


def run(folder, load_from=None, checkpoint=None, broken=(), batch_size=4, **options):
    """Train with three batches an epoch and an optimizer step after every fourth."""
    loader = {
        'batch_size': batch_size,
        'dataset': {'type': 'Points', 'broken': broken},
        'sampler': {'type': 'DefaultSampler', 'shuffle': True},
        'collate_fn': {'type': 'default_collate'},
    }
    train_cfg = {'type': 'ExactTrainLoop', 'max_epochs': 2, **options.pop('train_cfg', {})}
    cfg = {
        'model': {'type': 'Layers'},
        'work_dir': str(folder),
        'experiment_name': str(folder),  # else two runs of one second share mmengine's hub
        'train_dataloader': loader,
        'train_cfg': {key: value for key, value in train_cfg.items() if value is not None},
        'val_dataloader': {**loader, 'dataset': {'type': 'Points'}},
        'val_cfg': {},
        'val_evaluator': {'type': 'Mean'},
        'optim_wrapper': {
            'optimizer': {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9},
            'accumulative_counts': 4,
        },
        'randomness': {'seed': 3},
        'default_hooks': {'checkpoint': {'type': 'SafeCheckpointHook', **(checkpoint or {})}},
        'default_scope': 'mmengine',
        'runner_type': 'CheckedRunner',
        'log_level': 'WARNING',
        **options,
    }
    if load_from:
        cfg.update(load_from=str(load_from), resume=True)
    runner, watch = CheckedRunner.from_cfg(Config(cfg)), Watch()
    runner.register_hook(watch)
    runner.train()
    return runner, watch


def test_a_run_resumed_after_any_iteration_is_the_whole_run(tmp_path):
    often = {'by_epoch': False, 'interval': 1}
    whole, seen = run(tmp_path, checkpoint=often)
    assert list(seen.losses) == [(i, i // 3, i % 3) for i in range(6)] and seen.evaluated == [1, 2]
    numbers = [sorted(sum((seen.losses[i, i // 3, i % 3][0] for i in part), []))
               for part in (range(3), range(3, 6))]  # fmt: skip
    assert numbers == [list(range(10))] * 2
    assert len(set(seen.seeds)) == 6  # no iteration has the random numbers of another
    files = [read_checkpoint(tmp_path / f'iter_{i}.pth') for i in range(1, 7)]
    kept = [len(file.get('gradients', ())) for file in files]
    assert kept == [6, 6, 6, 0, 6, 0]  # gradients between the steps only
    for done in range(1, 7):
        file = tmp_path / f'iter_{done}.pth'
        resumed, again = run(tmp_path / str(done), file, checkpoint=often)
        assert again.losses == {k: x for k, x in seen.losses.items() if k[0] >= done}, done
        assert again.evaluated == ([1, 2] if done <= 3 else [2])
        a, b = whole.model.state_dict(), resumed.model.state_dict()
        assert all(torch.equal(a[name], b[name]) for name in a), done
    with pytest.raises(ConfigError, match='middle of an epoch of 3 batches, but this run has 5'):
        run(tmp_path / 'other', tmp_path / 'iter_4.pth', batch_size=2)


@pytest.mark.parametrize(
    ('save_best', 'cut'),
    [
        (None, {'epoch_1': [1, 2], 'epoch_2': [2]}),  # saved before the evaluation
        ('mean', {'epoch_1': [2]}),  # saved once more after it, with the name of the best
    ],
)
def test_an_evaluation_is_done_once_wherever_the_run_was_cut(tmp_path, save_best, cut):
    rule = 'greater' if save_best else None
    _, whole = run(tmp_path, checkpoint={'interval': 1, 'save_best': save_best, 'rule': rule})
    for name, evaluated in cut.items():
        _, again = run(tmp_path / name, tmp_path / f'{name}.pth')
        assert again.evaluated == evaluated, name
        first = 3 * int(name[-1])
        assert again.losses == {k: x for k, x in whole.losses.items() if k[0] >= first}


def test_an_interruption_before_the_first_iteration_is_not_to_be_resumed(tmp_path, monkeypatch):
    monkeypatch.delenv('EVIT_MM_CONTINUE', raising=False)
    monkeypatch.setattr(CheckedRunner, 'has_trained', False)
    monkeypatch.setattr(sys, 'argv', ['train.py', 'a.py'])
    with pytest.raises(DataError):
        run(tmp_path / 'a', broken=range(10))
    assert how_to_continue() == 'nothing was trained; run the same command again'
    run(tmp_path / 'b')
    assert how_to_continue() == 'run the same command with --resume to continue'
    monkeypatch.setattr(CheckedRunner, 'has_trained', False)
    for words in (['--resume'], ['--resume=b.pth']):
        monkeypatch.setattr(sys, 'argv', ['train.py', 'a.py', *words])
        assert how_to_continue() == 'run the same command to continue'
    monkeypatch.setenv('EVIT_MM_CONTINUE', 'make look')
    assert how_to_continue() == 'run make look to continue'


@pytest.mark.parametrize('epochs', [1, 2])
def test_a_resumed_run_with_nothing_to_train_says_so_and_evaluates_no_epoch_beyond_the_last(
    tmp_path, capfd, epochs
):
    run(tmp_path, checkpoint={'interval': 1})
    _, again = run(tmp_path / 'b', tmp_path / 'epoch_2.pth', train_cfg={'max_epochs': epochs})
    said = f'is from epoch 2, and train_cfg.max_epochs is {epochs}; set it above 2 to continue'
    assert again.losses == {} and again.evaluated == ([2] if epochs == 2 else [])
    assert said in capfd.readouterr().out


@pytest.mark.parametrize(
    'when',
    [
        {'val_interval': 2},
        {'val_begin': 3},
        {'val_begin': 0, 'val_interval': 3},
        {'val_interval': 3, 'dynamic_intervals': [(4, 1)]},
    ],
)
def test_evaluations_come_when_mmengines_loop_has_them(tmp_path, when):
    cfg = {'max_epochs': 5, **when}
    _, exact = run(tmp_path / 'exact', batch_size=10, train_cfg=cfg)
    _, plain = run(
        tmp_path / 'plain', batch_size=10, train_cfg={**cfg, 'type': 'EpochBasedTrainLoop'}
    )
    assert exact.evaluated == plain.evaluated and 5 in exact.evaluated


def test_unreadable_images_are_replaced_counted_and_summed_up_over_a_resume(tmp_path, capfd):
    often, replace = {'by_epoch': False, 'interval': 1}, {'corrupt_images': 'replace'}
    with pytest.raises(DataError, match="^image '[27].jpg' cannot be read: it cannot be decoded"):
        run(tmp_path / 'stopped', broken=(2, 7))
    Points.failures.clear()
    runner, seen = run(tmp_path, checkpoint=often, broken=(2, 7), train_cfg=replace)
    failures = list(Points.failures)
    trained = [number for numbers, _ in seen.losses.values() for number in numbers]
    assert len(trained) == 20 and not {2, 7} & set(trained)
    counts = runner.message_hub.get_info('evit_mm_place')['replaced']
    assert sorted(counts.values()) == sorted(map(failures.count, (2, 7))) and len(failures) >= 4
    said = capfd.readouterr()
    said = said.out + said.err
    assert all(f'sample replaced: {line}\n' in said for line in counts)
    worst = sorted(counts.items(), key=lambda item: -item[1])
    named = '\n  '.join(f'{number} times: {line}' for line, number in worst)
    total = f'{sum(counts.values())} samples were replaced because 2 images cannot be read'
    assert f'{total}; the most frequent:\n  {named}\n' in said
    again, _ = run(tmp_path / 'b', tmp_path / 'iter_4.pth', often, (2, 7), train_cfg=replace)
    assert again.message_hub.get_info('evit_mm_place')['replaced'] == counts


def test_runs_stop_when_a_hook_says_so(tmp_path):
    stop = {'type': 'EarlyStoppingHook', 'monitor': 'mean', 'patience': 1, 'min_delta': 1e9}
    stop['rule'] = 'greater'
    runner, _ = run(tmp_path, train_cfg={'max_epochs': 9}, custom_hooks=[stop], batch_size=10)
    assert 1 <= runner.epoch <= 3


def run_one_of_two(rank, port, folder):
    """A whole run and one that is resumed within an epoch, as torchrun starts them."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    often = {'by_epoch': False, 'interval': 1}
    two = {'checkpoint': often, 'batch_size': 3, 'launcher': 'pytorch', 'sync_bn': 'torch'}
    whole, seen = run(folder, **two)
    resumed, again = run(folder / 'b', folder / 'iter_1.pth', **two)
    said = 'sync_bn needs GPUs; each process computes its own BatchNorm statistics'
    found = {
        'sync_bn': any(said in log.read_text() for log in folder.glob('*/*.log')),
        'numbers': [numbers for numbers, _ in seen.losses.values()],
        'same losses': list(again.losses.items()) == list(seen.losses.items())[1:],
        'seeds': seen.seeds,
        'wrapper': type(whole.model).__name__,
        'broadcast': whole.model.broadcast_buffers,
        'unused': whole.model.find_unused_parameters,
    }
    for name, runner in (('whole', whole), ('resumed', resumed)):
        found[name] = {k: x.tolist() for k, x in runner.model.module.state_dict().items()}
    (folder / f'{rank}.json').write_text(json.dumps(found))


def test_two_processes_on_the_cpu_train_one_model_and_resume_exactly(tmp_path):
    torch.multiprocessing.spawn(run_one_of_two, (free_port(), tmp_path), nprocs=2)
    first, second = (json.loads((tmp_path / f'{rank}.json').read_text()) for rank in (0, 1))
    for found in (first, second):
        assert found['same losses'] and found['whole'] == found['resumed'] == first['whole']
        assert found['wrapper'] == 'MMDistributedDataParallel'
        assert not found['broadcast'] and not found['unused']
    assert first['sync_bn']  # torch has it for GPUs only
    assert len({*first['seeds'], *second['seeds']}) == 8
    for own, other in zip(first['numbers'], second['numbers'], strict=True):
        assert len(own) == len(other) and not set(own) & set(other)
