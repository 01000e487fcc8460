"""Run all GPU tests, benchmarks and trainings: python -m tests.gpu --out DIR [options].

First, the tests of this folder run while the benchmarks compile. Then the benchmarks are timed one
after the other, without other work on the GPU. Then detectors are trained on the blood cells. The
results are written to ``gpu.json`` and ``gpu.md`` after each step. Parts that were not reached in
time are marked. ``--parts`` selects parts, and ``python -m tests.gpu.page`` merges several runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from evit_mm.compare.benchmark import machine
from evit_mm.compare.budget import DEFAULT_MODELS
from evit_mm.data import make_shapes
from evit_mm.errors import EvitError
from evit_mm.runner.build import set_device
from evit_mm.utils.provenance import commit
from tests.conftest import DATA, ROOT

from . import page
from .blood_cells import Trainings
from .classifiers import TINY, Forms, Sizes, name_of
from .detectors import Limits, Predictions, Steps
from .worker import TIME_IS_UP, Worker

TEST_FILES = ('operators', 'network', 'compile', 'training')
PARTS = {'tests': 0.35, 'benchmarks': 0.35, 'trainings': 0.3}  # shares of the time
COMPILERS = 6  # networks that compile at the same time
LEAST = 4.0  # seconds; with less time left, no benchmark starts
INI = """[pytest]
markers =
    slow: trains or starts several processes
    gpu: skipped without a GPU
"""


class Command:
    """One run of the command.

    Args:
        args: Parsed command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.start = time.time()
        self.out = Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.work = Path(tempfile.mkdtemp(prefix='evit_mm_gpu_'))
        self.sizes = TINY if args.tiny else Sizes()
        set_device(args.device)
        about = machine.describe(1, args.device)
        about.pop('threads')
        about.update(
            commit=args.commit or commit(),
            command=shlex.join(['python', '-m', 'tests.gpu', *sys.argv[1:]]),
            minutes=args.minutes,
            parts=', '.join(args.parts),
            side=self.sizes.side,
            batch=self.sizes.batch,
            **({'tiny': True} if args.tiny else {}),
        )
        self.content: dict[str, Any] = {
            'about': about,
            'parts': {},
            'rows': [],
            'trainings': [],
            'checks': [],
        }
        self.tests: dict[str, subprocess.Popen] = {}
        self.workers: list[Worker] = []
        self.trainings: Trainings | None = None
        self.until: dict[str, float] = {}
        shares, spent = {part: PARTS[part] for part in PARTS if part in args.parts}, 0.0
        for part, share in shares.items():
            spent += share
            self.until[part] = self.start + spent / sum(shares.values()) * 60 * args.minutes
        self.save()

    def run(self) -> None:
        """Run all parts. If one fails, the others still run."""
        try:
            if 'benchmarks' in self.until:
                self.workers = self.attempt('start of the benchmarks', self.start_workers) or []
            if 'tests' in self.until:
                self.attempt('tests and compilation', self.side_by_side)
            if 'benchmarks' in self.until:
                self.attempt('benchmarks', self.benchmarks)
            if 'trainings' in self.until:
                self.attempt('trainings', self.train)
        finally:
            self.stop()
            self.save()
            shutil.rmtree(self.work, ignore_errors=True)

    def attempt(self, name: str, part: Any) -> Any:
        """Run a part, and record its duration and outcome."""
        start, outcome, result = time.time(), 'done', None
        print(f'{start - self.start:4.0f} s  {name}', flush=True)
        try:
            result = part()
        except Exception as error:  # any error: the other parts must still run
            traceback.print_exc()
            outcome = f'{type(error).__name__}: {(str(error).splitlines() or [""])[0][:200]}'
        seconds = time.time() - start
        self.content['parts'][name] = {'seconds': round(seconds, 1), 'outcome': outcome}
        self.save()
        return result

    def save(self) -> None:
        """Write the JSON, the page and the logs."""
        text = json.dumps(self.content, indent=1) + '\n'
        (self.out / 'gpu.json').write_text(text, encoding='utf-8')
        (self.out / 'gpu.md').write_text(page.markdown(self.content), encoding='utf-8')
        parts = []
        for file in sorted([*self.work.glob('*.log'), *self.work.glob('runs/*/console.log')]):
            tail = file.read_text(errors='replace').splitlines()[-80:]
            parts += [f'===== {file.relative_to(self.work)}', *(line[:400] for line in tail)]
        (self.out / 'parts.txt').write_text('\n'.join(parts) + '\n', encoding='utf-8')

    def start_workers(self) -> list[Worker]:
        """Start the processes of the benchmarks in the order of their measurement."""
        device, tiny = self.args.device, self.args.tiny
        os.environ.setdefault('TORCHINDUCTOR_COMPILE_THREADS', '2')
        # with more compilations, the tests would wait for the CPU. The attribute keeps the
        # semaphore alive, because a starting process opens it by name.
        self.turns = turns = multiprocessing.get_context('spawn').Semaphore(COMPILERS)
        os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', str(self.work / 'inductor'))
        # most important first; each network takes about a minute
        networks = ('m0', 'mobilenetv2_100') if tiny else ('m4', 'mobilenetv2_100', 'm0', 'm5')

        def classifier(network: str, weight: float) -> Worker:
            build = partial(Forms, network, device, self.sizes)
            return Worker(name_of(network), build, ('batch', 'one'), weight, self.work, turns)

        workers = [
            Worker('limits', partial(Limits, device, tiny), ('limits',), 3, self.work, turns)
        ]
        workers += [classifier(n, 14) for n in networks[:2]]
        for name, job, table in (
            ('prediction', Predictions, 'detection'),
            ('steps', Steps, 'steps'),
        ):
            workers.append(Worker(name, partial(job, device, tiny), (table,), 22, self.work, turns))
        workers += [classifier(n, 12) for n in networks[2:]]
        return workers

    def side_by_side(self) -> None:
        """Run the tests while the benchmarks compile."""
        for name in self.args.tests:
            self.tests[name] = self.start_tests(name)
        busy = True
        while busy and time.time() < self.until['tests']:
            if self.collect_checks():
                self.save()
            running = any(test.poll() is None for test in self.tests.values())
            busy = running or not all(worker.is_ready() for worker in self.workers)
            time.sleep(0.5)
        for name, test in self.tests.items():
            if test.poll() is None:
                self.kill(test)
                part = {
                    'seconds': time.time() - self.start,
                    'outcome': f'{TIME_IS_UP} before it ended',
                }
                self.content['parts'][f'tests of {name}'] = part
        self.collect_checks()
        for worker in self.workers:
            if not worker.is_ready():
                worker.tell(('stop',))

    def train(self) -> None:
        """Train several detectors at the same time."""
        self.trainings = self.make_trainings(self.until['trainings'])
        while self.trainings.step():
            if len(self.content['trainings']) < len(self.trainings.done):
                self.content['trainings'] = list(self.trainings.done)
                self.save()
            time.sleep(0.5)
        self.content['trainings'] = self.trainings.done

    def start_tests(self, name: str) -> subprocess.Popen:
        """Start the tests of one file."""
        ini = (
            self.work / 'pytest.ini'
        )  # the project's file needs plugins that the GPU machine lacks
        ini.write_text(INI)
        command = [sys.executable, '-m', 'pytest', '-c', str(ini), '--rootdir', str(ROOT), '-q']
        command += ['-p', 'no:cacheprovider', str(Path(__file__).with_name(f'test_{name}.py'))]
        if self.args.tiny:
            command += ['-k', 'not (free or m1 or m2 or m3 or m4 or m5)']
        env = {
            **os.environ,
            'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
            'EVIT_MM_GPU_TESTS': self.args.device,
            'EVIT_MM_GPU_RECORD': str(self.work / f'{name}.jsonl'),
            'CUBLAS_WORKSPACE_CONFIG': ':4096:8',
            'OMP_NUM_THREADS': '1',
        }
        with open(self.work / f'pytest_{name}.log', 'wb') as log:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def make_trainings(self, until: float) -> Trainings:
        """Return the queue of trainings. With ``--tiny``, they use a few generated images."""
        data, options = self.args.data, {}
        if self.args.tiny:
            data = make_shapes(self.work / 'shapes', 24, 4, size=(96, 80), quiet=True)
            loader = {'num_workers': 0, 'persistent_workers': False}
            options = {
                f'{part}_dataloader.{name}': value
                for part in ('train', 'val')
                for name, value in loader.items()
            }
            options['model.test_cfg.score_thr'] = 0.0  # a barely trained model has only low scores
            few = {'epochs': 2, 'slots': 2, 'seeds': 1, 'models': DEFAULT_MODELS[:2]}
            few.update(scale=(96, 80), cfg_options=options)
            return Trainings(str(data), self.work / 'runs', self.args.device, until, **few)
        return Trainings(str(data), self.work / 'runs', self.args.device, until)

    def collect_checks(self) -> bool:
        """Read the outcomes of the tests. Return True if there are new ones."""
        checks = []
        for name in TEST_FILES:
            file = self.work / f'{name}.jsonl'
            if file.is_file():
                lines = file.read_text().splitlines()
                checks += [json.loads(line) for line in lines if line.endswith('}')]
        new = len(checks) > len(self.content['checks'])
        self.content['checks'] = checks
        return new

    def benchmarks(self) -> None:
        """Time the benchmarks one after the other until the time is up."""
        end = self.until['benchmarks']
        grace = time.time() + min(40.0, 0.2 * max(0.0, end - time.time()))
        while time.time() < grace and not all(worker.is_ready() for worker in self.workers):
            time.sleep(0.2)
        # benchmarks that still compile come last, to disturb the others less
        workers = sorted(self.workers, key=lambda worker: not worker.is_ready())
        for place, worker in enumerate(workers):
            left = end - time.time()
            if left < LEAST:
                self.content['rows'] += worker.nothing(TIME_IS_UP)
                continue
            weights = sum(other.weight for other in workers[place:])
            limit = worker.weight * min(1.5, max(0.1, 0.7 * left / weights))
            self.attempt(worker.name, partial(self.measure, worker, limit, left))

    def measure(self, worker: Worker, limit: float, left: float) -> None:
        """Add the rows of one worker."""
        patience = left if self.args.tiny else min(left, 4 * limit + 15)
        for rows in worker.measure(limit, patience):
            self.content['rows'] += rows
            self.save()
        if worker.fault:
            raise RuntimeError(worker.fault)

    def kill(self, process: subprocess.Popen) -> None:
        """Kill a process and its children."""
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
        process.wait()

    def stop(self) -> None:
        """Kill all processes that still run."""
        for test in self.tests.values():
            if test.poll() is None:
                self.kill(test)
        for run in self.trainings.running if self.trainings else ():
            self.kill(run.process)
        for worker in self.workers:
            worker.end()


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser('tests.gpu', description='Run GPU tests and benchmarks')
    parser.add_argument(
        '--out', required=True, help='output folder for gpu.json, gpu.md and parts.txt'
    )
    parser.add_argument('--device', default='cuda', help='cpu, cuda, cuda:1, ...')
    parser.add_argument('--data', default=str(DATA / 'bccd'), help='blood cells in COCO format')
    parser.add_argument(
        '--minutes', type=float, default=8.0, help='time limit of the whole command'
    )
    parser.add_argument('--commit', default='', help='commit of a checkout without git')
    parser.add_argument('--parts', nargs='+', default=list(PARTS), choices=PARTS)
    parser.add_argument('--tests', nargs='*', default=TEST_FILES, choices=TEST_FILES)
    parser.add_argument('--tiny', action='store_true', help='rehearse with tiny sizes')
    return parser.parse_args()


def main() -> None:
    """Run the command and print the first tables of the page."""
    args = parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        command = Command(args)
    except EvitError as error:
        sys.exit(f'error: {error}')
    command.run()
    text = page.markdown(command.content)
    print(text.split('## Correctness')[0][:6000])
    checks = command.content['checks']
    failed = [check for check in checks if check['outcome'] == 'failed']
    for check in failed:
        print(f'FAILED {check["test"]}: {check["reason"]}')
    print(f'{len(checks) - len(failed)} of {len(checks)} checks passed; written: {args.out}/gpu.md')
    outcomes = [part['outcome'] for part in command.content['parts'].values()]
    if failed or any(x != 'done' and TIME_IS_UP not in x for x in outcomes):
        sys.exit('error: a check or a part failed')


if __name__ == '__main__':
    main()
