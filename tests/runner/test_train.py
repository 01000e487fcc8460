"""The tools from end to end, in this process: train, resume, evaluate, draw, predict."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS

from evit_mm.checkpoint import read_checkpoint
from evit_mm.data import make_shapes
from evit_mm.errors import CheckpointError, ConfigError, DataError, EvitError
from evit_mm.runner.build import rehearse, set_device
from evit_mm.runner.config import load_config
from evit_mm.runner.resuming import find_resumed
from evit_mm.runner.test import test as run_test
from evit_mm.runner.train import train
from evit_mm.utils.provenance import commit
from tests.conftest import ROOT
from tests.trainings import write_config


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'set', 24, 8, size=(96, 80), quiet=True)


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    """A config and the checkpoint that two epochs of it leave."""
    folder = tmp_path_factory.mktemp('trained')
    config = write_config(folder, data)
    runner = train(config, work_dir=str(folder / 'work'), seed=1, device='cpu')
    assert runner.iter == 6
    return config, folder / 'work' / 'epoch_2.pth'


def test_training_leaves_checkpoint_log_and_best(trained):
    _, checkpoint = trained
    content = read_checkpoint(checkpoint)
    assert content['meta']['seed'] == 1
    assert content['meta']['dataset_meta']['classes'][3] == 'star'
    assert list(checkpoint.parent.glob('best_coco_bbox_mAP*.pth'))
    log = next(checkpoint.parent.glob('*/*.log')).read_text()
    assert 'coco/bbox_mAP' in log


def test_resume_goes_on_where_it_stopped(trained, tmp_path):
    config, checkpoint = trained
    options = {'train_cfg.max_epochs': 3, 'train_cfg.val_interval': 3}
    by_file = train(
        config, str(tmp_path / 'a'), resume=str(checkpoint), cfg_options=options, device='cpu'
    )
    assert (by_file.epoch, by_file.iter, by_file.seed) == (3, 9, 1)
    shutil.copytree(checkpoint.parent, tmp_path / 'b')
    (tmp_path / 'b' / 'last_checkpoint').write_text(str(checkpoint))
    auto = train(config, str(tmp_path / 'b'), resume='auto', cfg_options=options, device='cpu')
    assert auto.iter == 9
    for a, b in zip(by_file.model.parameters(), auto.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_resume_auto_without_a_checkpoint_starts_anew(trained, tmp_path):
    config, _ = trained
    options = {'train_cfg.max_epochs': 1}
    runner = train(config, str(tmp_path), resume='auto', cfg_options=options, device='cpu')
    assert runner.iter == 3


def test_resume_auto_without_a_checkpoint_keeps_the_weights_to_start_from(
    trained, tmp_path, monkeypatch
):
    config, checkpoint = trained
    built = []
    monkeypatch.setattr(
        'evit_mm.runner.train.build_runner', lambda *_: built.append(_[0]) or Mock()
    )
    arguments = {'resume': 'auto', 'cfg_options': {'load_from': str(checkpoint)}}
    train(config, str(tmp_path), **arguments)
    assert built[0].load_from == str(checkpoint) and not built[0].resume
    shutil.copy(checkpoint, tmp_path)
    train(config, str(tmp_path), **arguments)
    assert find_resumed(built[1]) is not None
    assert built[1].load_from == str(tmp_path / checkpoint.name) and built[1].resume
    # as mmdet's own tool asks for it, in an empty folder
    cfg = load_config(config, {'resume': True}, str(tmp_path / 'empty'))
    assert find_resumed(cfg) is None and not cfg.resume


def test_resume_runs_nothing_from_the_checkpoint(trained, tmp_path):
    config, checkpoint = trained
    content = read_checkpoint(checkpoint)
    trap = tmp_path / 'went_off'
    content['meta']['config'] = f'import os\nos.mkdir({str(trap)!r})\n'
    # as a user's own list would, this replaces the hooks of the base config
    config = write_config(tmp_path, ROOT, 'custom_hooks = []\n')
    shutil.copy(trained[0], config)
    with open(config, 'a') as file:
        file.write('custom_hooks = []\n')
    torch.save(content, tmp_path / 'evil.pth')
    options = {'train_cfg.max_epochs': 3, 'train_cfg.val_interval': 9}
    train(
        config,
        str(tmp_path / 'work'),
        resume=str(tmp_path / 'evil.pth'),
        cfg_options=options,
        device='cpu',
    )
    assert not trap.exists()


@pytest.mark.parametrize(
    ('change', 'lacking'),
    [
        ({'optimizer': None, 'meta': {}}, 'no optimizer and no meta,'),
        ({'message_hub': 'text'}, 'no message_hub,'),
        ({'meta': {'seed': 1}}, 'no meta.epoch and no meta.iter,'),
    ],
)
def test_resume_names_what_the_checkpoint_lacks(trained, tmp_path, change, lacking):
    config, checkpoint = trained
    torch.save({**read_checkpoint(checkpoint), **change}, tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match=f'{lacking}.*load_from='):
        train(config, str(tmp_path / 'work'), resume=str(tmp_path / 'w.pth'))


def test_the_config_of_a_training_stays_as_it_was(trained, tmp_path):
    config, checkpoint = trained
    work = shutil.copytree(checkpoint.parent, tmp_path / 'work')
    recorded = (work / 'tiny.py').read_text()
    assert 'default_hooks' in recorded and recorded != Path(config).read_text()
    run_test(
        str(work / 'tiny.py'), str(checkpoint), out=str(tmp_path / 'a.pkl'), work_dir=str(work)
    )
    assert (work / 'tiny.py').read_text() == recorded
    own = Path(shutil.copy(config, tmp_path))
    train(str(own), str(tmp_path), device='cpu', cfg_options={'train_cfg.max_epochs': 1})
    assert own.read_text() == Path(config).read_text()


def test_a_config_without_a_file_and_without_some_parts_trains(trained, tmp_path):
    cfg = load_config(trained[0], work_dir=str(tmp_path))
    cfg.default_hooks.update(data_check=None, timer=None)
    cfg.update(test_dataloader=None, test_cfg=None, test_evaluator=None)
    cfg = Config({**cfg.to_dict(), 'train_cfg': {**cfg.train_cfg, 'max_epochs': 1}})
    runner = RUNNERS.build(cfg)
    runner.train()
    assert runner.epoch == 1 and (tmp_path / f'{runner.timestamp}.py').is_file()
    assert not {'DataCheckHook', 'IterTimerHook'} & {type(hook).__name__ for hook in runner.hooks}


@pytest.mark.parametrize(
    'optimizer',
    [
        {'optimizer': {'_delete_': True, 'type': 'SGD', 'lr': 0.01, 'weight_decay': 0.05}},
        {'paramwise_cfg': None},
    ],
)
def test_resume_with_another_optimizer_is_refused(trained, tmp_path, optimizer):
    config, checkpoint = trained
    shutil.copy(config, tmp_path)
    other = f'optim_wrapper = {optimizer!r}\n'
    config = tmp_path / Path(config).name
    config.write_text(config.read_text() + other)
    with pytest.raises(
        ConfigError, match='the optimizer .* differ from those in checkpoint .*; resume with'
    ):
        train(config, str(tmp_path / 'work'), resume=str(checkpoint), device='cpu')


@pytest.mark.parametrize('rate', [1e-3, 5e-4])
def test_resume_with_another_rate_takes_the_one_of_the_config(trained, tmp_path, rate):
    config, checkpoint = trained
    options = {
        'train_cfg.max_epochs': 3,
        'train_cfg.val_interval': 9,
        'optim_wrapper.optimizer.lr': rate,
    }
    runner = train(config, str(tmp_path), resume=str(checkpoint), cfg_options=options, device='cpu')
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert ('optim_wrapper.optimizer.lr (0.001, now 0.0005)' in log) == (rate != 1e-3)
    assert {g['initial_lr'] for g in runner.optim_wrapper.param_groups} == {rate}


def test_scaled_rate_reaches_the_optimizer_and_amp_needs_a_gpu(trained, tmp_path):
    config, _ = trained
    options = {
        'train_dataloader.batch_size': 4,
        'train_cfg.max_epochs': 1,
        'param_scheduler': None,
    }
    runner = train(config, str(tmp_path), auto_scale_lr=True, cfg_options=options, device='cpu')
    assert runner.optim_wrapper.get_lr()['lr'][0] == pytest.approx(1e-3 * 4 / 8)
    with pytest.raises(ConfigError, match='--amp needs a GPU'):
        train(config, str(tmp_path), amp=True, device='cpu')


def test_deterministic_runs_are_bit_equal_and_say_how_they_were_made(data, tmp_path):
    config = write_config(tmp_path, data)
    seen = []

    class Watch(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen.append(torch.are_deterministic_algorithms_enabled())

    arguments = {'seed': 4, 'device': 'cpu', 'hooks': [Watch()], 'deterministic': True}
    options = {'train_cfg.max_epochs': 1}
    try:
        first, second = (
            train(config, str(tmp_path / name), cfg_options=options, **arguments) for name in 'ab'
        )
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    assert seen == [True] * 6
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    log = next((tmp_path / 'a').glob('*/*.log')).read_text()
    for text in (
        'seed: 4\n',
        f'commit: {commit()}\n',
        f'torch {torch.__version__.split("+")[0]}',
        'deterministic: True',
        'RandomFlip',  # the config
    ):
        assert text in log, text


def test_evaluation_writes_pictures_and_results(trained, tmp_path):
    config, checkpoint = trained
    metrics = run_test(
        config,
        checkpoint,
        out=str(tmp_path / 'all.pkl'),
        show_dir=str(tmp_path / 'pictures'),
        work_dir=str(tmp_path / 'work'),
        device='cpu',
    )
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    pictures = sorted((tmp_path / 'pictures').glob('*.jpg'))
    assert len(pictures) == 8
    assert cv2.imread(str(pictures[0])).shape == (80, 192, 3)  # ground truth beside detections
    assert (tmp_path / 'all.pkl').stat().st_size > 1000
    run_test(
        config,
        checkpoint,
        out=str(tmp_path / 'r.json'),
        work_dir=str(tmp_path / 'work'),
        device='cpu',
    )
    results = json.loads((tmp_path / 'r.json').read_text())
    assert {'image_id', 'category_id', 'bbox', 'score'} == set(results[0])


def test_evaluation_equals_that_of_training(trained, tmp_path):
    config, checkpoint = trained
    logs = list(checkpoint.parent.glob('*/vis_data/scalars.json'))
    during = json.loads(logs[0].read_text().splitlines()[-1])
    assert len(logs) == 1 and during['step'] == 2 and during['coco/bbox_mAP_50'] > 0
    after = run_test(config, checkpoint, work_dir=str(tmp_path), device='cpu')
    assert after['coco/bbox_mAP_50'] == during['coco/bbox_mAP_50']


def test_a_checkpoint_of_another_model_is_refused(trained, tmp_path):
    config, checkpoint = trained
    other = {'model.backbone.arch.depths': [1, 1, 1]}
    with pytest.raises(CheckpointError, match=r'unexpected: backbone\.blocks3\.4'):
        run_test(config, checkpoint, work_dir=str(tmp_path), cfg_options=other, device='cpu')


def test_resuming_or_starting_from_another_model_is_refused(trained, tmp_path):
    config, checkpoint = trained
    other = {'model.backbone.arch.embed_dims': [16, 24, 48], 'model.neck.in_channels': [16, 24, 48]}
    with pytest.raises(CheckpointError, match='does not fit'):
        train(config, str(tmp_path), resume=str(checkpoint), cfg_options=other, device='cpu')
    start = {**other, 'load_from': str(checkpoint)}
    with pytest.raises(CheckpointError, match='does not fit'):
        train(config, str(tmp_path), cfg_options=start, device='cpu')
    # another head is what fine-tuning is for
    start = {
        'load_from': str(checkpoint),
        'model.bbox_head.stacked_convs': 2,
        'train_cfg.max_epochs': 1,
    }
    assert train(config, str(tmp_path), cfg_options=start, device='cpu').iter == 3


@pytest.mark.parametrize('wrapping', ['model', 'bare'])
def test_the_weights_that_were_checked_are_evaluated(trained, tmp_path, wrapping):
    config, checkpoint = trained
    expected = run_test(config, checkpoint, work_dir=str(tmp_path), device='cpu')
    state = read_checkpoint(checkpoint)['state_dict']
    torch.save({'model': state} if wrapping == 'model' else state, tmp_path / 'w.pth')
    found = run_test(config, tmp_path / 'w.pth', work_dir=str(tmp_path), device='cpu')
    assert found == expected and expected['coco/bbox_mAP_50'] > 0


def test_class_names_of_another_order_are_refused(trained, tmp_path):
    config, checkpoint = trained
    classes = ('square', 'circle', 'triangle', 'star', 'cross')
    options = {'test_dataloader.dataset.metainfo.classes': classes}
    with pytest.raises(DataError, match='not in the order'):
        run_test(config, checkpoint, work_dir=str(tmp_path), cfg_options=options, device='cpu')


def test_truncated_checkpoint_is_named(trained, tmp_path):
    config, checkpoint = trained
    cut = tmp_path / 'cut.pth'
    cut.write_bytes(checkpoint.read_bytes()[:50000])
    with pytest.raises(CheckpointError, match=r'cut\.pth'):
        run_test(config, cut, work_dir=str(tmp_path), device='cpu')
    with pytest.raises(CheckpointError, match=r'cut\.pth'):
        train(config, str(tmp_path), resume=str(cut), device='cpu')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'model.backbone.arch': 'm9'}, "unknown arch 'm9'"),
        ({'model.backbone.frozen_stages': 9}, 'frozen_stages must be'),
        ({'model.neck.num_outs': 2}, 'num_outs must be at least 4'),
        ({'modle.type': 'x'}, "unknown key 'modle' .did you mean 'model'"),
        ({'model': 3}, "'model' is missing"),
        ({'model.backbone.frozen_stage': 1}, "EfficientViT has no argument 'frozen_stage'"),
        ({'model.backbon.arch': 'm0'}, "RetinaNet has no argument 'backbon'"),
        ({'model.backbone.arc': 'm0'}, "model.backbone.arc: Eff.* 'arc' .did you mean 'arch'"),
        ({'optim_wrapper.optimizer.lrr': 1}, "optimizer.lrr: Fused.* 'lrr' .did you mean 'lr'"),
        ({'train_cfg.max_epoch': 1}, "train_cfg.max_epoch: Exact.* .did you mean 'max_epochs'"),
        ({'train_dataloader.batchsize': 1}, "train_dataloader.batchsize: .*mean 'batch_size'"),
        ({'optim_wrapper.optimizer.type': 'AdamX'}, 'optim_wrapper.optimizer.type: AdamX is not'),
        ({'train_dataloder.batch_size': 4}, "unknown key 'train_dataloder' .did you mean"),
        (
            {'model.backbone.type': 'EfficientVit'},
            r"backbone.type: EfficientVit is not in the .* .did you mean 'EfficientViT'",
        ),
        ({'train_dataloader.dataset.pipelin': []}, "no argument 'pipelin'"),
    ],
)
def test_misspelt_keys_are_named(trained, tmp_path, options, message):
    config, _ = trained
    with pytest.raises(ConfigError, match=message):
        train(config, str(tmp_path), cfg_options=options, device='cpu')


def test_missing_and_broken_configs_devices_and_sources_are_named(trained, tmp_path):
    config, checkpoint = trained
    with pytest.raises(ConfigError, match=r"config 'no\.py' does not exist"):
        load_config('no.py')
    with pytest.raises(
        ConfigError, match=r'is a folder; give .* in it, for example one of tiny\.py'
    ):
        load_config(Path(config).parent)
    (tmp_path / 'README.md').write_text('')
    with pytest.raises(ConfigError, match=r"README\.md' is not a config; .* ends in \.py"):
        load_config(tmp_path / 'README.md')
    (tmp_path / 'broken.py').write_text('a = (')
    with pytest.raises(ConfigError, match=r"broken\.py' cannot be read"):
        load_config(tmp_path / 'broken.py')
    with pytest.raises(ConfigError, match="--device 'gpu'"):
        set_device('gpu')
    with pytest.raises(ConfigError, match=r'must end in \.pkl or \.json'):
        run_test(config, checkpoint, out='x.txt')
    with pytest.raises(ConfigError, match='base_batch_size'):
        train(config, auto_scale_lr=True, cfg_options={'auto_scale_lr': None})


def test_work_dir_of_the_command_line_wins(trained):
    config, _ = trained
    assert load_config(config).work_dir == 'work_dirs/tiny'
    assert load_config(config, {'work_dir': 'a'}).work_dir == 'a'
    assert load_config(config, {'work_dir': 'a'}, 'b').work_dir == 'b'


@RUNNERS.register_module(force=True)
class Kept:
    """A runner that only keeps what it was built from."""

    rank = 0

    def __init__(self, cfg):
        self.cfg, self.hooks, self.trained = cfg, [], False
        self.register_hook = self.hooks.append

    @classmethod
    def from_cfg(cls, cfg):
        return cls(cfg)

    def train(self):
        self.trained = list(self.hooks)

    def test(self):
        return {'runner': self, 'hooks': list(self.hooks)}


def test_the_arguments_of_a_training_reach_its_runner(tmp_path, monkeypatch):
    config, keep, hook = write_config(tmp_path, ROOT), {'runner_type': 'Kept'}, Hook()
    plain = train(config, str(tmp_path / 'a'), cfg_options=keep)
    cfg = plain.cfg
    assert (cfg.launcher, cfg.resume, cfg.load_from, plain.trained) == ('none', False, None, [])
    assert not cfg.auto_scale_lr.get('enable') and 'seed' not in cfg.get('randomness', {})
    assert (
        not cfg.get('randomness', {}).get('deterministic') and 'tracking' not in cfg.default_hooks
    )
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    full = train(
        config, str(tmp_path / 'b'), 'x.pth', auto_scale_lr=True, launcher='mpi', seed=0,
        cfg_options=keep, hooks=[hook], deterministic=True, track=['tensorboard'],
    )  # fmt: skip
    cfg = full.cfg
    assert (cfg.launcher, cfg.resume, cfg.load_from, full.trained) == ('mpi', True, 'x.pth', [hook])
    assert cfg.auto_scale_lr.enable is True and os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'
    assert cfg.randomness == {'seed': 0, 'deterministic': True}
    assert cfg.default_hooks.tracking.trackers == ['tensorboard']
    options = {**keep, 'randomness': {'deterministic': True}}
    largest = train(config, str(tmp_path), cfg_options=options, seed=2**32 - 1)
    assert largest.cfg.randomness == {'deterministic': True, 'seed': 2**32 - 1}
    for seed in (-1, 2**32):
        with pytest.raises(ConfigError, match='--seed must be from 0'):
            train(config, str(tmp_path), seed=seed, cfg_options=keep)


@pytest.mark.parametrize(
    ('given', 'kind'),
    [
        ({}, 'AmpOptimWrapper'),
        ({'optim_wrapper.type': 'AGCOptimWrapper'}, 'AmpAGCOptimWrapper'),
        ({'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.loss_scale': 8.0}, None),
    ],
)
def test_mixed_precision_keeps_the_kind_of_wrapper_and_its_loss_scale(
    tmp_path, monkeypatch, given, kind
):
    monkeypatch.setattr('mmengine.device.utils.DEVICE', 'cuda')
    options = {'runner_type': 'Kept', **given}
    wrapper = train(
        write_config(tmp_path, ROOT), str(tmp_path), amp=True, cfg_options=options
    ).cfg.optim_wrapper
    assert wrapper.type == (kind or 'AmpOptimWrapper')
    assert wrapper.loss_scale == ('dynamic' if kind else 8.0)


def test_the_arguments_of_an_evaluation_reach_its_runner(tmp_path):
    config, hook = write_config(tmp_path, ROOT), Hook()

    torch.save({}, tmp_path / 'x.pth')

    def tested(checkpoint=str(tmp_path / 'x.pth'), out=None, options=(), **arguments):
        keep = {'runner_type': 'Kept', 'resume': True, **dict(options)}
        return run_test(config, checkpoint, out, cfg_options=keep, work_dir=str(tmp_path / 'w'),
                        **arguments)  # fmt: skip

    found = tested(hooks=[hook], launcher='mpi', show_dir=os.path.relpath(tmp_path / 'p'))
    cfg = found['runner'].cfg
    assert (cfg.launcher, cfg.resume, cfg.load_from) == ('mpi', False, str(tmp_path / 'x.pth'))
    assert found['hooks'] == [hook] and cfg.work_dir == str(tmp_path / 'w')
    visualization = cfg.default_hooks.visualization
    assert visualization.draw is True and visualization.test_out_dir == str(tmp_path / 'p')
    for key, value in (('.visualization', None), ('', {'_delete_': True})):
        with pytest.raises(ConfigError, match=r'set it to dict\(type=.DetVisualizationHook.\)$'):
            tested(show_dir=f'{tmp_path}/no', options={f'default_hooks{key}': value})
    assert not (tmp_path / 'no').exists()
    cfg = tested(None)['runner'].cfg
    assert cfg.load_from is None and cfg.launcher == 'none'
    assert not cfg.default_hooks.visualization.get('draw')
    for out, own in ((f'{tmp_path}/a.pickle', 'CocoMetric'), (f'{tmp_path}/b/a.pkl', 'list')):
        two = [{'type': 'A'}, {'type': 'B'}]
        options = {'test_evaluator': two} if own == 'list' else {}
        evaluators = tested(out=out, options=options)['runner'].cfg.test_evaluator
        dump = {'type': 'DumpDetResults', 'out_file_path': out}
        assert evaluators[-1] == dump and len(evaluators) == (3 if own == 'list' else 2)
        assert Path(out).parent.is_dir()
    writes = {'test_evaluator.format_only': True}
    for file in (None, f'{tmp_path}/a.pkl'):
        with pytest.raises(ConfigError, match=r'format_only=True .*; add --out FILE\.json$'):
            tested(out=file, options=writes)
    assert tested(out=f'{tmp_path}/a.json', options=writes)['runner'].cfg.test_evaluator.format_only
    with pytest.raises(ConfigError, match='needs a single test_evaluator, not a list'):
        tested(out=f'{tmp_path}/a.json', options={'test_evaluator': two})
    scope = {'default_scope': 'mmpretrain'}
    with pytest.raises(ConfigError, match=r'must end in \.pkl for a classifier'):
        tested(out=f'{tmp_path}/a.json', options=scope)
    cfg = tested(out=f'{tmp_path}/a.pkl', show_dir=str(tmp_path / 'q'), options=scope)['runner'].cfg
    assert cfg.test_evaluator[-1].type == 'DumpResults'
    visualization = cfg.default_hooks.visualization
    assert visualization.enable is True and visualization.interval == 1
    assert visualization.out_dir == str(tmp_path / 'q')
    out = f'{tmp_path}/r.json'
    for kind in ('bbox', 'segm'):  # as CocoMetric writes them
        Path(f'{out}.partial.{kind}.json').write_text(kind)
    assert tested(out=out)['runner'].cfg.test_evaluator.outfile_prefix == f'{out}.partial'
    assert Path(out).read_text() == 'bbox' and (tmp_path / 'r.segm.json').read_text() == 'segm'


@pytest.mark.slow
def test_tools_print_one_line_for_a_mendable_error(tmp_path):
    def run_tool(*words):
        command = [sys.executable, *words]
        env = {**os.environ, 'PYTHONPATH': str(ROOT)}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)

    config = 'configs/retinanet_evit_m4_coco.py'
    done = run_tool('tools/train.py', config, '--work-dir', str(tmp_path))
    assert done.returncode == 1
    assert 'error: the data sets of config' in done.stderr
    assert 'Traceback' not in done.stderr
    done = run_tool('tools/predict.py', 'no.py', 'x.pth', 'y.jpg', '--out', str(tmp_path))
    assert done.returncode == 1 and 'does not exist; the configs are in ' in done.stderr


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'val_evaluator.metric': 'foo'}, 'metric should be one of'),
        ({'train_dataloader.batch_size': 0}, 'tiny.py: train_dataloader.batch_size must be an int'),
        ({'val_dataloader.batch_size': 'abc'}, "val_dataloader.batch_size must be .*, got 'abc'"),
        ({'train_cfg.max_epochs': 'abc'}, "train_cfg.max_epochs must be an integer .*, got 'abc'"),
        ({'train_cfg.val_interval': 0}, 'train_cfg.val_interval must be .* at least 1, got 0'),
        ({'train_cfg.max_epochs': True}, 'train_cfg.max_epochs must be .*, got True'),
        ({'optim_wrapper.optimizer.lr': -1}, 'optimizer.lr must be a number of at least 0, got -1'),
        ({'optim_wrapper.optimizer.lr': float('nan')}, 'optimizer.lr must be .*, got nan'),
        ({'train_dataloader.dataset.indices': 'abc'}, "train: .*indices is 'abc'; use"),
        ({'optim_wrapper.optimizer.lr': 'fast'}, "optimizer.lr must be a number .*, got 'fast'"),
        ({'model.backbone.init_cfg': 'x'}, 'init_cfg must be a dict'),
        ({'model.backbone.init_cfg': {'type': 'Pretrained'}}, 'has no checkpoint'),
        (
            {'model.backbone.init_cfg': {'type': 'Pretrained', 'checkpoint': 's3://b/x.pth'}},
            "'s3:/+b/x.pth' does not exist",
        ),
    ],
)
def test_values_that_cannot_be_are_named(trained, tmp_path, options, message):
    with pytest.raises(EvitError, match=message):
        train(trained[0], str(tmp_path), cfg_options=options, device='cpu')


@pytest.mark.parametrize(
    ('extra', 'message'),
    [
        ('val_evaluator = dict(_delete_=True, type="VOCMetric")', 'bbox_mAP.*choose.*pascal_voc/m'),
        ('val_evaluator["metric"] = "segm"', "metric='segm', but RetinaNet predicts no masks"),
        ('test_evaluator = dict(test_evaluator, metric=["bbox", "segm"])', "metric='segm', but R"),
        (
            'val_evaluator["metric_items"] = ["mAP_50"]',
            'does not give .*; choose from coco/bbox_mA',
        ),
        ('default_hooks["checkpoint"] = dict(save_best="coco/mAP")', 'save_best.*did you mean'),
        ('default_hooks["checkpoint"] = dict(save_best="auto")', None),
        (
            'val_evaluator.update(classwise=True)\n'
            'default_hooks["checkpoint"] = dict(save_best="coco/star_precision")',
            None,
        ),
        (
            'custom_hooks = [dict(type="EarlyStoppingHook", monitor="coco/AP", rule="less")]',
            'EarlyStoppingHook.monitor is',
        ),
        (
            'train_dataloader.update(batch_size=32, drop_last=True, batch_sampler=None)',
            'train_dataloader has no batch with .* batch_size=32 and drop_last=True; use',
        ),
        (
            'val_dataloader = dict(loader, batch_size=32, drop_last=True)',
            'val_dataloader has no batch',
        ),
        (
            'default_hooks["checkpoint"] = dict(intervall=3)',
            r"default_hooks.checkpoint.intervall: .* \(did you mean 'interval'\?\)",
        ),
        ('default_hooks["checkpoint"] = dict(max_keep_ckpts=3, published_keys=["meta"])', None),
        ('custom_hooks = [dict(type="EMAHook", momentumm=1e-4)]', "has no argument 'momentumm'"),
        (
            'train_pipeline = [dict(type="LoadImageFromFile", imdecode_backend="turbojpeg")]\n'
            'train_dataloader["dataset"] = dict(data, pipeline=train_pipeline)',
            'PyTurboJPEG is not installed; run pip install PyTurboJPEG|mmcv.use_backend',
        ),
        ('load_from = "gone.pth"', "checkpoint 'gone.pth' does not exist"),
        ('model["backbone"]["init_cfg"] = dict(type="Pretrained", checkpoint="gone.pth")', 'gone'),
    ],
)
def test_what_a_rehearsal_refuses_a_training_refuses_before_its_first_image(
    data, tmp_path, monkeypatch, extra, message
):
    config = load_config(write_config(tmp_path, data, extra), work_dir=str(tmp_path / 'work'))
    if message is None:
        rehearse(config)
    else:
        with pytest.raises(EvitError, match=message):
            rehearse(config)
    assert [path.name for path in tmp_path.iterdir()] == ['tiny.py']  # nothing is written
    if message is not None and 'test_evaluator' not in extra:
        monkeypatch.setattr('evit_mm.runner.loop.ExactTrainLoop.run', lambda loop: 1 / 0)
        with pytest.raises(EvitError, match=message):
            train(config.filename, str(tmp_path / 'work'), device='cpu')


def test_a_training_warns_as_its_rehearsal_does(data, tmp_path, monkeypatch):
    config = write_config(tmp_path, data, 'param_scheduler = [dict(type="StepLR", step_size=2)]')
    (note,) = rehearse(load_config(config, work_dir=str(tmp_path / 'work')))
    assert 'param_scheduler.0 (StepLR) has step_size 2, but the run ends at epoch 2' in note
    loop = 'evit_mm.runner.loop.ExactTrainLoop.run'
    monkeypatch.setattr(loop, lambda loop: loop.runner.call_hook('before_train'))
    train(config, str(tmp_path / 'work'), device='cpu')
    (log,) = (tmp_path / 'work').glob('*/*.log')
    (line,) = [line for line in log.read_text().splitlines() if 'StepLR' in line and 'but' in line]
    assert line.endswith(note) and 'WARNING' in line


def test_a_missing_checkpoint_is_named_before_the_data_are_read(data, tmp_path):
    config = write_config(tmp_path, data)
    options = {'test_dataloader.dataset.data_root': 'gone', 'test_evaluator.ann_file': 'gone'}
    with pytest.raises(CheckpointError, match="'gone.pth' does not exist"):
        run_test(config, 'gone.pth', work_dir=str(tmp_path), cfg_options=options, device='cpu')


def test_folders_that_cannot_be_made_and_seeds_are_named_first(trained, tmp_path):
    (tmp_path / 'file').write_text('')
    config, checkpoint = trained
    with pytest.raises(ConfigError, match="--work-dir: folder '.*file' cannot be created"):
        train(config, str(tmp_path / 'file'), device='cpu')
    for arguments in (dict(show_dir=str(tmp_path / 'file')), dict(out=f'{tmp_path}/file/x.json')):
        with pytest.raises(ConfigError, match='cannot be created'):
            run_test(config, checkpoint, work_dir=str(tmp_path), device='cpu', **arguments)
    with pytest.raises(ConfigError, match='--seed must be from 0'):
        train(config, str(tmp_path), seed=2**32, device='cpu')


def test_results_leave_other_files_alone(trained, tmp_path):
    (tmp_path / 'r.bbox.json').write_text('mine')
    config, checkpoint = trained
    run_test(config, checkpoint, out=f'{tmp_path}/r.json', work_dir=f'{tmp_path}/w', device='cpu')
    assert (tmp_path / 'r.bbox.json').read_text() == 'mine'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['r.bbox.json', 'r.json', 'w']


def test_a_copied_folder_resumes_from_its_own_checkpoint(trained, tmp_path):
    config, checkpoint = trained
    copied = tmp_path / 'copy'
    copied.mkdir()
    shutil.copy(checkpoint, copied)
    (copied / 'last_checkpoint').write_text(str(checkpoint))
    options = {'train_cfg.max_epochs': 2}
    runner = train(config, str(copied), resume='auto', cfg_options=options, device='cpu')
    assert runner._load_from == str(copied / checkpoint.name)
