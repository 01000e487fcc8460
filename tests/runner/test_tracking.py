"""TensorBoard's files are read back; MLflow and Weights & Biases are stand-ins."""

import importlib.machinery
import importlib.util
import io
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from evit_mm.data import make_shapes
from evit_mm.errors import ConfigError
from evit_mm.runner import tracking
from evit_mm.runner.test import test as run_test
from evit_mm.runner.train import train
from tests.trainings import launch, succeeded, write_config

EXTRA = 'train_cfg = dict(max_epochs=2, val_interval=1)\n'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Ten images to evaluate, two more than are drawn."""
    return make_shapes(tmp_path_factory.mktemp('data') / 'set', 24, 10, size=(96, 80), quiet=True)


@pytest.fixture(scope='module')
def tracked(data, tmp_path_factory):
    """A work dir of two epochs whose second is done again, and a third."""
    folder = tmp_path_factory.mktemp('tracked')
    config, work = write_config(folder, data, EXTRA), folder / 'work'
    options = {'device': 'cpu', 'track': ['tensorboard']}
    train(config, str(work), seed=1, **options)
    # as after a kill: what was logged beyond this checkpoint comes again
    first = str(work / 'epoch_1.pth')
    more = {'train_cfg.max_epochs': 3}
    train(config, str(work), resume=first, cfg_options=more, **options)
    return work


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = folder.iterdir()  # a resumed run makes no second one
    events = EventAccumulator(str(run), size_guidance={'scalars': 0, 'images': 0})
    return events.Reload()


def test_tensorboard_has_the_scalars_of_the_log_once_each(tracked):
    events = read_events(tracked / 'tensorboard')
    logged = {}
    for file in sorted(tracked.glob('*/vis_data/scalars.json')):
        for line in map(json.loads, file.read_text().splitlines()):
            if 'loss' in line:
                logged[line['step']] = line['loss']
    found = [(event.step, event.value) for event in events.Scalars('loss')]
    assert [step for step, _ in found] == list(range(1, 10))
    for step, value in found:
        assert value == pytest.approx(logged[step], rel=1e-5)
    assert {event.step for event in events.Scalars('coco/bbox_mAP')} == {1, 2, 3}
    assert 'lr' in events.Tags()['scalars']


def test_tensorboard_has_the_same_few_pictures_of_each_evaluation(tracked):
    events = read_events(tracked / 'tensorboard')
    names = events.Tags()['images']
    assert len(names) == tracking.IMAGES == 8
    for name in names:
        shown = events.Images(name)
        assert sorted({event.step for event in shown}) == [1, 2, 3]
        picture = np.array(Image.open(io.BytesIO(shown[-1].encoded_image_string)))
        assert picture.shape == (80, 192, 3)  # truth beside detections
        assert (picture[:, :96] != picture[:, 96:]).any()
    # only the trackers get them
    assert not list(tracked.glob('*/vis_data/vis_image/*'))


def test_an_evaluation_of_its_own_adds_nothing_to_the_trainings_log(tracked, tmp_path):
    def files():
        return {file: file.stat().st_size for file in (tracked / 'tensorboard').rglob('*')}

    before, config = files(), str(tracked / 'tiny.py')
    assert 'TensorboardVisBackend' in Path(config).read_text()
    run_test(config, tracked / 'epoch_3.pth', work_dir=str(tmp_path), device='cpu')
    assert files() == before and not list(tmp_path.rglob('events*'))


def a_config(work_dir, backends=(), **options):
    visualizer = {'type': 'DetLocalVisualizer', 'vis_backends': list(backends)}
    return Config(
        {'work_dir': str(work_dir), 'visualizer': visualizer, 'default_hooks': {}, **options}
    )


def test_a_new_training_in_the_same_folder_has_a_log_of_its_own(tmp_path):
    def folder(resume):
        cfg = a_config(tmp_path, resume=resume)
        tracking.add_trackers(cfg, ['tensorboard'])
        (backend,) = cfg.visualizer.vis_backends
        return backend['save_dir']

    (tmp_path / tracking.STATE).write_text('{"run": "earlier"}')
    assert folder(resume=True) == str(tmp_path / 'tensorboard' / 'earlier')
    assert folder(resume=False) != str(tmp_path / 'tensorboard' / 'earlier')
    (tmp_path / tracking.STATE).write_text('torn{')
    assert folder(resume=True).startswith(str(tmp_path / 'tensorboard'))


def test_a_configs_own_backends_and_options_stay(tmp_path):
    own = [
        {'type': 'LocalVisBackend'},
        {'type': 'WandbVisBackend', 'commit': False, 'init_kwargs': {'project': 'cells'}},
    ]
    cfg = a_config(tmp_path, own)
    try:
        sys.modules['wandb'] = stand_in('wandb')
        tracking.add_trackers(cfg, ['wandb', 'tensorboard'])
    finally:
        del sys.modules['wandb']
    local, wandb, tensorboard = cfg.visualizer.vis_backends
    assert local == own[0] and wandb.commit is False and wandb.save_dir
    assert wandb.init_kwargs.project == 'cells' and wandb.init_kwargs.resume == 'allow'
    assert tensorboard.type == 'TensorboardVisBackend'
    tracking.drop_trackers(cfg)
    assert cfg.visualizer.vis_backends == own[:1]


@pytest.mark.parametrize('name', ['tensorboard', 'mlflow', 'wandb'])
def test_a_missing_package_is_named_before_anything_is_made(name, data, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    config = write_config(tmp_path, data)
    with pytest.raises(ConfigError, match=f'--track {name} needs .* pip install {name}$'):
        train(config, str(tmp_path / 'work'), track=[name], device='cpu')
    assert not list((tmp_path / 'work').glob('*'))


def test_a_refused_run_leaves_nothing_and_keeps_a_work_dir_that_was_there(data, tmp_path):
    config = write_config(tmp_path, data)
    options = {'optim_wrapper.optimizer.lrr': 1}  # an error after the trackers are built
    for folder, is_new in (('new', True), ('old', False)):
        work = tmp_path / folder
        if not is_new:
            work.mkdir()
        with pytest.raises(ConfigError, match='lrr'):
            train(config, str(work), track=['tensorboard'], cfg_options=options, device='cpu')
        assert work.exists() != is_new and not list(work.glob('*'))
    options = {'model.backbone.archh': 'm0'}  # an error while the runner is built
    with pytest.raises(ConfigError, match='archh'):
        train(config, str(tmp_path / 'new'), cfg_options=options, device='cpu')
    assert not (tmp_path / 'new').exists()


def test_an_unknown_tracker_is_refused(data, tmp_path):
    config = write_config(tmp_path, data)
    with pytest.raises(ConfigError, match="'clearml'; choose from tensorboard, mlflow, wandb"):
        train(config, str(tmp_path / 'work'), track=['clearml'], device='cpu')


def stand_in(name):
    """A module that notes each call of a function it is asked for."""
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.calls = []

    def note(attribute):
        if attribute.startswith('__'):
            raise AttributeError(attribute)

        def call(*args, **kwargs):
            module.calls.append((attribute, args, kwargs))

        return call

    module.__getattr__ = note
    return module


def test_mlflow_and_wandb_get_all_and_a_resumed_run_goes_on_in_theirs(data, tmp_path, monkeypatch):
    started = []

    def active_run():
        started.append(os.environ.get('MLFLOW_RUN_ID', 'run-1'))
        return SimpleNamespace(info=SimpleNamespace(run_id=started[-1]))

    def run(resume, epochs):
        modules = {name: stand_in(name) for name in ('mlflow', 'wandb')}
        modules['mlflow'].active_run = active_run
        modules['wandb'].Image = lambda pixels: ('picture', pixels.shape)
        modules['wandb'].run = modules['wandb'].config = stand_in('part')
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        more = {'train_cfg.max_epochs': epochs}
        track = ['mlflow', 'wandb']
        work = str(tmp_path / 'work')
        train(config, work, resume, cfg_options=more, device='cpu', track=track)
        return modules['mlflow'].calls, modules['wandb'].calls

    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    config = write_config(tmp_path, data, EXTRA)
    mlflow, wandb = run(None, 1)
    database = f'sqlite:///{tmp_path / "work" / "mlflow" / "mlflow.db"}'
    assert ('set_tracking_uri', (database,), {}) in mlflow
    figures = [args[0] for name, args, _ in mlflow if name == 'log_metrics']
    assert 'loss' in figures[0] and 'coco/bbox_mAP' in figures[-1]
    pictures = [args for name, args, _ in mlflow if name == 'log_image']
    assert len(pictures) == 8 and pictures[0][0].shape == (80, 192, 3)
    assert all(file.endswith('/epoch_1.png') for _, file in pictures)
    (parameters,) = [args[0] for name, args, _ in mlflow if name == 'log_params']
    assert parameters['model.backbone.type'] == 'EfficientViT'
    first = next(kwargs for name, _, kwargs in wandb if name == 'init')
    logged = [args[0] for name, args, _ in wandb if name == 'log']
    pictures = [e for e in logged if next(iter(e)).startswith('predictions/')]
    assert len(pictures) == 8
    assert all(value == ('picture', (80, 192, 3)) for e in pictures for value in e.values())

    again_mlflow, again_wandb = run('auto', 2)
    second = next(kwargs for name, _, kwargs in again_wandb if name == 'init')
    assert second['id'] == first['id'] and second['resume'] == 'allow'
    assert second['allow_val_change'] is True
    # MLflow refuses another value of a parameter that it has
    assert [args for name, args, _ in again_mlflow if name == 'log_params'] == [({},)]
    assert started == ['run-1', 'run-1'] and 'MLFLOW_RUN_ID' not in os.environ
    assert json.loads((tmp_path / 'work' / 'tracking.json').read_text())['mlflow'] == 'run-1'


def test_mlflow_of_the_environment_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://localhost:5000')
    monkeypatch.setitem(sys.modules, 'mlflow', stand_in('mlflow'))
    cfg = a_config(tmp_path)
    tracking.add_trackers(cfg, ['mlflow'])
    assert cfg.visualizer.vis_backends[-1].tracking_uri == 'http://localhost:5000'
    assert cfg.visualizer.vis_backends[-1].artifact_location is None


def test_logs_lie_in_the_work_dir_under_the_names_of_the_run(tmp_path, monkeypatch):
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    monkeypatch.setenv('MLFLOW_RUN_ID', 'another')
    for name in ('mlflow', 'wandb'):
        monkeypatch.setitem(sys.modules, name, stand_in(name))
    work = tmp_path / 'cells'
    work.mkdir()
    (work / tracking.STATE).write_text('{"run": "first", "wandb": "abc", "mlflow": "id"}')
    cfg = a_config(work, resume=True)
    tracking.add_trackers(cfg, list(tracking.BACKENDS))
    boards, mlflow, wandb = (dict(backend) for backend in cfg.visualizer.vis_backends)
    assert boards == {
        'type': 'TensorboardVisBackend', 'save_dir': str(work / 'tensorboard' / 'first')
    }  # fmt: skip
    assert mlflow == {
        'type': 'MLflowVisBackend', 'save_dir': str(work / 'mlflow'), 'exp_name': 'cells',
        'tracking_uri': f'sqlite:///{work}/mlflow/mlflow.db', 'artifact_suffix': '.log',
        'artifact_location': f'file://{work}/mlflow/artifacts', 'tracked_config_keys': [],
    }  # fmt: skip
    assert os.environ['MLFLOW_RUN_ID'] == 'id'
    init = {'id': 'abc', 'name': 'cells/first', 'resume': 'allow', 'allow_val_change': True}
    assert wandb == {
        'type': 'WandbVisBackend', 'save_dir': str(work / 'wandb'), 'init_kwargs': init
    }  # fmt: skip
    hook = cfg.default_hooks.tracking
    assert (hook.type, hook.trackers, hook.state.run) == (
        'TrackingHook', ['tensorboard', 'mlflow', 'wandb'], 'first',
    )  # fmt: skip
    tracking.drop_trackers(cfg)
    assert cfg.default_hooks == {} and cfg.visualizer.vis_backends == []
    tracking.drop_trackers(Config({}))
    new = a_config(work)
    tracking.add_trackers(new, ['wandb', 'mlflow'])
    wandb, mlflow = new.visualizer.vis_backends
    assert wandb.init_kwargs.id != 'abc' and 'tracked_config_keys' not in mlflow


def test_classifiers_get_no_pictures(tmp_path):
    hook = tracking.TrackingHook(['tensorboard'], {})
    loader = SimpleNamespace(dataset=SimpleNamespace())
    for scope, number in (('mmpretrain', 0), ('mmdet', 8)):
        runner = SimpleNamespace(
            cfg={'default_scope': scope},
            visualizer=Mock(dataset_meta={}),
            val_dataloader=loader,
        )
        hook.before_val_epoch(runner)
        assert hook.left == number


@pytest.mark.slow
def test_of_two_processes_one_writes(data, tmp_path):
    config = write_config(tmp_path, data, "train_dataloader['batch_size'] = 4\n" + EXTRA)
    work = tmp_path / 'work'
    arguments = [config, '--work-dir', work, '--device', 'cpu', '--track', 'tensorboard']
    said = succeeded(launch('train', arguments, 2))
    assert len([f for f in (work / 'tensorboard').rglob('*') if f.is_file()]) == 1
    events = read_events(work / 'tensorboard')
    assert [event.step for event in events.Scalars('loss')] == list(range(1, 7))
    assert len(events.Tags()['images']) == 5  # those of the first process: every other one
    summary = json.loads((work / 'summary.json').read_text())
    assert summary['finished'] and summary['best']['epoch'] in (1, 2)
    assert said.count('finished after 2 of 2 epochs') == 1
