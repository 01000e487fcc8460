"""Training of the runs of a comparison; a crash of one run does not affect the others.

Each run has its own process. The folder of a comparison contains ``compare.json`` (the budget), a
work dir ``runs/MODEL_seedK/`` per run, and at the end the table. A run is finished when its
``result.json`` contains figures. This file is written last and atomically.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import print_log
from rich.console import Console
from rich.progress import Progress

from ..checkpoint import read_checkpoint, write_checkpoint
from ..data import check_config_data
from ..errors import ConfigError, DataError, EvitError
from ..runner.build import set_device
from ..runner.resuming import find_last_good
from ..runner.work_dir import number_of, pointed_at, read_scalars
from ..utils.files import read_json_dict, write_json
from .benchmark import machine
from .benchmark.timing import sentence
from .budget import Budget
from .recipes import base_of, row_label, with_recipes
from .table import METRICS, Row, add_latency, count_detector, write_tables

POLL_SECONDS = 0.5
RESULT = 'result.json'
PREFIX = 'coco/bbox_'


@dataclass(frozen=True)
class Run:
    """One training: a row of the table with one seed."""

    model: str  # name of the row: a backbone, or a backbone and a recipe
    seed: int
    folder: Path  # work dir

    @property
    def label(self) -> str:
        """Display name."""
        return f'{row_label(self.model)}, seed {self.seed}'

    def outcome(self) -> dict[str, Any]:
        """Return ``metrics`` and ``seconds`` of a finished run, or ``failure``, or nothing."""
        return read_json_dict(self.folder / RESULT)

    def epochs_done(self) -> int:
        """Return the number of trained epochs."""
        checkpoint = pointed_at(self.folder)
        return number_of(checkpoint) if checkpoint else 0


def compare(
    budget: Budget,
    models: Sequence[str],
    seeds: int,
    out: str | Path,
    device: str | None = None,
    published: bool = False,
    recipes: Sequence[str] = (),
) -> list[Row]:
    """Train, evaluate and time backbones with the same budget, and write the table.

    If a comparison is interrupted, call this function again to continue it. Finished runs are kept,
    unfinished runs resume from their last epoch, and failed runs are tried again. You can add
    models and seeds.

    Args:
        budget: Settings that all runs share.
        models: Names from :func:`~evit_mm.compare.available_models`, or ``timm:NAME``.
        seeds: Number of runs per model, with the seeds 0, 1, ...
        out: Folder for the runs and for ``table.md``, ``table.json`` and ``table.png``.
        device: See :func:`evit_mm.runner.train.train`.
        published: Add columns with the published COCO figures.
        recipes: Names from :data:`~evit_mm.compare.recipes.RECIPES`. Each model is trained with
            each recipe, and compared with the base recipe.

    Returns:
        One row per model, or per model and recipe, best first.

    Raises:
        ConfigError: A name, number or override is wrong, or ``out`` contains a different
            comparison or a running one.
        CheckpointError: The ImageNet weights cannot be loaded.
        DataError: The data set cannot be used.
    """
    models = with_recipes(models, recipes)
    if not models:
        raise ConfigError('--models is empty; give at least one backbone')
    if seeds < 1:
        raise ConfigError(f'--seeds must be at least 1, got {seeds}')
    out = Path(out)
    set_device(device)
    # find all errors before the training, which takes hours
    rows = [Row(m, budget.config(m), base=base_of(m, budget.pretrained)) for m in models]
    for note in budget.folder.notes:
        print_log(note, logger='current', level=logging.WARNING)
    check_config_data(rows[0].config, ('train', 'val'))
    about = _describe(budget, seeds)
    for row in rows:
        if budget.pretrained:
            read_checkpoint(row.config.model.backbone.init_cfg.checkpoint)
        count_detector(row, budget.input_size())
    with claimed(out):
        _check_same_budget(out, budget)
        folders = {m: out / 'runs' / m.replace(':', '_') for m in models}
        runs = [Run(m, s, Path(f'{folders[m]}_seed{s}')) for s in range(seeds) for m in models]
        _train_all(runs, {row.name: row.config for row in rows}, device)
        for row in rows:
            _fill(row, [run for run in runs if run.model == row.name])
        add_latency(rows, budget.splits[1].first_image)
        return write_tables(rows, out, about, published)


def _describe(budget: Budget, seeds: int) -> dict[str, Any]:
    """Return the facts below the table."""
    train, val = budget.splits
    absent = [name for name, count in val.num_boxes.items() if count == 0]
    if len(absent) == len(val.classes):
        raise DataError(
            f"annotation file '{val.ann_file}' contains no box; an evaluation needs at least one"
        )
    return {
        **asdict(budget),
        'data': Path(budget.data).name,
        'seeds': seeds,
        'classes': list(train.classes),
        **({'classes without a box to evaluate': absent} if absent else {}),
        'images': [train.num_images, val.num_images],
        'FLOPs and latency at': 'x'.join(map(str, budget.input_size())),
        **machine.describe(torch.get_num_threads(), get_device()),
    }


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Lock a folder for one comparison."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / '.lock')
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"another comparison is running in '{out}'; wait until it ends, or stop it"
        ) from None
    except OSError as error:
        raise ConfigError(f"--out '{out}' cannot be written: {error}") from None
    try:
        yield
    finally:
        lock.release()


def _check_same_budget(out: Path, budget: Budget) -> None:
    path, record = out / 'compare.json', json.loads(json.dumps(budget.record()))
    before = json.loads(path.read_text()) if path.is_file() else record
    keys = [key for key in {**before, **record} if before.get(key) != record.get(key)]
    if keys:
        changes = '; '.join(f'{k}: {before.get(k)} before, {record.get(k)} now' for k in keys)
        raise ConfigError(
            f"'{out}' contains a comparison with a different budget ({changes}); choose another "
            '--out, or use the same budget to continue'
        )
    write_json(path, record, indent=1)


def _train_all(runs: Sequence[Run], configs: Mapping[str, Config], device: str | None) -> None:
    with Progress(console=Console(stderr=True)) as progress:
        epochs = [configs[run.model].train_cfg.max_epochs for run in runs]
        task = progress.add_task('comparing', total=sum(epochs))
        for place, run in enumerate(runs):
            done = sum(epochs[:place])
            progress.update(task, completed=done, description=run.label)
            if 'metrics' not in run.outcome():
                for epoch in _train_one(run, configs[run.model], device):
                    progress.update(task, completed=done + epoch)
            outcome = run.outcome()
            text = f'failed: {outcome.get("failure")}'
            if 'metrics' in outcome:
                minutes = outcome['seconds'] / 60
                text = f'AP {outcome["metrics"]["mAP"]:.3f} in {minutes:.1f} min'
            progress.console.print(f'{run.label}: {text}', highlight=False)
        progress.update(task, completed=sum(epochs))


def _train_one(run: Run, cfg: Config, device: str | None) -> Iterator[int]:
    """Run one training in a separate process, and yield the number of trained epochs regularly."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / RESULT).unlink(missing_ok=True)
    cfg.dump(run.folder / 'config.py')
    process = multiprocessing.get_context('spawn').Process(target=_work, args=(run, device))
    process.start()
    try:
        while process.is_alive():
            process.join(POLL_SECONDS)
            yield run.epochs_done()
    finally:
        if process.is_alive():
            process.terminate()
            process.join()
    if process.exitcode and not run.outcome():
        write_json(run.folder / RESULT, {'failure': _how_it_died(process.exitcode)}, indent=1)


def _how_it_died(exitcode: int) -> str:
    if exitcode > 0:
        return f'the process exited with status {exitcode}; see console.log'
    name = signal.Signals(-exitcode).name
    return f'the process was killed by {name}{" (out of memory?)" if name == "SIGKILL" else ""}'


def _work(run: Run, device: str | None) -> None:
    """Train and evaluate one run; this is the main function of its process."""
    # wait for the process of a killed comparison, which ends after its current iteration
    with FileLock(run.folder / '.lock'), open(run.folder / 'console.log', 'ab') as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        try:
            _train_and_evaluate(run, device)
        except Exception as error:  # every error is reported in the table
            traceback.print_exc()
            ours = isinstance(error, EvitError)
            reason = ' '.join(str(error).split()) if ours else sentence(error)
            write_json(run.folder / RESULT, {'failure': reason}, indent=1)
            sys.exit(1)


def _train_and_evaluate(run: Run, device: str | None) -> None:
    from ..runner.test import test
    from ..runner.train import train

    config, work_dir = str(run.folder / 'config.py'), str(run.folder)
    train(config, work_dir, resume='auto', seed=run.seed, device=device, hooks=[OrphanHook()])
    scalars, _ = read_scalars(work_dir)
    found = find_last_good(work_dir)
    assert found is not None  # just written
    last, content = found
    metrics = test(config, str(last), work_dir=work_dir, device=device)
    # mmdet returns no metrics if no box was found
    figures = {name: metrics[PREFIX + name] for name in METRICS if PREFIX + name in metrics}
    figures = figures or dict.fromkeys(METRICS, 0.0)
    meta = {'dataset_meta': content['meta']['dataset_meta']}
    write_checkpoint(content['state_dict'], run.folder / 'weights.pth', meta)
    result = {'metrics': figures, 'seconds': training_seconds(scalars)}
    write_json(run.folder / RESULT, result, indent=1)
    for checkpoint in run.folder.glob('epoch_*.pth'):  # optimizer states are no longer needed
        checkpoint.unlink()


def training_seconds(scalars: Sequence[Mapping[str, Any]]) -> float:
    """Return the time of all training iterations, from the log of mmengine."""
    steps = [entry for entry in scalars if 'iter' in entry and 'time' in entry]
    mean_step = sum(entry['time'] for entry in steps) / max(len(steps), 1)
    return mean_step * max((entry['step'] for entry in steps), default=0)


class OrphanHook(Hook):
    """End a run if the process that started it has ended."""

    def after_train_iter(self, *_: Any, **__: Any) -> None:
        """Check the parent process."""
        comparison = multiprocessing.parent_process()
        if comparison is not None and not comparison.is_alive():
            os._exit(1)


def _fill(row: Row, runs: Sequence[Run]) -> None:
    for run in runs:
        result = run.outcome()
        if 'metrics' not in result:
            row.failures.append(f'seed {run.seed}: {result.get("failure")}')
            continue
        row.metrics.append(result['metrics'])
        row.minutes.append(result['seconds'] / 60)
        if (run.folder / 'weights.pth').is_file():
            row.weights = run.folder / 'weights.pth'
