"""Training the runs of a comparison, one process each, so that none can take the others down.

A comparison's folder holds ``compare.json`` (the budget), ``runs/MODEL_seedK/`` (a work dir each)
and in the end the table. A run is finished when its ``result.json`` is there; that file is written
last, and all at once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from mmengine.config import Config
from mmengine.hooks import Hook
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..checkpoint import read_checkpoint, write_checkpoint
from ..data import check_config_data
from ..errors import CheckpointError, ConfigError, DataError, EvitError
from ..runner.build import set_device
from ..runner.resuming import find_last_good
from ..utils.files import write_atomically
from .budget import Budget
from .recipes import base_recipe, row_label, split_name, with_recipes
from .table import METRICS, Row, add_latency, count_detector, write_tables

MAX_DEATHS = 3  # without an epoch finished in between
POLL_SECONDS = 0.5
PREFIX = 'coco/bbox_'


@dataclass(frozen=True)
class Run:
    """One row of the table with one seed.

    Attributes:
        model: The row's name: a backbone, or a backbone and a recipe.
        seed: Seed of everything random.
        folder: Work dir.
    """

    model: str
    seed: int
    folder: Path

    @property
    def label(self) -> str:
        """Name for people."""
        return f'{row_label(self.model)}, seed {self.seed}'

    def read(self, name: str) -> Any:
        """Return what a JSON file of the run's folder holds, None where there is none.

        Raises:
            ConfigError: Something else has changed the file.
        """
        return read_json(self.folder / name)

    def result(self) -> dict[str, Any] | None:
        """Return the figures of a finished run, None where it is not finished.

        Raises:
            ConfigError: Something else has changed the file.
        """
        result = self.read('result.json')
        try:
            complete = result is None or (result['seconds'] >= 0 and 'mAP' in result['metrics'])
        except (TypeError, KeyError):
            complete = False
        if not complete:
            raise ConfigError(
                f"'{self.folder / 'result.json'}' is not what a run writes; delete the folder "
                f"'{self.folder}' to do it again"
            )
        return result

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file of the run's folder, whole or not at all."""
        write_json(self.folder / name, content)


def compare(
    budget: Budget,
    models: Sequence[str],
    seeds: int,
    out: str | Path,
    device: str | None = None,
    published: bool = False,
    recipes: Sequence[str] = (),
) -> list[Row]:
    """Train, evaluate and time backbones under one budget, and write the table.

    Finished runs are never repeated and unfinished ones go on from their last epoch, so that an
    interrupted comparison is continued by the same call; more models or seeds may be added to it.
    A run that failed is tried again.

    Args:
        budget: What all runs share.
        models: Names out of :func:`~evit_mm.compare.available_models`.
        seeds: Runs per model, with the seeds 0, 1, ...
        out: Folder for the runs and for ``table.md``, ``table.json`` and ``table.png``.
        device: As in :func:`evit_mm.runner.train.train`.
        published: Put the published COCO figures beside the measured ones.
        recipes: Names out of :data:`~evit_mm.compare.recipes.RECIPES`: train each model with each
            of them, and set them against the base.

    Returns:
        One row per model, or per model and recipe; best first.

    Raises:
        ConfigError: A name, number or override is wrong, ``out`` holds another comparison, or one
            is running there.
        CheckpointError: ImageNet weights cannot be had.
        DataError: The data set cannot be used.
    """
    models = with_recipes(models, recipes)
    if not models:
        raise ConfigError('--models names no backbone')
    if seeds < 1:
        raise ConfigError(f'--seeds must be at least 1, got {seeds}')
    out = Path(out)
    set_device(device)
    # whatever can be found wrong is found before the hours of training
    rows = [_row(model, budget) for model in models]
    notes = _check_data(budget, rows[0].config)
    for row in rows:
        if budget.pretrained:
            read_checkpoint(row.config.model.backbone.init_cfg.checkpoint)
        count_detector(row, budget.input_size())
    with claimed(out):
        _check_same_budget(out, budget)
        runs = [Run(m, s, out / 'runs' / f'{m}_seed{s}') for s in range(seeds) for m in models]
        _train_all(runs, budget, device)
        for row in rows:
            _fill(row, [run for run in runs if run.model == row.name])
        add_latency(rows, budget.splits[1].first_image)
        return write_tables(rows, out, _describe(budget, seeds), notes, published)


def _row(name: str, budget: Budget) -> Row:
    model, recipe = split_name(name)
    base = recipe and '+'.join((model, base_recipe(budget.pretrained)))
    return Row(name, budget.config(name), base=base)


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, None where there is none.

    Raises:
        ConfigError: It cannot be read.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"'{path}' cannot be read ({error}); delete the folder '{path.parent}' to do it again"
        ) from None


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    write_atomically(path, json.dumps(content, indent=1).encode())


def _check_data(budget: Budget, cfg: Config) -> list[str]:
    """Look at the data set as training does, and return what the table must mention."""
    check_config_data(cfg, ('train', 'val'))
    _, val = budget.splits
    if not any(val.num_boxes.values()):
        raise DataError(f"'{val.ann_file}' has no box at all, so there is nothing to evaluate")
    absent = [name for name, count in val.num_boxes.items() if count == 0]
    if not absent:
        return []
    return [
        f"'{val.ann_file.name}' has no box of {', '.join(absent)}: every AP here is the mean over "
        f'the other {len(val.classes) - len(absent)} of {len(val.classes)} classes'
    ]


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold a folder for one comparison.

    Raises:
        ConfigError: It cannot be written, or is held by another.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / '.lock')
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"a comparison is running in '{out}'; wait for it, or stop it") from None
    except OSError as error:
        raise ConfigError(f"--out '{out}' cannot be written: {error}") from None
    try:
        yield
    finally:
        lock.release()


def _check_same_budget(out: Path, budget: Budget) -> None:
    path, record = out / 'compare.json', json.loads(json.dumps(budget.record()))
    before = read_json(path)
    if before is not None:
        keys = [key for key in {**before, **record} if before.get(key) != record.get(key)]
        if keys:
            changes = '; '.join(f'{k}: {before.get(k)} then, {record.get(k)} now' for k in keys)
            raise ConfigError(
                f"'{out}' holds a comparison under another budget ({changes}); choose another "
                '--out, or the same budget to go on with it'
            )
    elif (out / 'runs').exists():
        raise ConfigError(f"'{out}' has runs but no compare.json; choose another --out")
    write_json(path, record)


def _train_all(runs: Sequence[Run], budget: Budget, device: str | None) -> None:
    console = Console(stderr=True)
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('epochs'),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        epochs = [budget.epochs_of(run.model) for run in runs]
        task = progress.add_task('comparing', total=sum(epochs))
        for place, run in enumerate(runs):
            done = sum(epochs[:place])
            progress.update(task, completed=done, description=run.label)
            if run.result() is None:
                for epoch in _train_one(run, budget, device):
                    progress.update(task, completed=done + epoch)
            progress.console.print(f'{run.label}: {_outcome(run)}', highlight=False)
        progress.update(task, completed=sum(epochs))


def _train_one(run: Run, budget: Budget, device: str | None) -> Iterator[int]:
    """Run one training in a process of its own; yield the epochs it has done, now and then."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / 'failure.json').unlink(missing_ok=True)
    budget.config(run.model).dump(run.folder / 'config.py')
    deaths, reached = 0, _epochs_done(run)
    while True:
        process = _context().Process(target=_work, args=(run, device))
        process.start()
        try:
            while process.is_alive():
                process.join(POLL_SECONDS)
                yield _epochs_done(run)
        finally:
            if process.is_alive():
                process.terminate()
                process.join()
        if process.exitcode == 0 or run.read('failure.json'):
            return
        deaths = 1 if _epochs_done(run) > reached else deaths + 1
        reached = _epochs_done(run)
        if deaths >= MAX_DEATHS:
            run.write('failure.json', {'reason': _how_it_died(process.exitcode)})
            return


def _context() -> Any:
    """Return how to start a clean process: forked off a server that has done the slow imports."""
    if 'forkserver' not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(
        ['evit_mm.runner.train', 'evit_mm.models.heads', 'mmdet.datasets', 'timm']
    )
    return context


def _how_it_died(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = ' (out of memory?)' if name == 'SIGKILL' else ''
        return f'killed by {name}{hint} {MAX_DEATHS} times without finishing an epoch'
    return f'ended with status {exitcode} {MAX_DEATHS} times without finishing an epoch'


def _outcome(run: Run) -> str:
    result = run.result()
    if result is None:
        return f'failed: {run.read("failure.json")["reason"]}'
    return f'AP {result["metrics"]["mAP"]:.3f} in {result["seconds"] / 60:.1f} min'


def _epochs_done(run: Run) -> int:
    return len(run.read('progress.json') or [])


def _work(run: Run, device: str | None) -> None:
    """Train and evaluate one run; the whole life of its process."""
    # an orphan of a killed comparison may live for an iteration yet
    with FileLock(run.folder / '.lock'), open(run.folder / 'console.log', 'ab') as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        try:
            _train_and_evaluate(run, device)
        except Exception as error:  # whatever it is becomes a row of the table
            traceback.print_exc()
            run.write('failure.json', {'reason': _reason(error), 'type': type(error).__name__})
            sys.exit(1)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or 'out of memory' in str(error):
        return f'out of memory ({lines[0][:120] if lines else "no details"})'
    if isinstance(error, EvitError):
        return ' '.join(line.strip() for line in lines)
    return f'{type(error).__name__}: {lines[0][:200] if lines else "no message"}'


def _train_and_evaluate(run: Run, device: str | None) -> None:
    from ..runner.test import test
    from ..runner.train import train

    config, work_dir = str(run.folder / 'config.py'), str(run.folder)
    hook = RunHook(run)
    train(config, work_dir, _last_checkpoint(run), seed=run.seed, device=device, hooks=[hook])
    last = str(_last_checkpoint(run))
    metrics = test(config, last, work_dir=work_dir, device=device)
    # mmdet gives no figures at all where not one box was found
    figures = {name: metrics.get(PREFIX + name, 0.0) for name in METRICS}
    content = read_checkpoint(last)
    meta = {'dataset_meta': content['meta']['dataset_meta']}
    write_checkpoint(content['state_dict'], run.folder / 'weights.pth', meta)
    run.write('result.json', {'metrics': figures, 'seconds': sum(run.read('progress.json'))})
    for checkpoint in run.folder.glob('epoch_*.pth'):  # optimizer states are of no more use
        checkpoint.unlink()


def _last_checkpoint(run: Run) -> str | None:
    try:
        found = find_last_good(run.folder)
    except CheckpointError:  # not one is whole; such a run starts anew
        return None
    return None if found is None else str(found[0])


class RunHook(Hook):
    """Keep a run's times, and end it when its comparison is gone."""

    priority = 'VERY_LOW'  # after the checkpoint is written

    def __init__(self, run: Run) -> None:
        self.run, self.comparison = run, multiprocessing.parent_process()
        self.start = 0.0

    def before_train_epoch(self, *_: Any) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def after_train_iter(self, *_: Any, **__: Any) -> None:
        """Look for the process that started this one."""
        if self.comparison is not None and not self.comparison.is_alive():
            os._exit(1)

    def after_train_epoch(self, runner: Any) -> None:
        """Add the epoch's seconds to the run's; an epoch done again after a crash replaces it."""
        seconds = (self.run.read('progress.json') or [])[: runner.epoch]
        self.run.write('progress.json', [*seconds, time.perf_counter() - self.start])


def _fill(row: Row, runs: Sequence[Run]) -> None:
    for run in runs:
        result = run.result()
        if result is None:
            row.failures.append(f'seed {run.seed}: {run.read("failure.json")["reason"]}')
            continue
        row.metrics.append(result['metrics'])
        row.minutes.append(result['seconds'] / 60)
        row.weights = row.weights or run.folder / 'weights.pth'


def _describe(budget: Budget, seeds: int) -> dict[str, Any]:
    """Return what the table says about itself."""
    train, val = budget.splits
    described = {k: v for k, v in asdict(budget).items() if k != 'data'}
    return {
        'data': Path(budget.data).name,
        **described,
        'seeds': seeds,
        'classes': list(train.classes),
        'images': [train.num_images, val.num_images],
        'FLOPs and latency at': 'x'.join(map(str, budget.input_size())),
    }
