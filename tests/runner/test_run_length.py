"""A run can be too short for a batch, or for its schedules."""

import math
import random
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import mmdet.engine
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader

from evit_mm.errors import ConfigError
from evit_mm.runner.config import load_config
from evit_mm.runner.run_length import check_batches, schedule_notes
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / 'configs').glob('*_*.py'))
IMAGES = {'coco': 117_266, 'imagenet': 1_281_167, 'bccd': 205, 'shapes': 480}


class Named(dict):
    filename = 'c.py'


def build_schedulers(entries, loop):
    """Build schedulers as mmengine's runner does."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0, momentum=0.9)
    built = []
    for entry in entries if isinstance(entries, list) else [entries]:
        end = loop.max_epochs if entry.get('by_epoch', True) else loop.max_iters
        defaults = {'optimizer': optimizer, 'epoch_length': len(loop.dataloader)}
        built.append(PARAM_SCHEDULERS.build({'end': end, **entry}, default_args=defaults))
    return optimizer, built


def loop_of(batches, epochs=None, iters=None):
    runner = SimpleNamespace(visualizer=SimpleNamespace())
    loader = DataLoader(range(batches))
    if epochs is None:
        return IterBasedTrainLoop(runner, loader, max_iters=iters)
    return EpochBasedTrainLoop(runner, loader, max_epochs=epochs)


def notes_of(entries, loop):
    return schedule_notes(
        SimpleNamespace(
            cfg=Named(param_scheduler=entries),
            param_schedulers=build_schedulers(entries, loop)[1],
            max_epochs=loop.max_epochs,
            max_iters=loop.max_iters,
            train_loop=loop,
            train_dataloader=loop.dataloader,
        )
    )


def values_of(entry, loop, run=None):
    """Return the learning rates of a run, by default a complete one, without repetitions."""
    kind, begin = entry['type'], entry.get('begin', 0)
    if kind == 'MultiStepLR' and run is None:
        entry = {**entry, 'end': 99}
    if kind == 'CosineAnnealingLR' and run is None:
        entry = {**entry, 'end': begin + entry['T_max']}
    optimizer, (scheduler,) = build_schedulers(entry, loop)
    values = []
    for _ in range(run or 400):
        values.append(round(optimizer.param_groups[0]['lr'], 9))
        optimizer.step()
        scheduler.step()
    return [value for value, _ in groupby(values)]


def random_entry(rng):
    begin, length = rng.randint(0, 8), rng.randint(2, 9)
    entry = {'by_epoch': rng.random() < 0.6, 'begin': begin, 'end': begin + length}
    if entry['by_epoch'] and rng.random() < 0.5:
        entry['convert_to_iter_based'] = True
    if rng.random() < 0.4:
        milestones = rng.sample(range(1, 12), 2)
        return {**entry, 'type': 'MultiStepLR', 'milestones': milestones, 'gamma': 0.5}
    return {**entry, **rng.choice([
        {'type': 'LinearLR', 'start_factor': 0.1}, {'type': 'PolyLR', 'eta_min': 0.1},
        {'type': 'ConstantLR', 'factor': 0.1}, {'type': 'CosineAnnealingLR', 'T_max': length + 2},
        {'type': 'CosineAnnealingLR', 'T_max': length}, {'type': 'ConstantLR', 'factor': 1.0},
        {'type': 'LinearLR', 'start_factor': 1.0}, {'type': 'MultiStepLR', 'milestones': [9],
        'gamma': 1},
    ])}  # fmt: skip


@pytest.mark.parametrize('seed', range(200))
def test_a_schedule_is_named_if_one_of_its_rates_never_comes(seed):
    rng = random.Random(seed)
    entry, batches = random_entry(rng), rng.randint(1, 3)
    length = {rng.choice(['epochs', 'iters']): rng.randint(1, 24)}
    loop = loop_of(batches, **length)
    in_epochs = entry['by_epoch'] and 'convert_to_iter_based' not in entry
    run = loop.max_epochs if in_epochs else loop.max_iters
    complete = values_of(entry, loop, run) == values_of(entry, loop)
    notes = notes_of(entry, loop)
    assert (notes == []) == complete, (entry, length, notes)
    for _ in range(4):  # each note names one value to set
        if not notes or in_epochs and 'iters' in length:
            return
        _, (key, to, number) = notes[0], notes[0].split('; set ')[1].split()
        number = math.ceil(float(number)) - 1 if to == 'below' else float(number)
        kept = [x for x in entry.get('milestones', ()) if x <= number]
        entry[key] = {'milestones': kept or [number]}.get(key, number)
        notes = notes_of(entry, loop)
    raise AssertionError((entry, length, notes))


@pytest.mark.parametrize(
    ('entry', 'note'),
    [
        (
            {'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'end': 5000000},
            'has end 5000000, but the run ends at iteration 6, so the learning rate does not '
            'reach its final value; set end to 6',
        ),
        (
            {'type': 'MultiStepLR', 'milestones': [2, 8, 11], 'end': 12},
            'has milestones 8 and 11, but the run ends at epoch 3, so the learning rate does not '
            'change there; set milestones below 3',
        ),
        (
            {'type': 'MultiStepLR', 'milestones': [1, 2], 'end': 2, 'convert_to_iter_based': True},
            'has milestones 2, but its end is epoch 2, so the learning rate does not change '
            'there; set end to 3',
        ),
        (
            {'type': 'MultiStepLR', 'milestones': [4], 'begin': 1, 'end': 2},
            'has milestones 4 from epoch 1 on, but its end is epoch 2, .*; set milestones below 1',
        ),
        ({'type': 'StepLR', 'step_size': 3}, 'has step_size 3, but the run ends at epoch 3.*low 3'),
        ({'type': 'StepMomentum', 'step_size': 9}, 'has .*, so the momentum does not change there'),
        (
            {'type': 'CosineAnnealingLR', 'T_max': 4, 'convert_to_iter_based': True},
            'has T_max 4, but the run ends at epoch 3, .*; set T_max to 3',
        ),
        (
            {'type': 'CosineAnnealingLR', 'T_max': 3, 'end': 2},
            'has T_max 3, but its end is epoch 2, .* final value; set end to 3',
        ),
        ({'type': 'OneCycleLR', 'eta_max': 1.0, 'end': 5}, 'has end 5, but .*; set end to 3'),
        (
            {'type': 'OneCycleLR', 'eta_max': 1.0, 'end': 5, 'total_steps': 5},
            'has total_steps 5, but .*; set total_steps to 3',
        ),
        ({'type': 'mmdet.QuadraticWarmupLR', 'begin': 1, 'end': 4}, 'has end 4, but'),
        (
            {'type': 'CosineAnnealingLR', 'begin': 3, 'end': 9, 'by_epoch': True},
            'has begin 3, but the run ends at epoch 3, so it has no effect; set begin below 3',
        ),
    ],
)
def test_a_schedule_that_comes_too_late_is_named_with_a_value_to_set(entry, note):
    kind = entry['type'].split('.')[-1]
    start = rf'^c.py: param_scheduler\.0 \({kind}\) '
    (said,) = notes_of([entry, {'type': 'MultiStepLR', 'milestones': [1]}], loop_of(2, 3))
    assert_matches(f'{start}{note}$' if 'set' in note else start + note, said)
    (said,) = notes_of(entry, loop_of(2, 3))
    assert said.startswith(f'c.py: param_scheduler ({kind}) ')


def test_a_loop_of_iterations_makes_no_steps_by_epoch():
    loop = loop_of(10, iters=120)
    entry = {'type': 'MultiStepLR', 'milestones': [8, 11], 'end': 12}
    (said,) = notes_of(entry, loop)
    assert said.endswith(
        'counts epochs, but the run has only iterations, so the learning rate does not change; '
        'set by_epoch=False and give all numbers in iterations'
    )
    assert notes_of({**entry, 'convert_to_iter_based': True}, loop) == []
    # its steps are evaluations
    assert notes_of({'type': 'ReduceOnPlateauLR', 'monitor': 'loss'}, loop) == []


def test_the_cosine_of_yolox_is_near_its_end():
    entry = {'type': 'CosineAnnealingLR', 'begin': 5, 'T_max': 285, 'end': 285, 'eta_min': 0.05}
    assert values_of(entry, loop_of(1, 300), 300)[-1] == pytest.approx(0.05, abs=2e-3)
    assert notes_of(entry, loop_of(1, 300)) == []


def assert_matches(pattern, text):
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_the_schedules_of_our_configs_fit_their_runs(path):
    cfg = load_config(path)
    init_default_scope(cfg.get('default_scope'))
    batches = IMAGES[path.stem.split('_')[-1]] // cfg.auto_scale_lr.base_batch_size
    assert notes_of(cfg.param_scheduler, loop_of(batches, cfg.train_cfg.max_epochs)) == []


def mmdet_schedules():
    """Return the names, schedules and loops of those configs of mmdet that state a schedule."""
    seen, found = set(), []
    for file in sorted((Path(mmdet.__file__).parent / '.mim' / 'configs').glob('*/*.py')):
        text = file.read_text()
        if '\nparam_scheduler' not in text or 'read_base()' in text:
            continue
        lengths = [line for line in text.splitlines() if 'max_' in line]
        key = repr([text.split('\nparam_scheduler')[1].split('\n\n')[0], lengths])
        if key in seen:
            continue
        seen.add(key)
        with suppress(FileNotFoundError):  # the base of one config does not exist
            cfg = Config.fromfile(file, import_custom_modules=False)
            train = cfg.get('train_cfg') or {}
            loop = loop_of(7000, train.get('max_epochs'), train.get('max_iters'))
            found.append((file.stem, cfg.param_scheduler, loop))
    return found


def test_only_schedules_of_mmdet_with_milestones_after_their_end_are_named():
    init_default_scope('mmdet')
    found = mmdet_schedules()
    assert len(found) > 100
    for name, entries, loop in found:
        notes = notes_of(entries, loop)
        entries = entries if isinstance(entries, list) else [entries]
        late = [e for e in entries if max(e.get('milestones', [0])) >= e.get('end', 10**9)]
        assert len(notes) == len(late), (name, notes)
        assert all('MultiStepLR' in note and '; set end to' in note for note in notes)


def loader(images, batch_size, drop_last=False, sampler=None):
    sampler = sampler or DefaultSampler(range(images), shuffle=False)
    return DataLoader(range(images), batch_size, sampler=sampler, drop_last=drop_last)


class Endless(InfiniteSampler):
    def __iter__(self):
        raise AssertionError('mmengine searches for the first of 0 images forever')


@pytest.mark.parametrize(
    ('given', 'processes', 'said'),
    [
        (
            loader(8, 32, drop_last=True),
            1,
            'val_dataloader has no batch with 8 images, 1 process, batch_size=32 and '
            'drop_last=True; use more images',
        ),
        (
            DataLoader(range(8), 5, sampler=range(4), drop_last=True),  # of one of two processes
            2,
            '8 images, 2 processes, batch_size=5 and drop_last=True; .* a smaller batch_size or',
        ),
        (DataLoader(range(1), 1, sampler=[]), 2, 'with 1 image, 2 processes, batch_size=1 and'),
        (DataLoader([], 1), 1, 'with 0 images, 1 process, .*; use more images .see filter_cfg'),
        (DataLoader([], 2, sampler=Endless([])), 1, 'with 0 images, 1 process'),
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
