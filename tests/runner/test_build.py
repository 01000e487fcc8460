"""Errors of a build name the config; devices and hooks are the ones that were asked for."""

import mmengine.device
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import VISBACKENDS
from mmengine.visualization import LocalVisBackend
from torch.utils.data import BatchSampler, DataLoader

from evit_mm.errors import ConfigError, DataError
from evit_mm.runner.build import (
    REMOVABLE,
    CheckedRunner,
    build_runner,
    config_faults,
    set_device,
)
from tests.runner.test_loop import Layers


@pytest.mark.parametrize(
    ('error', 'said'),
    [
        (ValueError('a is b'), 'x.py: a is b'),
        (KeyError('a'), 'x.py: KeyError: a'),
        (TypeError('no'), 'x.py: TypeError: no'),
        (AssertionError(), 'x.py: AssertionError: '),
        (
            TypeError("A.__init__() got an unexpected keyword argument 'b'"),
            "x.py: A has no arg.* 'b'",
        ),
    ],
)
def test_errors_of_a_build_name_the_config(tmp_path, error, said):
    (tmp_path / 'x.py').write_text('')
    cfg = Config.fromfile(tmp_path / 'x.py')
    with pytest.raises(ConfigError, match=f'{said}$'), config_faults(cfg):
        raise error


@pytest.mark.parametrize(
    ('loader', 'fix'),
    [
        ({'num_workers': 0, 'persistent_workers': True}, {'persistent_workers': False}),
        ({'num_workers': 0, 'prefetch_factor': 2}, {'prefetch_factor': None}),
        (
            {'batch_sampler': {'type': 'BatchSampler'}, 'drop_last': True},
            {'drop_last': False, 'batch_sampler.drop_last': True},
        ),
    ],
)
def test_a_loader_with_settings_that_exclude_each_other_is_named_with_the_fix(loader, fix):
    cfg = Config({'train_dataloader': {'num_workers': 1}, 'val_dataloader': loader})
    built = dict(cfg.val_dataloader)
    if 'batch_sampler' in built:
        built['batch_sampler'] = BatchSampler(range(4), 2, False)
    with pytest.raises(ConfigError) as caught, config_faults(cfg):
        DataLoader(range(4), **built)
    pairs = (f'val_dataloader.{key}={value}' for key, value in fix.items())
    assert str(caught.value).endswith(f'; set {" and ".join(pairs)}')
    built.update((key, value) for key, value in fix.items() if '.' not in key)
    DataLoader(range(4), **built)  # torch accepts it


@pytest.mark.parametrize('error', [RuntimeError('a'), DataError('a'), OSError('a')])
def test_other_errors_of_a_build_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, config_faults({}):
        raise error
    assert caught.value is error


def test_every_default_hook_can_be_left_out(tmp_path):
    names = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
    cfg = {'model': {'type': Layers.__name__}, 'work_dir': str(tmp_path / 'a' / 'b')}
    cfg = Config({**cfg, 'experiment_name': str(tmp_path), 'log_level': 'ERROR'})
    assert len(build_runner(cfg).hooks) == len(names)
    cfg.default_hooks = dict.fromkeys((*names, 'summary'))
    cfg.experiment_name += ' without'
    runner = build_runner(cfg)
    assert runner.hooks == [] and type(runner) is CheckedRunner and not runner.distributed
    cfg.runner_type = 'Ranner'
    with pytest.raises(ConfigError, match="unknown runner_type 'Ranner'; use CheckedRunner"):
        build_runner(cfg)


@pytest.mark.parametrize(
    ('kind', 'options', 'key'),
    [
        ('CheckpointHook', {'intervall': 3}, 'intervall'),
        ('mmpretrain.VisualizationHook', {'draw_scores': True}, 'draw_scores'),
        ('mmpretrain.VisualizationHook', {'draw_score': True}, None),
    ],
)
def test_arguments_that_a_hook_only_passes_on_are_checked(tmp_path, kind, options, key):
    import mmpretrain.engine
    import mmpretrain.visualization  # noqa: F401 (registers the hook and its visualizer)

    cfg = {
        'model': {'type': Layers.__name__},
        'work_dir': str(tmp_path / 'a'),
        'experiment_name': f'{tmp_path} {key}',
        'custom_hooks': [{'type': kind, **options}],
        'visualizer': {'type': 'mmpretrain.UniversalVisualizer', 'name': f'{tmp_path} {key}'},
        'log_level': 'ERROR',
    }
    if key is None:
        build_runner(Config(cfg))
        return
    with pytest.raises(ConfigError, match=f"custom_hooks.0.{key}: .* has no argument '{key}'"):
        build_runner(Config(cfg))


class Forwarding(CheckedRunner):
    def save_checkpoint(self, *args, **kwargs):
        super().save_checkpoint(*args, **kwargs)


def test_a_runner_that_passes_on_all_arguments_of_a_hook_is_not_refused(tmp_path):
    hooks = {'checkpoint': {'type': 'CheckpointHook', 'backend_args': None, 'other': 1}}
    cfg = {'model': {'type': Layers.__name__}, 'default_hooks': hooks, 'log_level': 'ERROR'}
    cfg = Config({**cfg, 'work_dir': str(tmp_path), 'experiment_name': str(tmp_path)})
    Forwarding.from_cfg(cfg)
    with pytest.raises(ConfigError, match=r"^the config: .* has no argument 'other'"):
        CheckedRunner.from_cfg(cfg)


@VISBACKENDS.register_module(force=True)
class Configs(LocalVisBackend):
    given = []

    def add_config(self, config, **kwargs):
        self.given.append(config.name)


def test_the_backends_get_the_config_when_the_run_has_begun_and_later_ones(tmp_path):
    cfg = {'model': {'type': Layers.__name__}, 'name': 'first', 'log_level': 'ERROR'}
    cfg = Config({**cfg, 'work_dir': str(tmp_path), 'experiment_name': str(tmp_path)})
    cfg.visualizer = {'type': 'Visualizer', 'name': str(tmp_path)}
    cfg.visualizer.vis_backends = [{'type': 'Configs'}]
    cfg.default_hooks = dict.fromkeys(REMOVABLE)
    runner = CheckedRunner.from_cfg(cfg)
    assert Configs.given == []
    runner.call_hook('after_test_iter', batch_idx=0, data_batch=None, outputs=[])
    runner.visualizer.add_config(Config({'name': 'later'}))
    assert Configs.given == ['first', 'later']


def test_the_device_is_the_one_that_was_asked_for(monkeypatch):
    chosen = []
    monkeypatch.setattr('mmengine.device.utils.DEVICE', 'own')
    monkeypatch.setattr(torch.cuda, 'set_device', chosen.append)  # there may be none here
    for device, expected in ((None, 'own'), ('cuda:1', 'cuda'), ('cuda', 'cuda'), ('cpu', 'cpu')):
        set_device(device)
        assert mmengine.device.get_device() == expected
    assert chosen == [1, 0]
