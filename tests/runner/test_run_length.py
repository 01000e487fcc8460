"""A run can be too short for a batch, or for its schedules."""

import random
from itertools import groupby
from types import SimpleNamespace

import mmdet.engine  # noqa: F401 (registers its schedulers)
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from torch.utils.data import DataLoader

from evit_mm.errors import ConfigError
from evit_mm.runner.config import load_config
from evit_mm.runner.run_length import check_batches, schedule_notes
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / 'configs').glob('*_*.py'))
IMAGES = {'coco': 117_266, 'imagenet': 1_281_167, 'bccd': 205, 'shapes': 480}


class Named(dict):
    filename = 'c.py'


def build_schedulers(entries, epochs, batches):
    """Build schedulers as mmengine's runner does."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0, momentum=0.9)
    built = []
    for entry in entries if isinstance(entries, list) else [entries]:
        end = epochs if entry.get('by_epoch', True) else epochs * batches
        defaults = {'optimizer': optimizer, 'epoch_length': batches}
        built.append(PARAM_SCHEDULERS.build({'end': end, **entry}, default_args=defaults))
    return optimizer, built


def notes_of(entries, epochs, batches):
    _, built = build_schedulers(entries, epochs, batches)
    return schedule_notes(
        SimpleNamespace(
            cfg=Named(param_scheduler=entries),
            param_schedulers=built,
            max_epochs=epochs,
            max_iters=epochs * batches,
            train_dataloader=range(batches),
        )
    )


def values_of(entry, epochs, batches, steps):
    """Return the learning rates of the first steps of a run, without repetitions in a row."""
    optimizer, (scheduler,) = build_schedulers(entry, epochs, batches)
    values = []
    for _ in range(steps):
        values.append(round(optimizer.param_groups[0]['lr'], 9))
        optimizer.step()
        scheduler.step()
    return [value for value, _ in groupby(values)]


def random_entry(rng):
    begin = rng.randint(0, 8)
    entry = {'by_epoch': rng.random() < 0.5, 'begin': begin, 'end': begin + rng.randint(2, 9)}
    if rng.random() < 0.5:
        steps = range(1, entry['end'] - begin)
        return {**entry, 'type': 'MultiStepLR', 'milestones': [rng.choice(steps)]}
    return {**entry, **rng.choice([
        {'type': 'LinearLR', 'start_factor': 0.1}, {'type': 'PolyLR', 'eta_min': 0.1},
        {'type': 'ConstantLR', 'factor': 0.1},
    ])}  # fmt: skip


@pytest.mark.parametrize('seed', range(100))
def test_a_schedule_is_named_if_one_of_its_rates_never_comes(seed):
    rng = random.Random(seed)
    entry, epochs, batches = random_entry(rng), rng.randint(1, 8), rng.randint(1, 3)
    run = epochs if entry['by_epoch'] else epochs * batches
    complete = values_of(entry, epochs, batches, run) == values_of(entry, epochs, batches, 100)
    assert (notes_of(entry, epochs, batches) == []) == complete, entry


@pytest.mark.parametrize(
    ('entry', 'note'),
    [
        (
            {'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'end': 500},
            'ends at iteration 500, but the run has 6 iterations, so the learning rate does not '
            'reach its final value; set end to 6 or less',
        ),
        (
            {'type': 'MultiStepLR', 'milestones': [2, 8, 11], 'end': 12},
            'has milestones 8 and 11, but the run has 3 epochs, so the learning rate does not '
            'change there; set milestones below 3',
        ),
        (
            {'type': 'MultiStepLR', 'milestones': [1, 2], 'end': 2, 'convert_to_iter_based': True},
            'has milestones 2, but its end is 2, so the learning rate does not change there; set '
            'milestones below 2',
        ),
        ({'type': 'StepLR', 'step_size': 3}, 'has step_size 3, but the run has 3 epochs.* below 3'),
        ({'type': 'StepMomentum', 'step_size': 9}, 'has .*, so the momentum does not change there'),
        (
            {'type': 'CosineAnnealingLR', 'T_max': 4, 'convert_to_iter_based': True},
            'has T_max=4 from epoch 0 on, but the run has 3 epochs.*; set T_max and end to 3 and 3',
        ),
        ({'type': 'mmdet.QuadraticWarmupLR', 'end': 4}, 'ends at epoch 4, but'),
        (
            {'type': 'CosineAnnealingLR', 'begin': 3, 'end': 9, 'by_epoch': True},
            'begins at epoch 3, but the run has 3 epochs, so it has no effect; set begin below 3',
        ),
    ],
)
def test_a_schedule_that_comes_too_late_is_named_with_a_value_to_set(entry, note):
    kind = entry['type'].split('.')[-1]
    start = rf'^c.py: param_scheduler\.0 \({kind}\) '
    (said,) = notes_of([entry, {'type': 'MultiStepLR', 'milestones': [1]}], 3, 2)
    assert_matches(start + note, said)
    (said,) = notes_of(entry, 3, 2)
    assert said.startswith(f'c.py: param_scheduler ({kind}) ')


def assert_matches(pattern, text):
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_the_schedules_of_our_configs_fit_their_runs(path):
    cfg = load_config(path)
    init_default_scope(cfg.get('default_scope'))
    batches = IMAGES[path.stem.split('_')[-1]] // cfg.auto_scale_lr.base_batch_size
    assert notes_of(cfg.param_scheduler, cfg.train_cfg.max_epochs, batches) == []


def loader(images, batch_size, drop_last=False, sampler=None):
    sampler = sampler or DefaultSampler(range(images), shuffle=False)
    return DataLoader(range(images), batch_size, sampler=sampler, drop_last=drop_last)


@pytest.mark.parametrize(
    ('given', 'processes', 'said'),
    [
        (
            loader(8, 32, drop_last=True),
            1,
            'val_dataloader has no batch, because the data set has 8 images, batch_size is 32 and '
            'drop_last is True; set val_dataloader.batch_size to 8 or less, or '
            'val_dataloader.drop_last=False',
        ),
        (
            DataLoader(range(8), 5, sampler=range(4), drop_last=True),  # of one of two processes
            2,
            '8 images, there are 2 processes, batch_size is 5 and .*batch_size to 4 or less',
        ),
        (DataLoader(range(1), 1, sampler=[]), 2, '1 image and there are 2 processes; check val'),
        (DataLoader([], 1), 1, 'the data set has 0 images; check val_dataloader.dataset, such as'),
    ],
)
def test_an_epoch_of_no_batch_is_named_with_its_numbers(given, processes, said, monkeypatch):
    monkeypatch.setattr('evit_mm.runner.run_length.get_world_size', lambda: processes)
    with pytest.raises(ConfigError, match=f'c.py: .*{said}'):
        check_batches(given, 'val', 'c.py')


def test_a_loader_with_a_batch_is_fine():
    check_batches(loader(8, 8, drop_last=True), 'train', 'c.py')
    check_batches(loader(8, 32), 'train', 'c.py')
    endless = loader(8, 32, drop_last=True, sampler=InfiniteSampler(range(8), shuffle=False))
    assert len(endless) == 0
    check_batches(endless, 'train', 'c.py')
