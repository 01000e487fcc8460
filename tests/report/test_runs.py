"""What the report reads from work directories, and how it refuses what is none."""

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys

import pytest

from evit_mm.errors import ConfigError, DataError
from evit_mm.report import charts, runs, write_report
from tests.conftest import ROOT


def write_run(folder, config='model = dict()\n', lines=(), summary=None):
    logs = folder / '20260101_000000' / 'vis_data'
    logs.mkdir(parents=True)
    (folder / 'tiny.py').write_text(config)
    (logs / 'scalars.json').write_text('\n'.join(lines))
    if summary is not None:
        (folder / 'summary.json').write_text(json.dumps(summary))
    return folder


def train_line(step, loss, **more):
    return json.dumps({'loss': loss, 'lr': 0.1, 'iter': step, 'epoch': 1, 'step': step, **more})


def test_curves_of_a_run_that_was_resumed_and_one_that_is_writing(tmp_path):
    lines = [train_line(step, float(step)) for step in (10, 20, 30)]
    lines += ['{"coco/bbox_mAP": 0.25, "step": 1}', '', train_line(40, float('nan'))]
    folder = write_run(tmp_path / 'run', lines=lines)
    second = folder / '20260102_000000' / 'vis_data'
    second.mkdir(parents=True)
    later = [train_line(20, 7.0), '{"coco/bbox_mAP": -1, "step": 2}', '{"loss": 1.0, "ste']
    (second / 'scalars.json').write_text('\n'.join(later))
    run = runs.read_runs([folder])[0]
    assert run.steps['loss'] == [(10, 10.0), (20, 7.0)]  # 30 and 40 were before the resumption
    assert run.ap == [(1, 0.25)] and run.best == (1, 0.25)
    assert run.notes == ['Incomplete lines skipped in scalars.json: 1.']


def test_what_a_run_says_of_how_it_was_made(tmp_path):
    summary = {
        'finished': True, 'seconds': 432.0, 'peak_memory_mib': {'ram': 2048.0, 'gpu': None},
        'command': ['tools/train.py', 'a.py'], 'seed': 3, 'commit': 'abc',
        'versions': {'torch': '2'}, 'host': {'cores': 2, 'cpu': 'X', 'gpu': None},
    }  # fmt: skip
    folders = [
        write_run(tmp_path / 'a', summary=summary),
        write_run(tmp_path / 'b', 'randomness = dict(seed=9)\n', summary=['?']),
    ]
    told, bare = (run.facts() for run in runs.read_runs(folders))
    assert told == {
        'config': 'tiny.py', 'state': 'finished', 'best evaluation': 'not recorded',
        'command': 'tools/train.py a.py', 'seed': '3', 'training time': '0:07:12',
        'peak memory': 'RAM 2.00 GiB', 'commit': 'abc',
        'versions': 'torch 2', 'machine': 'cores: 2, cpu: X',
    }  # fmt: skip
    assert bare['seed'] == '9' and bare['peak memory'] == 'not recorded'
    assert bare['state'] == bare['best evaluation'] == 'not recorded'
    assert bare['training time'] == bare['commit'] == bare['versions'] == 'not recorded'


def test_a_running_training_and_its_best_evaluation(tmp_path):
    lines = [f'{{"val/bbox_mAP": {ap}, "val/bbox_mAP_50": 0.9, "step": {step}, "who": "x"}}'
             for step, ap in ((3, 0.25), (1, 0.0), (2, 0.5))]  # fmt: skip
    summary = {'finished': False, 'seconds': 59.6, 'seed': 0,
               'peak_memory_mib': {'ram': 512.0, 'gpu': 3072.0}}  # fmt: skip
    lines.append(train_line(10, 4.0, time=0.5))
    folder = write_run(tmp_path / 'run', lines=lines, summary=summary)
    (folder / 'tiny.py').rename(folder / '20260101_000000' / 'vis_data' / 'config.py')
    run = runs.read_runs([folder])[0]  # as long as mmengine has not written the other
    assert run.ap == [(1, 0.0), (2, 0.5), (3, 0.25)] and run.best == (2, 0.5)
    assert set(run.evaluations) == {'val/bbox_mAP', 'val/bbox_mAP_50'}
    assert run.steps == {'loss': [(10, 4.0)], 'lr': [(10, 0.1)], 'time': [(10, 0.5)]}
    facts = run.facts()
    assert facts['config'] == 'config.py' and facts['state'] == 'not finished'
    assert facts['best evaluation'] == 'AP 0.500 after epoch 2' and facts['seed'] == '0'
    assert facts['training time'] == '0:01:00'
    assert facts['peak memory'] == 'RAM 0.50 GiB, GPU 3.00 GiB'
    assert run.notes == [] and run.folder == folder
    (folder / '20260101_000000' / 'vis_data' / 'config.py').unlink()
    for name, age in (('b.py', 9), ('c.py', 1), ('d.py', 5)):  # the newest counts
        (folder / name).write_text(f'model = dict(age={age})\n')
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    run = runs.read_runs([folder])[0]
    assert run.config.model.age == 1 and 'age=1' in run.config_text


def test_the_config_of_a_run_is_the_one_that_trained_and_not_an_edited_one(tmp_path):
    folder = write_run(tmp_path / 'run', 'model = dict(edited=True)\n', [train_line(10, 1.0)])
    for log, name in (('20260101_000000', 'trained'), ('20260102_000000', 'tested')):
        (folder / log / 'vis_data').mkdir(parents=True, exist_ok=True)
        (folder / log / 'vis_data' / 'config.py').write_text(f'model = dict({name}=True)\n')
    run = runs.read_runs([folder])[0]  # a test writes a config, too, but no scalars
    assert run.config.to_dict()['model'] == {'trained': True} and 'trained' in run.config_text
    assert run.facts()['config'] == 'tiny.py'


def test_up_to_eight_runs_have_colours_of_their_own(tmp_path, monkeypatch):
    folders = [write_run(tmp_path / f'{i}') for i in range(8)]
    html = write_report(folders, tmp_path / 'out').read_text()
    assert tuple(re.findall(r'class="tile" style="--run: (#\w+)"', html)) == charts.COLOURS
    assert html.count('The training has not logged anything yet.') == 9  # each run, and the curves
    with pytest.raises(ConfigError, match='1 to 8 work dirs, got 0'):
        write_report([], tmp_path / 'out')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError, match='needs jinja2'):
        write_report(folders, tmp_path / 'out')


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / parent / 'run') for parent in ('a', 'b')]
    assert [run.name for run in runs.read_runs(folders)] == list(map(str, folders))
    assert runs.read_runs(folders[:1])[0].name == 'run'


def test_what_is_no_training_is_named(tmp_path):
    (tmp_path / 'empty').mkdir()
    for name in ('nowhere', 'empty'):
        with pytest.raises(DataError, match=f"{name}' is not a work dir"):
            write_report([tmp_path / name], tmp_path / 'out')
    broken = write_run(tmp_path / 'broken', 'model = dict(\n')
    with pytest.raises(ConfigError, match=r'tiny\.py.*cannot be read'):
        write_report([broken], tmp_path / 'out')
    run = write_run(tmp_path / 'run')
    with pytest.raises(DataError, match='given twice'):
        write_report([run, run], tmp_path / 'out')
    with pytest.raises(ConfigError, match='--compare needs two'):
        write_report([run], tmp_path / 'out', compare=True)
    with pytest.raises(ConfigError, match='1 to 8'):
        write_report([run] * 9, tmp_path / 'out')
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match='cannot be written'):
        write_report([run], tmp_path / 'file')
    assert not (tmp_path / 'out').exists()


def test_the_tool_says_an_error_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['report.py', str(tmp_path / 'nowhere')])
    with pytest.raises(SystemExit, match="^error: '.*nowhere' is not a work dir"):
        runpy.run_path(str(ROOT / 'tools' / 'report.py'), run_name='__main__')


def test_make_look_draws_trains_on_and_reports():
    done = subprocess.run(
        ['make', '-n', 'look', 'VENV=env'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    steps = ['tools/make_shapes.py data/shapes', '--seed 0 --work-dir W --resume',
             'tools/report.py W -o report', 'xdg-open report/index.html']  # fmt: skip
    text = done.stdout.replace('work_dirs/retinanet_evit_m4_shapes', 'W')
    places = [text.index(step) for step in steps]
    assert places == sorted(places)


def test_a_config_that_fails_is_named(tmp_path):
    broken = write_run(tmp_path / 'run', 'raise RuntimeError(5)\n')
    with pytest.raises(ConfigError, match=r'RuntimeError: 5\)'):
        write_report([broken], tmp_path / 'out')
