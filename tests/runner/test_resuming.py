"""Resuming: bit for bit what an undisturbed run does, from whatever checkpoint is whole."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from torch.utils.data import BatchSampler, DataLoader

from evit_mm.data import make_shapes
from evit_mm.errors import CheckpointError, ConfigError, EvitError
from evit_mm.runner.loader import ExactBatchSampler, exact_loader
from evit_mm.runner.resuming import find_last_good, find_resumed, resumed_from
from evit_mm.runner.train import train as run_training
from evit_mm.utils.files import write_atomically
from tests.kills import OFTEN, RecordHook, differences, run_kills
from tests.runner.test_loop import run as run_layers
from tests.trainings import write_config

COMMON = """
train_cfg = dict(max_epochs=2, val_interval=1)
train_dataloader['batch_size'] = 4
"""
NOISY = """
train_dataloader['dataset']['pipeline'] = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
model['backbone']['drop_path_rate'] = 0.5
"""

WORKER = 'train_dataloader.update(num_workers=1, persistent_workers=True)\n'


class InterruptHook(Hook):
    """Ctrl-C after an iteration, or before the first image of an evaluation."""

    priority = 'LOWEST'

    def __init__(self, after_iter=None, in_evaluation=None):
        self.after_iter, self.in_evaluation = after_iter, in_evaluation

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.after_iter:
            raise KeyboardInterrupt

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if runner.epoch == self.in_evaluation:
            raise KeyboardInterrupt


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'set', 24, 4, size=(96, 80), quiet=True)


def train(folder, config, name, stop=None, **arguments):
    """Train in ``folder / name``; with ``stop``, until it is interrupted."""
    work = folder / name
    work.mkdir(exist_ok=True)
    hooks = [RecordHook(work / 'record_0.jsonl'), *([stop] if stop else [])]
    arguments = {'resume': 'auto', 'seed': 5, 'device': 'cpu', **arguments}
    if stop is None:
        return run_training(config, str(work), hooks=hooks, **arguments)
    with pytest.raises(KeyboardInterrupt):
        run_training(config, str(work), hooks=hooks, **arguments)
    return None


def amp_on_the_cpu(monkeypatch):
    """Take mmengine's word that there is a GPU back; CPUs do autocast to bfloat16."""
    module = 'mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available'
    monkeypatch.setattr(module, lambda: True)


AMP = OFTEN + "optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ('extra', 'stops'),
    [
        # the worker has generators of its own, so that the model's noise has only its own seeds
        (NOISY + WORKER + OFTEN, [InterruptHook(after_iter=3), InterruptHook(after_iter=11)]),
        (AMP, [InterruptHook(after_iter=5)]),
    ],
    ids=['within epochs, accumulation, drop path, colours', 'AMP in bfloat16'],
)
def test_an_interrupted_run_is_bit_for_bit_an_undisturbed_one(
    data, tmp_path, monkeypatch, extra, stops
):
    if 'Amp' in extra:
        amp_on_the_cpu(monkeypatch)
    config = write_config(tmp_path, data, COMMON + extra)
    whole = train(tmp_path, config, 'whole')
    for stop in stops:
        train(tmp_path, config, 'cut', stop)
    resumed = train(tmp_path, config, 'cut')
    assert resumed.iter == whole.iter == 12
    assert differences(tmp_path / 'whole', tmp_path / 'cut', 1) == (0.0, 0)
    if 'Amp' in extra:  # else it would show nothing
        assert type(whole.optim_wrapper).__name__ == 'AmpOptimWrapper'


@pytest.mark.slow
def test_runs_killed_at_random_points_end_as_undisturbed_ones(tmp_path):
    found = run_kills(4, tmp_path / 'kills', seed=2)
    assert found['kills'] == sum(found['points'].values()) == 4
    assert found['lost'] == 0 and found['runs'] >= 1
    assert found['worst_difference'] <= 1e-6, found


# --- checkpoints


def test_torn_checkpoints_are_passed_over_with_a_warning(data, tmp_path, monkeypatch):
    config = write_config(tmp_path, data, COMMON)
    train(tmp_path, config, 'cut', InterruptHook(in_evaluation=2))
    newest = tmp_path / 'cut' / 'epoch_2.pth'
    assert Path((tmp_path / 'cut' / 'last_checkpoint').read_text()) == newest
    newest.write_bytes(newest.read_bytes()[:20000])
    warnings = []
    with monkeypatch.context() as patched:
        patched.setattr(
            'evit_mm.runner.resuming.print_log', lambda text, **_: warnings.append(text)
        )
        found, content = find_last_good(tmp_path / 'cut')
    assert found.name == 'epoch_1.pth' and content['meta']['iter'] == 6
    assert len(warnings) == 1 and warnings[0].startswith('skipped: ')
    assert str(newest) in warnings[0]
    assert train(tmp_path, config, 'cut').iter == 12
    torch.load(newest)
    # killed between the first checkpoint and the pointer to it
    newest.with_name('last_checkpoint').unlink()
    assert find_last_good(tmp_path / 'cut')[0] == newest
    for file in (tmp_path / 'cut').glob('epoch_*.pth'):
        file.write_bytes(b'')
    with pytest.raises(CheckpointError, match='no checkpoint in .* can be read'):
        find_last_good(tmp_path / 'cut')
    assert find_last_good(tmp_path) is None


def test_the_seed_of_the_checkpoint_counts_and_another_is_refused(tmp_path):
    def found(seed, **options):
        meta = {'epoch': 1, 'iter': 3, **({} if seed is None else {'seed': seed})}
        content = {'optimizer': {'a': 1}, 'message_hub': {'a': 1}, 'meta': meta}
        torch.save({**content, 'state_dict': {'a': torch.ones(1)}}, tmp_path / 'epoch_1.pth')
        cfg = Config({'work_dir': str(tmp_path), 'resume': True, **options})
        assert set(find_resumed(cfg)) == {*content, 'state_dict'}
        assert cfg.resume is True and cfg.load_from == str(tmp_path / 'epoch_1.pth')
        return cfg.get('randomness')

    assert found(0) == {'seed': 0} and found(None) is None
    own = {'seed': 4, 'deterministic': True}
    assert found(4, randomness=own) == own == found(None, randomness=own)
    for saved, chosen in ((0, 5), (5, 0)):
        with pytest.raises(ConfigError, match=f'trained with seed {saved}, not {chosen}; resume'):
            found(saved, randomness={'seed': chosen})
    elsewhere = str(tmp_path / 'none')
    assert found(2, work_dir=elsewhere, load_from=str(tmp_path / 'epoch_1.pth')) == {'seed': 2}
    (tmp_path / 'last_checkpoint').write_text('last.pth')
    for resume, load_from, file in ((True, 'a', 'a'), (True, None, 'last.pth'), (False, 'a', None)):
        runner = SimpleNamespace(_resume=resume, _load_from=load_from, work_dir=str(tmp_path))
        assert resumed_from(runner) == file
    for options in ({'resume': False}, {}):
        assert find_resumed(Config({'work_dir': str(tmp_path), **options})) is None


# --- settings that have changed


def optim(lr=0.05, **options):
    return {'optimizer': {'type': 'SGD', 'lr': lr, 'momentum': 0.9, **options}}


def schedule(epochs, warm_up=4, **options):
    """A warm-up by iterations, a cosine by iterations and steps by epochs."""
    return [
        {'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'end': warm_up},
        {'type': 'CosineAnnealingLR', 'T_max': epochs, 'convert_to_iter_based': True},
        {'type': 'MultiStepLR', 'milestones': [epochs - 1], 'gamma': 0.5, **options},
    ]


OLD = {
    'param_scheduler': schedule(3),
    'optim_wrapper': optim(),
    'train_cfg': {'max_epochs': 2},
    'custom_hooks': [{'type': 'ResumedOptimizerHook'}],
}
SAVED = {'by_epoch': False, 'interval': 1}


def rates(runner, number):
    return list(runner.message_hub.get_scalar('train/lr').data[0][-number:])


@pytest.fixture(scope='module')
def old_run(tmp_path_factory):
    """A run with a checkpoint after each of its iterations, three per epoch."""
    folder = tmp_path_factory.mktemp('old')
    hooks = [*OLD['custom_hooks'], {'type': 'SafeCheckpointHook', 'interval': 1}]
    run_layers(folder, checkpoint=SAVED, **{**OLD, 'custom_hooks': hooks})
    return folder


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'param_scheduler': schedule(5)}, 'param_scheduler.1.T_max (9, now 15)'),
        ({'param_scheduler': schedule(3, warm_up=8)}, 'param_scheduler.0.end (4, now 8)'),
        ({'param_scheduler': schedule(3)[:2]}, 'len(param_scheduler) (3, now 2)'),
        ({'param_scheduler': schedule(3)[1:]}, 'len(param_scheduler) (3, now 2)'),
        ({'optim_wrapper': optim(lr=0.01)}, 'optim_wrapper.optimizer.lr (0.05, now 0.01)'),
        ({'param_scheduler': None}, 'len(param_scheduler) (3, now 0)'),
    ],
)
def test_learning_rates_after_a_resume_are_those_of_the_config(old_run, tmp_path, options, named):
    config = {**OLD, 'train_cfg': {'max_epochs': 5}, **options}
    whole, _ = run_layers(tmp_path / 'whole', **config)
    for file, done in (('iter_2', 2), ('iter_6', 6), ('epoch_1', 3)):
        resumed, _ = run_layers(tmp_path / file, old_run / f'{file}.pth', **config)
        assert rates(resumed, 15 - done) == rates(whole, 15)[done:]
        (log,) = (tmp_path / file).glob('*/*.log')
        assert ' in train_cfg.max_epochs (2, now 5), ' in log.read_text()
        assert f', {named}' in log.read_text()


def test_a_resume_with_other_settings_keeps_the_state_of_the_optimizer(old_run, tmp_path):
    config = {**OLD, 'optim_wrapper': optim(weight_decay=0.25, momentum=0.5)}
    resumed, _ = run_layers(tmp_path, old_run / 'iter_6.pth', **config)
    (group,) = resumed.optim_wrapper.optimizer.param_groups
    assert (group['weight_decay'], group['momentum']) == (0.25, 0.5)
    saved = torch.load(old_run / 'iter_6.pth')['optimizer']['state']
    state = resumed.optim_wrapper.optimizer.state_dict()['state']
    assert len(state) == len(saved) == 6
    for key, values in saved.items():
        assert torch.equal(state[key]['momentum_buffer'], values['momentum_buffer'])


def test_a_resume_with_another_batch_size_counts_epochs(old_run, tmp_path):
    config = {**OLD, 'train_cfg': {'max_epochs': 4}, 'batch_size': 2}
    whole, _ = run_layers(tmp_path / 'whole', **config)
    resumed, _ = run_layers(tmp_path / 'resumed', old_run / 'epoch_2.pth', **config)
    assert rates(resumed, 10) == rates(whole, 20)[10:]
    (log,) = (tmp_path / 'resumed').glob('*/*.log')
    assert 'batches per epoch (3, now 5)' in log.read_text()


def test_an_unchanged_config_is_resumed_without_a_word(old_run, tmp_path):
    resumed, _ = run_layers(tmp_path, old_run / 'iter_4.pth', **OLD)
    (log,) = tmp_path.glob('*/*.log')
    assert 'differs' not in log.read_text() and resumed.iter == 6


def test_a_schedule_of_evaluations_cannot_change(tmp_path):
    plateau = {'type': 'ReduceOnPlateauLR', 'monitor': 'mean', 'by_epoch': True, 'patience': 1}
    config = {**OLD, 'param_scheduler': [plateau]}
    run_layers(tmp_path, checkpoint=SAVED, **config)
    run_layers(tmp_path / 'same', tmp_path / 'iter_6.pth', **config)
    with pytest.raises(ConfigError, match='ReduceOnPlateau.* cannot be changed'):
        config = {**OLD, 'param_scheduler': [{**plateau, 'patience': 2}]}
        run_layers(tmp_path / 'other', tmp_path / 'iter_6.pth', **config)


class FullDiskHook(Hook):
    """Let one file's place be a device that is always full."""

    priority = 'VERY_HIGH'

    def __init__(self, name):
        self.name = name

    def after_train_epoch(self, runner):
        if runner.epoch == 1:
            Path(runner.work_dir, f'{self.name}.partial').symlink_to('/dev/full')


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='there is no /dev/full here')
@pytest.mark.parametrize('keep', [1, 2])
def test_a_full_disk_ends_the_run_and_keeps_the_last_good_checkpoint(data, tmp_path, keep):
    config = write_config(tmp_path, data, COMMON)
    options = {'default_hooks.checkpoint.max_keep_ckpts': keep}
    with pytest.raises(EvitError, match='No space left on device') as caught:
        run_training(
            config,
            str(tmp_path / 'work'),
            cfg_options=options,
            device='cpu',
            hooks=[FullDiskHook('epoch_2.pth')],
        )
    assert 'The last checkpoint is intact; free disk space' in str(caught.value)
    found, _ = find_last_good(tmp_path / 'work')
    assert found.name == 'epoch_1.pth'
    files = {file.name for file in (tmp_path / 'work').glob('*.p*') if 'best' not in file.name}
    assert files == {'epoch_1.pth', 'tiny.py'}
    assert run_training(config, str(tmp_path / 'work'), 'auto', device='cpu').epoch == 2


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    write_atomically(tmp_path / 'a' / 'file', b'one')

    def fail(handle):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='No space'):
        write_atomically(tmp_path / 'a' / 'file', b'two')
    assert [p.name for p in (tmp_path / 'a').iterdir()] == ['file']
    assert (tmp_path / 'a' / 'file').read_bytes() == b'one'


def test_the_best_checkpoint_goes_only_when_a_better_one_is_there(data, tmp_path, monkeypatch):
    scores = iter([0.1, 0.05, 0.3])
    monkeypatch.setattr(
        'evit_mm.evaluation.coco_metric.HotCocoMetric.compute_metrics',
        lambda self, results: {'bbox_mAP': next(scores)},
    )
    seen = []

    class Watch(Hook):
        priority = 'LOWEST'

        def after_val_epoch(self, runner, metrics=None):
            seen.append(sorted(p.name for p in Path(runner.work_dir).glob('best_*')))

    config = write_config(tmp_path, data, 'train_cfg = dict(max_epochs=3, val_interval=1)\n')
    run_training(config, str(tmp_path / 'work'), device='cpu', hooks=[Watch()])
    name = 'best_coco_bbox_mAP_epoch_{}.pth'.format
    assert seen == [[name(1)], [name(1)], [name(3)]]


# --- data


class Pictures:
    """A data set of random numbers that knows which were asked for."""

    metainfo = {}

    def __init__(self):
        self.asked = []

    def __len__(self):
        return 10

    def __getitem__(self, index):
        self.asked.append(index)
        return index, np.random.rand()


def batches(start, workers=0, epoch=0, seed=1):
    pictures = Pictures()
    sampler = DefaultSampler(pictures, seed=seed)
    loader = DataLoader(pictures, batch_sampler=BatchSampler(sampler, 4, False))
    loader = DataLoader(pictures, batch_sampler=loader.batch_sampler, num_workers=workers)
    loader = exact_loader(loader, seed, 'raise')
    loader.batch_sampler.start, loader.batch_sampler.epoch = start, epoch
    return [[x.tolist() for x in batch] for batch in loader], pictures.asked


def test_an_epoch_entered_in_its_middle_goes_on_alike_and_decodes_nothing_twice():
    whole, asked = batches(0)
    rest, asked_later = batches(2)
    assert len(whole) == 3 and rest == whole[2:]
    assert len(asked) == 10 and len(asked_later) == 2 and len(set(asked)) == 10
    assert batches(0, workers=2)[0] == whole
    numbers = [number for _, column in whole for number in column]
    assert len(set(numbers)) == 10
    assert batches(0, epoch=1)[0] != whole != batches(0, seed=2)[0]


def test_two_processes_augment_an_image_as_one_does(monkeypatch):
    def seeds(rank, processes):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda: (rank, processes))
        monkeypatch.setattr('evit_mm.runner.loader.get_dist_info', lambda: (rank, processes))
        sampler = BatchSampler(DefaultSampler(range(12), seed=3), 4 // processes, False)
        return {pair for batch in ExactBatchSampler(sampler, 3) for pair in batch}

    assert seeds(0, 1) == seeds(0, 2) | seeds(1, 2)
    assert len(seeds(0, 1)) == 12
