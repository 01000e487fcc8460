"""Early stopping: when a training ends, also after a resume, and what the config then names."""

import json

import pytest
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS

from evit_mm.data import make_shapes
from evit_mm.errors import ConfigError
from evit_mm.runner.build import rehearse
from evit_mm.runner.config import load_config
from evit_mm.runner.early_stopping import add_early_stopping
from evit_mm.runner.train import train
from tests.conftest import ROOT
from tests.runner.test_loop import run
from tests.trainings import launch, succeeded, write_config


@METRICS.register_module(force=True)
class Scripted(BaseMetric):
    """A value for each epoch, in place of a measured one."""

    epoch, values = 0, ()

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {'ap': self.values[self.epoch - 1]}


@HOOKS.register_module(force=True)
class Script(Hook):
    """Tell the metric the epoch. Each has three iterations."""

    def before_val_epoch(self, runner):
        Scripted.epoch = runner.iter // 3


def trained(folder, values, patience, load_from=None, save_best=None, rule='greater', **options):
    """Train for eight epochs at most; return the evaluated epochs and the runner."""
    Scripted.values = values
    hook = {'type': 'ResumedEarlyStoppingHook', 'monitor': 'ap', 'patience': patience}
    hooks = [{'type': 'Script'}, {**hook, 'rule': rule, 'min_delta': 0.001}]
    checkpoint = {'interval': 1, 'save_best': save_best, 'rule': rule if save_best else None}
    runner, seen = run(
        folder,
        load_from,
        {**checkpoint, **options.pop('checkpoint', {})},
        train_cfg={'max_epochs': 8, **options.pop('train_cfg', {})},
        val_evaluator={'type': 'Scripted'},
        custom_hooks=hooks,
        **options,
    )
    return seen.evaluated, runner


@pytest.mark.parametrize('save_best', [None, 'ap'])
def test_a_resumed_training_ends_where_the_whole_one_does(tmp_path, save_best):
    # 0.3005 is no improvement, which counts from 0.001 on
    values = [0.1, 0.3, 0.3005, 0.2, 0.25, 0.9, 0.9, 0.9]
    evaluated, runner = trained(tmp_path, values, 3, save_best=save_best)
    assert evaluated == [1, 2, 3, 4, 5] and runner.iter == 15
    for epoch in range(1, 6):
        file = tmp_path / f'epoch_{epoch}.pth'
        again, resumed = trained(tmp_path / str(epoch), values, 3, file, save_best)
        assert again[-1] == 5 and resumed.iter == 15, epoch
    # with more patience, the same checkpoint goes on
    evaluated, runner = trained(tmp_path / 'on', values, 4, file, save_best)
    assert evaluated[-1] == 8 and runner.iter == 24


def test_a_loss_that_falls_and_a_nan(tmp_path):
    evaluated, _ = trained(tmp_path / 'a', [5, 4, 3, 3.5, 3, 1, 1, 1], 2, rule='less')
    assert evaluated == [1, 2, 3, 4, 5]
    evaluated, runner = trained(tmp_path / 'b', [0.1, 0.2, float('nan'), 1, 1, 1, 1, 1], 2)
    assert evaluated == [1, 2, 3]
    assert 'ap is nan' in runner.message_hub.get_info('evit_mm_stopped_early')


def test_a_training_in_iterations(tmp_path, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda _: None)  # mmengine waits two seconds after an epoch
    iterations = {'type': 'IterBasedTrainLoop', 'max_iters': 24, 'val_interval': 3}
    options = {'train_cfg': {**iterations, 'max_epochs': None}, 'save_best': 'ap'}
    options['checkpoint'] = {'by_epoch': False, 'interval': 3}
    values = [0.1, 0.3, 0.2, 0.2, 0.2, 0.9, 0.9, 0.9]
    _, runner = trained(tmp_path, values, 3, **options)
    assert runner.iter == 15
    _, runner = trained(tmp_path / 'a', values, 3, tmp_path / 'iter_6.pth', **options)
    assert runner.iter == 15
    # mmengine does not repeat the evaluation of the checkpoint, so the count misses it
    values[5] = 0.2
    _, runner = trained(tmp_path / 'b', values, 3, tmp_path / 'iter_9.pth', **options)
    assert runner.iter == 18


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'set', 8, 2, size=(96, 80), quiet=True)


def test_the_flag_names_the_hook_in_the_config(data, tmp_path, capsys):
    extra = 'train_cfg = dict(max_epochs=5, val_interval=1)\n'
    extra += "custom_hooks = [dict(type='LevelHook')]\n"
    extra += "default_hooks = dict(checkpoint=dict(save_best='coco/bbox_mAP_50'))\n"
    config = write_config(tmp_path, data, extra)
    work = tmp_path / 'work'
    runner = train(config, str(work), device='cpu', seed=1, early_stopping=2)
    assert runner.epoch == 3
    hook = Config.fromfile(work / 'tiny.py').default_hooks.early_stopping
    assert (hook.monitor, hook.patience) == ('coco/bbox_mAP_50', 2)
    summary = json.loads((work / 'summary.json').read_text())
    assert summary['finished'] and summary['stopped_early'].endswith(
        'not improved in 2 evaluations'
    )
    reason = (
        'stopped early after 3 of 5 epochs, because coco/bbox_mAP_50 has not improved in 2 eval'
    )
    log = next(work.glob('*/*.log')).read_text()
    assert reason in log
    # its own config gives the same run, and the flag changes the patience there
    cfg = load_config(work / 'tiny.py')
    add_early_stopping(cfg, 1)
    assert cfg.default_hooks.early_stopping == {**hook, 'patience': 1}


def test_ours_have_a_metric_to_watch(tmp_path):
    for name, metric in (
        ('retinanet_evit_m4_coco', 'coco/bbox_mAP'),
        ('evit_m0_imagenet', 'accuracy/top1'),
    ):
        cfg = load_config(ROOT / 'configs' / f'{name}.py')
        add_early_stopping(cfg, 3)
        assert cfg.default_hooks.early_stopping.monitor == metric
    assert cfg.default_hooks.early_stopping.rule == 'greater'


ITERATIONS = {'_delete_': True, 'type': 'IterBasedTrainLoop'}


@pytest.mark.parametrize(
    ('change', 'patience', 'said'),
    [
        ({}, 0, '--early-stopping must be at least 1, got 0'),
        ({'val_cfg': None}, 2, 'needs evaluations during the training; set val_cfg'),
        ({'train_cfg': {'max_epochs': 12, 'val_interval': 12}}, 1, 'no effect with 1 evaluation;'),
        ({'train_cfg': {'max_epochs': 9, 'val_interval': 2}}, 4, 'no effect with 5 evaluations;'),
        ({'train_cfg': {**ITERATIONS, 'max_iters': 2500}}, 2, 'with 3 evaluations;.*now 1000'),
        ({'train_cfg.val_begin': 7}, 5, 'no effect with 6 evaluations.*now 1'),
        ({'default_hooks.checkpoint.save_best': 'auto'}, 2, 'the name of a metric; set default_ho'),
        ({'custom_hooks': [{'type': 'EarlyStoppingHook'}]}, 2, 'custom_hooks has an EarlyStopping'),
    ],
)
def test_what_has_no_effect_is_refused(data, tmp_path, change, patience, said):
    extra = 'train_cfg = dict(max_epochs=12, val_interval=1)\n'
    cfg = load_config(write_config(tmp_path, data, extra), change)
    with pytest.raises(ConfigError, match=said):
        add_early_stopping(cfg, patience)


def test_a_metric_that_never_comes_is_refused_before_the_training(data, tmp_path):
    cfg = load_config(
        write_config(tmp_path, data, 'train_cfg = dict(max_epochs=12, val_interval=1)\n')
    )
    add_early_stopping(cfg, 2)
    cfg.default_hooks.early_stopping.monitor = 'coco/bbox_map'
    with pytest.raises(ConfigError, match=r'EarlyStoppingHook\.monitor.*did you mean'):
        rehearse(cfg)


@pytest.mark.slow
def test_two_processes_end_together(data, tmp_path):
    extra = 'train_cfg = dict(max_epochs=6, val_interval=1)\n'
    extra += "custom_hooks = [dict(type='LevelHook')]\n"
    config = write_config(tmp_path, data, extra)
    options = ['--work-dir', tmp_path / 'work', '--device', 'cpu', '--early-stopping', 2]
    said = succeeded(launch('train', [config, *options, '--batch-size', '4'], 2))
    assert 'stopped early after 3 of 6 epochs' in said
    assert Config.fromfile(tmp_path / 'work' / 'tiny.py').train_dataloader.batch_size == 4
