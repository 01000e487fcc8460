"""Trainings that are killed at random points and resumed until they end, beside undisturbed ones.

``run_kills`` is what the tests call with a few kills and ``make torture`` with a hundred.
"""

import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import torch
from mmengine.hooks import Hook

from evit_mm.data import make_shapes
from evit_mm.errors import EvitError
from evit_mm.runner.train import train
from tests.conftest import relative_error
from tests.trainings import write_config

# how often at most a process passes a point before it is killed there
REACH = {'forward': 8, 'step': 4, 'checkpoint': 6, 'evaluation': 2, 'outside': 1}
POINTS = tuple(REACH)
EPOCHS, BATCHES = 2, 6
BEGUN = 'begun'  # beginning of the name of what a process leaves once all have joined
DEADLINE = 120  # seconds for one process; a hang, and so a failure, beyond
COMMON = """
train_cfg = dict(max_epochs=2, val_interval=1)
train_dataloader['batch_size'] = 4
"""
OFTEN = """
default_hooks['checkpoint'] = dict(by_epoch=False, interval=2)
optim_wrapper = dict(accumulative_counts=3)
"""
# name -> (processes, additions to the config)
SETUPS = {
    'within epochs, accumulation, EMA, workers': (
        1,
        OFTEN
        + "custom_hooks = [dict(type='EMAHook', momentum=0.1)]\n"
        + 'train_dataloader.update(num_workers=2, persistent_workers=True)\n',
    ),
    'two processes, within epochs, accumulation': (
        2,
        OFTEN + "train_dataloader['batch_size'] = 2\n",
    ),
    'by epoch': (1, ''),
}


class RecordHook(Hook):
    """Write down what each iteration trained on, and its loss."""

    def __init__(self, path):
        self.path = path

    def before_run(self, runner):
        self.path.with_name(f'{BEGUN}_{runner.rank}').touch()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        images = [sample.img_id for sample in data_batch['data_samples']]
        loss = float(outputs['loss'].detach()) if outputs else None  # skipped
        with open(self.path, 'a') as file:
            file.write(json.dumps([runner.iter, loss, images]) + '\n')


class KillHook(Hook):
    """Kill this very process at a point, when it has been there a number of times."""

    def __init__(self, point, times):
        self.point, self.left = point, times

    def _here(self, *args):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before_train(self, runner):
        if self.point == 'forward':
            model = getattr(runner.model, 'module', runner.model)
            # in the midst of the network: the backbone has its activations already
            model.neck.register_forward_pre_hook(
                lambda neck, _: self._here() if neck.training else None
            )
        elif self.point == 'step':  # the weights have changed, the gradients are still there
            runner.optim_wrapper.optimizer.register_step_post_hook(self._here)
        elif self.point == 'checkpoint':
            os.fsync = self._torn

    def _torn(self, handle):
        if self.left == 1:
            with suppress(OSError):  # a folder has no end to cut off
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
        self._here()

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if self.point == 'evaluation':
            self._here()


def train_one(config, work_dir, seed, plan=None, rank=0, processes=1, port=0):
    """Train or go on in this process, whose whole life it is."""
    torch.set_num_threads(1)
    work_dir = Path(work_dir)
    with open(work_dir / f'console_{rank}.log', 'ab') as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    launcher = 'none'
    if processes > 1:  # as torchrun does
        launcher, place = 'pytorch', {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': processes}
        os.environ.update({name: str(number) for name, number in place.items()})
        os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    hooks = [RecordHook(work_dir / f'record_{rank}.jsonl')]
    if plan is not None and plan[0] != 'outside' and plan[2] == rank:
        hooks.append(KillHook(*plan[:2]))
    try:
        train(
            config, str(work_dir), 'auto', seed=seed, device='cpu', launcher=launcher, hooks=hooks
        )
    except EvitError as error:
        sys.exit(f'error: {error}')


def free_port():
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def start_all(config, work_dir, seed, plan, processes):
    """Start all processes of a training; return them."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(
        ['tests.kills', 'evit_mm.models.heads', 'mmdet.datasets', 'mmdet.engine']
    )
    started, port = [], free_port()
    for rank in range(processes):
        args = (config, str(work_dir), seed, plan, rank, processes, port)
        started.append(context.Process(target=train_one, args=args))
        started[-1].start()
    return started


def train_all(config, work_dir, seed, plan=None, processes=1, rng=random):
    """Train until all processes have ended; return whether one was killed as planned.

    Raises:
        RuntimeError: A process hangs, or ends otherwise than by its kill or well.
    """
    Path(work_dir).mkdir(parents=True, exist_ok=True)
    for mark in Path(work_dir).glob(f'{BEGUN}_*'):
        mark.unlink()
    started = start_all(config, work_dir, seed, plan, processes)
    deadline = time.monotonic() + DEADLINE
    if plan is not None and plan[0] == 'outside':
        # who waits for a process that dies before it has joined is ended by the launcher: not here
        while processes > 1 and len(list(Path(work_dir).glob(f'{BEGUN}_*'))) < processes:
            if time.monotonic() > deadline:
                raise RuntimeError(f'a training does not begin; see {work_dir}/console_*.log')
            time.sleep(0.05)
        time.sleep(rng.uniform(0.5, 4) if processes == 1 else rng.uniform(0, 3))
        with suppress(ProcessLookupError):
            os.kill(started[plan[2]].pid, signal.SIGKILL)
    for process in started:
        process.join(max(0, deadline - time.monotonic()))
    codes = [process.exitcode for process in started]
    for process in started:
        if process.is_alive():
            process.kill()
            process.join()
    if None in codes:
        raise RuntimeError(f'a process hangs after {plan}: {codes}; see {work_dir}/console_*.log')
    killed = -signal.SIGKILL in codes
    if not killed and any(codes):
        raise RuntimeError(f'ended with {codes} after {plan}; see {work_dir}/console_*.log')
    return killed


def read_record(work_dir, processes):
    """Return, per process and iteration, all ``(loss, images)`` that were recorded."""
    records = []
    for rank in range(processes):
        found = {}
        for line in (Path(work_dir) / f'record_{rank}.jsonl').read_text().splitlines():
            iteration, loss, images = json.loads(line)
            found.setdefault(iteration, []).append((loss, images))
        records.append(found)
    return records


def weights(work_dir):
    """Return the weights of the last checkpoint."""
    return torch.load((Path(work_dir) / 'last_checkpoint').read_text())['state_dict']


def differences(whole, killed, processes):
    """Compare a killed run with a whole one.

    Returns:
        The largest relative difference of a loss or a weight, and how many iterations are missing
        or trained on other images.
    """
    worst, lost = 0.0, 0
    for expected, found in zip(
        read_record(whole, processes), read_record(killed, processes), strict=True
    ):
        for iteration, [(loss, images)] in expected.items():
            seen = found.get(iteration, [])
            lost += not seen or any(other != images for _, other in seen)
            worst = max([worst, *(abs(x - loss) / abs(loss) for x, _ in seen)])
    expected, found = weights(whole), weights(killed)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        if tensor.is_floating_point():
            worst = max(worst, relative_error(found[name], tensor))
    return worst, lost


def run_kills(number, folder, seed=0):
    """Kill trainings ``number`` times at random points, resume each until it ends, and compare.

    Args:
        number: Kills in all.
        folder: Where to work; made if it is not there.
        seed: Of the choice of points.

    Returns:
        ``kills``, ``points`` (kills by point), ``runs`` (trainings that were killed and ended),
        ``worst_difference`` (relative, of any loss or final weight, from undisturbed runs) and
        ``lost`` (iterations missing or trained on other images).
    """
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    folder, rng = Path(folder), random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    data = make_shapes(folder / 'data', 4 * BATCHES, 4, size=(96, 80), quiet=True)
    configs = {}
    for place, (name, (_, extra)) in enumerate(SETUPS.items()):
        home = folder / f'setup_{place}'
        home.mkdir()
        configs[name] = write_config(home, data, COMMON + extra)
    points, runs, worst, lost, attempts = Counter(), 0, 0.0, 0, 0
    while points.total() < number:
        name, (processes, _) = list(SETUPS.items())[runs % len(SETUPS)]
        home = Path(configs[name]).parent
        if not (home / 'whole').exists():
            train_all(configs[name], home / 'whole', seed, processes=processes)
        run, going = home / f'killed_{runs}', True
        while going:
            plan = None
            if points.total() < number:
                point = POINTS[attempts % len(POINTS)]
                # the first process alone writes checkpoints
                rank = 0 if point == 'checkpoint' else rng.randrange(processes)
                plan, attempts = (point, rng.randint(1, REACH[point]), rank), attempts + 1
            going = train_all(configs[name], run, seed, plan, processes, rng)
            points.update([plan[0]] if going else [])
        difference, missing = differences(home / 'whole', run, processes)
        runs, worst, lost = runs + 1, max(worst, difference), lost + missing
        assert attempts < 10 * number + 10, f'hardly any kill succeeds: {points}'
    return {
        'kills': points.total(),
        'points': dict(points),
        'runs': runs,
        'worst_difference': worst,
        'lost': lost,
    }
