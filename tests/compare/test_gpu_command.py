"""The command for a GPU, rehearsed on the CPU, and the page that it writes."""

import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.gpu import page
from tests.gpu.worker import Worker, as_dict

DOCS = ROOT / 'docs' / 'performance'


@pytest.mark.parametrize('name', ['gpu', 'gpu_h200'])
def test_the_page_is_made_of_its_figures(name):
    content = json.loads((DOCS / f'{name}.json').read_text())
    assert (DOCS / f'{name}.md').read_text() == page.markdown(content)
    assert not content or not content['about'].get('tiny')


class Job:
    """Yields one row, and then does what its name says."""

    def __init__(self, then):
        self.then = then

    def prepare(self, stop):
        if self.then == 'raise in preparing':
            raise RuntimeError('no such network\nand more')

    def measure(self, limit):
        yield [as_dict(page.Row('group', 'first', [limit]), 'table')]
        if self.then == 'raise':
            raise RuntimeError('out of luck')
        if self.then == 'die':
            os._exit(1)
        if self.then == 'hang':
            time.sleep(60)


class Build:
    def __init__(self, then):
        self.then = then

    def __call__(self):
        return Job(self.then)


@pytest.mark.parametrize(
    ('then', 'says'),
    [
        ('end', None),
        ('raise', 'RuntimeError: out of luck'),
        ('raise in preparing', 'RuntimeError: no such network'),
        ('die', 'its process died'),
        ('hang', 'still measuring when time was up'),
    ],
)
def test_what_a_benchmark_cannot_measure_says_why(then, says, tmp_path):
    turns = multiprocessing.get_context('spawn').Semaphore(1)
    worker = Worker('job', Build(then), ('table',), 1, tmp_path, turns)
    while not worker.is_ready(60):
        pass
    rows = [row for rows in worker.measure(0.5, 10 if then == 'hang' else 60) for row in rows]
    assert not worker.process.is_alive()
    measured = [] if then == 'raise in preparing' else ['']
    assert [row['note'] for row in rows] == measured + ([says] if says else [])
    assert all(row['seconds'] == [0.5] for row in rows[: len(measured)])


@pytest.mark.slow
def test_everything_runs_at_tiny_sizes(tmp_path):
    command = [sys.executable, '-m', 'tests.gpu', '--device', 'cpu', '--tiny', '--minutes', '20']
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'EVIT_MM_GPU_TESTS': ''}
    done = subprocess.run(
        [*command, '--out', str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    content = json.loads((tmp_path / 'gpu.json').read_text())
    assert {part['outcome'] for part in content['parts'].values()} == {'done'}
    others = [x for x in content['checks'] if x['outcome'] != 'passed']
    assert [x['reason'] for x in others] == ['--batch-size auto needs a CUDA GPU']
    assert others[0]['outcome'] == 'skipped'
    assert len(content['checks']) > 60
    assert [run['model'] for run in content['trainings'] if 'bbox_mAP' in run['metrics']]
    assert not any(run['fault'] for run in content['trainings'])
    rows = content['rows']
    assert {row['table'] for row in rows} == {'limits', 'batch', 'one', 'detection', 'steps'}
    reasons = {row['note'] for row in rows if not row['seconds']}
    assert reasons == {'ConfigError: a CUDA graph needs --device cuda, got cpu'}
    text = (tmp_path / 'gpu.md').read_text()
    assert text == page.markdown(content)
    assert '**This is a rehearsal at tiny sizes. Do not use its figures.**' in text
