"""What a training says while it runs and leaves behind: console, summary.json, next commands."""

import contextlib
import io
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import MessageHub

from evit_mm.data import make_shapes
from evit_mm.runner import console, summary
from evit_mm.runner.config import load_config
from evit_mm.runner.train import train
from tests.conftest import ROOT
from tests.trainings import write_config

EXTRA = 'train_cfg = dict(max_epochs=2, val_interval=1)\n'
# without them a checkpoint does not fit
NARROW = {
    'model.neck.out_channels': 8,
    'model.bbox_head.in_channels': 8,
    'model.test_cfg.score_thr': 0.0,
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / "the customer's set"
    return make_shapes(folder, 24, 8, size=(96, 80), quiet=True)


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    """A work dir after two epochs with overrides, and what the console showed."""
    folder = tmp_path_factory.mktemp('trained')
    config, said = write_config(folder, data, EXTRA), io.StringIO()
    with contextlib.redirect_stdout(said):
        train(config, str(folder / 'my work'), seed=7, device='cpu', cfg_options=NARROW)
    return folder / 'my work', said.getvalue()


def read(work):
    return json.loads((work / 'summary.json').read_text())


def read_log(work):
    return max(work.glob('*/*.log')).read_text()  # the newest


def test_summary_has_what_the_log_has(trained):
    work, _ = trained
    (file,) = work.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    scores = {line['step']: line['coco/bbox_mAP'] for line in lines if 'coco/bbox_mAP' in line}
    found = read(work)
    best = max(scores, key=lambda epoch: (scores[epoch], -epoch))
    assert set(scores) == {1, 2} and found['finished'] is True
    assert found['best'] == {
        'metric': 'coco/bbox_mAP',
        'value': scores[best],
        'epoch': best,
        'checkpoint': f'best_coco_bbox_mAP_epoch_{best}.pth',
    }
    assert (work / found['best']['checkpoint']).is_file()
    assert found['seed'] == 7 and found['command'][1:] == sys.argv
    assert found['versions']['mmdet'] and found['host']['cores'] == os.cpu_count()
    assert found['host']['gpu'] is None and found['peak_memory_mib']['gpu'] is None
    assert 100 < found['peak_memory_mib']['ram'] < 10**5
    # each line has the mean over all iterations so far
    spent = [6 * line['time'] for line in lines if 'loss' in line][-1]
    assert spent < found['seconds'] < 600


def test_the_memory_of_a_process_is_its_own(monkeypatch):
    """ru_maxrss of a child process starts at the memory of its parent."""
    of_parent = Mock(getrusage=Mock(return_value=Mock(ru_maxrss=2**40)))
    monkeypatch.setattr(summary, 'resource', of_parent)
    assert 100 < summary.peak_memory()['ram'] < 10**5


def test_the_console_is_short_and_the_file_has_all(trained):
    work, said = trained
    log = read_log(work)
    assert re.findall(r'^epoch \d/2  iteration \d/3', said, re.M) == [
        f'epoch {epoch}/2  iteration {i}/3' for epoch in (1, 2) for i in (1, 2, 3)
    ]
    line = r'loss (\S+)  lr \d\.\d\de-0\d  AP (\d\.\d{3})  left \d:\d\d:\d\d\n'
    loss, best = re.search(r'^epoch 2/2  iteration 1/3  ' + line, said, re.M).groups()
    assert f' loss: {loss} ' in log  # the very figure of the file
    assert float(best) == pytest.approx(read_scores(work)[0], abs=5e-4)
    assert 'AP' not in re.search(r'^epoch 1/2  iteration 3/3.*', said, re.M)[0]
    hidden = ('paramwise_options', 'Hooks will be executed', 'Exp name:', 'Saving checkpoint')
    hidden += ('Evaluating bbox', 'area=   all', 'Epoch(val)')
    for text in (*hidden, 'Epoch(train)', 'System environment', "runner_type='"):
        assert text in log and text not in said
    evaluations = (
        r'^epoch (\d)/2  evaluated: coco/bbox_mAP_copypaste: (\d\.\d{3})( -?\d\.\d{3}){5}$'
    )
    found = re.findall(evaluations, said, re.M)
    assert [epoch for epoch, *_ in found] == ['1', '2']
    assert [float(score) for _, score, _ in found] == read_scores(work)
    lines = said.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith('epoch 1/2  iteration 1/3'))
    end = next(i for i, line in enumerate(lines) if 'finished after' in line)
    assert end - start == 6 + 2 + 2  # iterations, evaluations and their progress
    assert not set('\r\b\x1b') & set(said)
    assert said.count('evaluating  1/1') == 2
    assert 'finished after 2 of 2 epochs' in said and 'finished after 2 of 2 epochs' in log


def read_scores(work):
    (file,) = work.glob('*/vis_data/scalars.json')
    lines = map(json.loads, file.read_text().splitlines())
    return [line['coco/bbox_mAP'] for line in lines if 'coco/bbox_mAP' in line]


@pytest.mark.slow
def test_the_printed_commands_run(trained, tmp_path):
    work, said = trained
    commands = [shlex.split(line) for line in re.findall(r'^  (python .+)', said, re.M)]
    assert [Path(command[1]).stem for command in commands][:2] == ['test', 'predict']
    assert len(commands) == 3 and Path(commands[2][1]).stem in ('report', 'export')
    assert Path(commands[2][1]).is_file()
    said = ''
    for command in commands[:2]:
        done = subprocess.run(
            [sys.executable, *command[1:]],
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        said += done.stdout
    shown = float(re.search(r'area=   all \| maxDets=100 \] = (\S+)', said)[1])
    assert shown == read(work)['best']['value']
    assert len(json.loads((work / 'predictions' / 'results.json').read_text())) > 0
    assert len(list((work / 'predictions').glob('*.[jp]*g'))) == 8


def test_what_is_for_the_file_stays_off_the_console_but_at_debug_level(capsys):
    logger = logging.Logger('x')
    handler = logging.StreamHandler(sys.stdout)
    logger.addHandler(handler)
    for level, shown in ((logging.INFO, 'kept\n'), (logging.DEBUG, 'hidden\nkept\n')):
        handler.setLevel(level)
        with console.file_only(logger):
            logger.info('hidden')
            logger.warning('kept')
        assert capsys.readouterr().out == shown and handler.level == level
    handler.setLevel(logging.INFO)
    with console.file_only(logger, errors=True):
        logger.warning('hidden')
    logger.info('back')
    assert capsys.readouterr().out == 'back\n'


def test_seconds_add_up_over_a_resume_and_the_best_stays(data, tmp_path):
    config, work = write_config(tmp_path, data, EXTRA), tmp_path / 'work'
    stop = StopHook()
    with pytest.raises(KeyboardInterrupt):
        train(config, str(work), seed=1, device='cpu', hooks=[stop])
    first = read(work)
    assert first['finished'] is False and first['best']['epoch'] == 1
    assert 'stopped after 1 of 2 epochs' in read_log(work)
    assert 'next:\n  python ' in read_log(work)
    (work / 'summary.json').write_text(json.dumps({**first, 'seconds': 1000.0}))
    train(config, str(work), resume='auto', device='cpu')
    found = read(work)
    assert found['finished'] is True and 1000 < found['seconds'] < 1600
    assert found['best']['value'] == max(
        float(value) for value in re.findall(r'coco/bbox_mAP: (\S+)  ', ''.join(all_logs(work)))
    )
    assert (work / found['best']['checkpoint']).is_file()

    # resumed once more, in a copy, there is nothing to train
    copied = tmp_path / 'copy'
    shutil.copytree(work, copied)
    old = set(copied.glob('*/*.log'))
    train(config, str(copied), resume='auto', device='cpu')
    again = read(copied)
    assert again['finished'] is True and again['best'] == found['best']
    assert found['seconds'] < again['seconds'] < found['seconds'] + 600
    (said,) = set(copied.glob('*/*.log')) - old
    assert f'{copied / found["best"]["checkpoint"]}' in said.read_text()
    assert f"{work / found['best']['checkpoint']}'" not in said.read_text()


def all_logs(work):
    return [file.read_text() for file in work.glob('*/*.log')]


class StopHook(Hook):
    """Ctrl-C in the second epoch."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.epoch == 1:
            raise KeyboardInterrupt


def test_without_validation_the_last_checkpoint_is_named(data, tmp_path):
    extra = 'train_cfg = dict(max_epochs=1)\nval_cfg = None\nval_dataloader = None\n'
    config = write_config(tmp_path, data, extra)
    text = Path(config).read_text().replace('test_evaluator = val_evaluator', '')
    text = text.replace('val_evaluator = dict', 'val_evaluator = None\ntest_evaluator = dict')
    Path(config).write_text(text.replace('val_dataloader = loader', ''))
    train(config, str(tmp_path / 'work'), device='cpu')
    assert read(tmp_path / 'work')['best'] is None
    log = read_log(tmp_path / 'work')
    assert 'no evaluation result' in log and 'tools/test.py' in log and 'epoch_1.pth' in log


def runner_with(tmp_path, hooks=()):
    hub = MessageHub(str(tmp_path))
    return SimpleNamespace(
        hooks=list(hooks), message_hub=hub, epoch=3, work_dir=str(tmp_path), train_loop=None
    )


@pytest.mark.parametrize(
    ('save_best', 'rule', 'metrics', 'name', 'greater'),
    [
        ('coco/bbox_mAP', None, {'coco/cat_precision': 1.0, 'coco/bbox_mAP': 0.2}, 1, True),
        (None, None, {'coco/cat_precision': 1.0, 'coco/bbox_mAP': 0.2}, 1, True),
        ('auto', None, {'accuracy/top1': 50.0, 'accuracy/top5': 80.0}, 0, True),
        (None, None, {'pascal_voc/mAP': 0.3, 'pascal_voc/AP50': 0.4}, 0, True),
        ('my/error', 'less', {'a/b': 1.0, 'my/error': 2.0}, 1, False),
        (['my/error', 'a/b'], ['less', 'greater'], {'a/b': 1.0, 'my/error': 2.0}, 1, False),
    ],
)
def test_the_watched_figure_is_the_one_that_is_saved_by(
    save_best, rule, metrics, name, greater, tmp_path
):
    runner = runner_with(tmp_path, [CheckpointHook(save_best=save_best, rule=rule)])
    hook = summary.BestMetricHook()
    for runner.epoch, change in ((3, 0.0), (4, 1.0), (5, -1.0)):
        hook.after_val_epoch(runner, {key: x + change for key, x in metrics.items()})
    best = summary.best_so_far(runner)
    assert (best['metric'], best['epoch']) == (list(metrics)[name], 4 if greater else 5)


def test_no_figure_and_nan_are_not_the_best(tmp_path):
    runner, hook = runner_with(tmp_path), summary.BestMetricHook()
    for metrics in (None, {}, {'coco/bbox_mAP': float('nan')}):
        hook.after_val_epoch(runner, metrics)
        assert summary.best_so_far(runner) is None
    for epoch, value in ((4, 0.3), (5, 0.2), (6, 0.3)):
        runner.epoch = epoch
        hook.after_val_epoch(runner, {'coco/bbox_mAP': value})
    assert summary.best_so_far(runner) == {'metric': 'coco/bbox_mAP', 'value': 0.3, 'epoch': 4}


def test_a_broken_summary_counts_as_none(tmp_path):
    assert summary.read_summary(tmp_path) == {}
    for text in ('{"seconds": 1', '[1]', '\udcff'):
        (tmp_path / 'summary.json').write_bytes(text.encode(errors='surrogateescape'))
        assert summary.read_summary(tmp_path) == {}


def test_a_full_disk_is_said_and_the_training_goes_on(tmp_path, monkeypatch):
    def full(path, content, indent):
        raise OSError(28, 'No space left on device')

    said, hook, runner = [], summary.SummaryHook(), runner_with(tmp_path)
    hook.start, runner.logger = 0.0, SimpleNamespace(warning=said.append)
    monkeypatch.setattr(summary, 'write_json', full)
    hook.write(runner)
    assert said == ['summary.json cannot be written (No space left on device)']


def test_a_loop_over_iterations_is_told_in_iterations(data, tmp_path):
    extra = """
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=4, val_interval=2)
train_dataloader['sampler'] = dict(type='InfiniteSampler')
default_hooks['checkpoint'] = dict(by_epoch=False, interval=2)
log_processor = dict(by_epoch=False)
"""
    config, said = write_config(tmp_path, data, extra), io.StringIO()
    with contextlib.redirect_stdout(said):
        train(config, str(tmp_path / 'work'), device='cpu')
    assert re.search(r'^iteration 4/4  loss \S+ .* AP 0\.\d+  left 0:00:00$', said.getvalue(), re.M)
    assert 'finished after 4 of 4 iterations' in said.getvalue()
    assert read(tmp_path / 'work')['finished'] is True


def test_the_text_names_time_memory_best_and_next_commands(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work = tmp_path / 'work'
    work.mkdir()
    cfg = load_config(write_config(tmp_path, data), work_dir=str(work))
    runner = runner_with(work)
    runner.cfg, runner.max_epochs, runner.train_loop = cfg, 5, None
    memory = {'ram': 1536.0, 'gpu': 3072.0}
    facts = {'finished': False, 'seconds': 3661.6, 'peak_memory_mib': memory, 'best': None}
    first = 'stopped after 3 of 5 epochs in 1:01:02; peak: 1.5 GiB of memory, 3.0 GiB of GPU memory'
    assert summary.describe(runner, facts).splitlines() == [first, 'no evaluation result']
    runner.max_epochs = 2  # resumed with fewer epochs than before
    assert summary.describe(runner, facts).startswith('stopped after 3 epochs in 1:01:02; peak')
    runner.max_epochs = 5
    best = {'metric': 'a/b', 'value': 0.123456, 'epoch': 2, 'checkpoint': None}
    said = summary.describe(runner, {**facts, 'best': best}).splitlines()
    assert said[1:] == ['best a/b: 0.1235, epoch 2: its checkpoint is not in the work dir']
    (work / 'best.pth').touch()
    best['checkpoint'] = 'best.pth'
    memory['gpu'] = None
    said = summary.describe(runner, {**facts, 'finished': True, 'best': best}).splitlines()
    assert said[0] == 'finished after 3 of 5 epochs in 1:01:02; peak: 1.5 GiB of memory'
    assert said[1:3] == ["best a/b: 0.1235, epoch 2: 'work/best.pth'", 'next:']
    words = [shlex.split(line)[-6:] for line in said[3:]]
    assert [word[-2:] for word in words[:1]] == [['work/tiny.py', 'work/best.pth']]
    images = str(data / 'val') if not (data / 'test').is_dir() else words[1][-3]
    tail = ['work/tiny.py', 'work/best.pth', images, '--out', 'work/predictions']
    assert words[1][-5:] == tail and words[2][-3:] == ['work', '-o', 'work/report']
    cfg.default_scope = 'mmpretrain'
    commands = summary.next_commands(runner, 'best.pth')
    assert [shlex.split(line)[-2:] for line in commands] == [
        ['work/tiny.py', 'best.pth'], ['--show-dir', 'work/pictures'], ['-o', 'work/report'],
    ]  # fmt: skip


def test_the_next_commands_use_the_values_of_a_run_whose_config_lies_in_its_work_dir(
    data, tmp_path
):
    file = write_config(tmp_path, data)
    runner = runner_with(tmp_path)
    kept = tmp_path / 'log' / 'vis_data' / 'config.py'
    kept.parent.mkdir(parents=True)
    kept.touch()
    runner.log_dir = str(tmp_path / 'log')
    for options, used in (
        ({'model.test_cfg.score_thr': 0.123}, kept),
        ({'test_dataloader.batch_size': 7}, kept),
        ({'train_dataloader.batch_size': 1}, file),  # a test reads nothing of it
    ):
        runner.cfg = load_config(file, options, str(tmp_path))
        command = shlex.split(summary.next_commands(runner, 'best.pth')[0])
        assert command[-2:] == [str(used), 'best.pth'], options


def test_the_best_file_is_the_one_of_its_metric_and_in_the_folder(tmp_path):
    (tmp_path / 'a.pth').touch()
    for known, found in (
        ({}, None),
        ({'best_ckpt': '/old/place/a.pth'}, 'a.pth'),
        ({'best_ckpt': '/old/place/b.pth'}, None),
        ({'best_ckpt_x': 'b.pth', 'best_ckpt_m': 'a.pth'}, 'a.pth'),
    ):
        runner = SimpleNamespace(message_hub=SimpleNamespace(runtime_info=known), work_dir=tmp_path)
        assert summary._best_file(runner, 'm') == found


def test_only_the_first_process_writes_and_the_end_is_told_once(tmp_path, monkeypatch):
    runner, hook = runner_with(tmp_path), summary.SummaryHook()
    runner.logger, runner._resume, runner.seed, runner.world_size = Mock(), False, 3, 1
    monkeypatch.setattr(summary, 'describe', lambda *_: 'the end')
    monkeypatch.setattr(summary, 'is_main_process', lambda: False)
    hook.before_train(runner)
    hook.on_exit(runner)
    assert not list(tmp_path.iterdir()) and not runner.logger.info.called
    monkeypatch.setattr(summary, 'is_main_process', lambda: True)
    hook.before_train(runner)
    assert not list(tmp_path.iterdir())
    hook.after_train_iter(runner, 0)
    assert read(tmp_path)['finished'] is False and read(tmp_path)['best'] is None
    hook.after_train(runner)
    hook.after_run(runner)
    hook.on_exit(runner)
    assert [call.args[0] for call in runner.logger.info.call_args_list][1:] == ['the end']
    assert read(tmp_path)['finished'] is True and 0 <= read(tmp_path)['seconds'] < 60
