"""Training of the runs of a comparison; a crash of one run does not affect the others.

Each run has its own process. The folder of a comparison contains ``compare.json`` (the budget), a
work dir ``runs/MODEL_seedK/`` per run, and at the end the table. The runs of a learning rate search
are in ``lr_search/``. A run is finished when its ``result.json`` contains figures. This file is
written last and atomically.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import print_log
from rich.console import Console
from rich.progress import Progress

from ..checkpoint import write_checkpoint
from ..data import check_config_data
from ..data.dataset_configs import coco_evaluators
from ..errors import ConfigError, DataError, EvitError
from ..evaluation.bootstrap import draw_images, resampled_ap
from ..evaluation.boxes import coco_evaluator, evaluated_truth, read_found
from ..runner.build import init_backbone, set_device
from ..runner.resuming import find_last_good
from ..runner.work_dir import WEIGHTS, number_of, pointed_at, read_scalars
from ..utils.files import read_json_dict, write_json
from .benchmark import machine
from .benchmark.timing import sentence
from .budget import Budget
from .recipes import base_of, row_label, with_recipes
from .table import METRICS, Row, add_latency, count_detector, figures_of, write_tables

POLL_SECONDS = 0.5
BUDGET, RESULT, CONSOLE = 'compare.json', 'result.json', 'console.log'
RATES = (1e-3, 3e-3, 1e-2)  # from scratch, 3e-3 was best for every default model
SEARCH_PART = 3  # a run of the search has a third of the epochs
MORE_RATES = 2  # largest number of rates beyond the given ones


@dataclass(frozen=True)
class Run:
    """One training: a row of the table with one seed."""

    model: str  # name of the row: a backbone, or a backbone and a recipe
    seed: int
    folder: Path  # work dir
    lr: float | None = None  # learning rate, if it was searched

    @property
    def label(self) -> str:
        """Display name."""
        rate = '' if self.lr is None else f', learning rate {self.lr:g}'
        return f'{row_label(self.model)}{rate}, seed {self.seed}'

    def outcome(self) -> dict[str, Any]:
        """Return what a finished run has written, or ``failure``, or nothing.

        A finished run has ``metrics`` as fractions, training ``seconds`` and the AP of resampled
        images in percent as ``samples``.
        """
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
    lr_search: Sequence[float] | None = None,
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
        lr_search: Learning rates to try for each row, with one seed and a third of the epochs. The
            best rate is used. If it is the lowest or the highest one, the search goes on beyond
            it. An empty list stands for 1e-3, 3e-3 and 1e-2, and None for no search.

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
    rates = [] if lr_search is None else sorted(set(lr_search or RATES))
    if rates and not 0 < rates[0] <= rates[-1] < math.inf:
        raise ConfigError(f'--lr-search needs positive learning rates, got {rates}')
    if rates and 'optim_wrapper.optimizer.lr' in budget.cfg_options:
        raise ConfigError(
            '--lr-search sets optim_wrapper.optimizer.lr; remove this key from --cfg-options'
        )
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
            init_backbone(row.config)
        count_detector(row, budget.input_size())
    with claimed(out):
        check_same(out / BUDGET, budget.record(), 'comparison', 'budget')
        if rates:
            _search(rows, budget, rates, out, device)
        runs = {}
        for seed in range(seeds):
            for row in rows:
                run = _run(out / 'runs', row.name, seed, row.lr if rates else None)
                runs[run] = row.config
        _train_all(runs, device)
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
def claimed(out: Path, what: str = 'comparison') -> Iterator[None]:
    """Lock a folder for one comparison, or whatever ``what`` names."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / '.lock')
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"another {what} is running in '{out}'; wait until it ends, or stop it"
        ) from None
    except OSError as error:
        raise ConfigError(f"--out '{out}' cannot be written: {error}") from None
    try:
        yield
    finally:
        lock.release()


def check_same(path: Path, record: Mapping[str, Any], what: str, settings: str) -> None:
    """Write the settings of a folder, or raise a ConfigError if they have changed."""
    record = json.loads(json.dumps(record))
    before = json.loads(path.read_text()) if path.is_file() else record
    keys = [key for key in {**before, **record} if before.get(key) != record.get(key)]
    if keys:
        changes = '; '.join(f'{k}: {before.get(k)} before, {record.get(k)} now' for k in keys)
        raise ConfigError(
            f"'{path.parent}' contains a {what} with a different {settings} ({changes}); choose "
            f'another --out, or use the same {settings} to continue'
        )
    write_json(path, record, indent=1)


def _run(parent: Path, model: str, seed: int, lr: float | None) -> Run:
    name = model.replace(':', '_')  # timm:NAME; Windows allows no colon
    rate = '' if lr is None else f'_lr{lr:g}'
    return Run(model, seed, parent / f'{name}{rate}_seed{seed}', lr)


def _search(
    rows: Sequence[Row], budget: Budget, rates: Sequence[float], out: Path, device: str | None
) -> None:
    """Set the learning rate of each row to the best one.

    The search tries ``rates``. If the best rate of a row is the lowest or the highest one, it also
    tries the next one on this side, at most :data:`MORE_RATES` times.
    """
    short = replace(budget, epochs=max(budget.epochs // SEARCH_PART, 1))
    configs = {row.name: short.config(row.name) for row in rows}
    wanted = {row.name: list(rates) for row in rows}
    for _ in range(1 + MORE_RATES):
        runs = {}
        for name, cfg in configs.items():
            for rate in wanted[name]:
                run = _run(out / 'lr_search', name, 0, rate)
                runs[run] = copy.deepcopy(cfg)
                runs[run].optim_wrapper.optimizer.lr = rate
        if not runs:
            break
        _train_all(runs, device)
        for row in rows:
            for rate in wanted[row.name]:
                outcome = _run(out / 'lr_search', row.name, 0, rate).outcome()
                row.searched[rate] = 100 * outcome.get('metrics', {}).get('mAP', math.nan)
            wanted[row.name] = _next_rates(row.searched)
    for row in rows:
        if best := _best_rate(row.searched):
            row.config.optim_wrapper.optimizer.lr = best


def _best_rate(searched: Mapping[float, float]) -> float | None:
    known = {rate: ap for rate, ap in searched.items() if not math.isnan(ap)}
    return max(known, key=known.__getitem__) if known else None


def _next_rates(searched: Mapping[float, float]) -> list[float]:
    """Return the rate beyond the best one if that is the lowest or the highest one."""
    rates, best = sorted(searched), _best_rate(searched)
    if best is None or len(rates) < 2 or best not in (rates[0], rates[-1]):
        return []
    step = rates[1] / rates[0] if best == rates[0] else rates[-1] / rates[-2]
    return [float(f'{best / step if best == rates[0] else best * step:.1g}')]


def _train_all(runs: Mapping[Run, Config], device: str | None) -> None:
    with Progress(console=Console(stderr=True)) as progress:
        total = sum(cfg.train_cfg.max_epochs for cfg in runs.values())
        task, done = progress.add_task('comparing', total=total), 0
        for run, cfg in runs.items():
            progress.update(task, completed=done, description=run.label)
            if 'metrics' not in run.outcome():
                for epoch in _train_one(run, cfg, device):
                    progress.update(task, completed=done + epoch)
            done += cfg.train_cfg.max_epochs
            outcome = run.outcome()
            text = f'failed: {outcome.get("failure")}'
            if 'metrics' in outcome:
                minutes = outcome['seconds'] / 60
                text = f'AP {outcome["metrics"]["mAP"]:.3f} in {minutes:.1f} min'
            progress.console.print(f'{run.label}: {text}', highlight=False)
        progress.update(task, completed=done)


def _train_one(run: Run, cfg: Config, device: str | None) -> Iterator[int]:
    """Run one training in a separate process, and yield the number of trained epochs regularly."""
    run.folder.mkdir(parents=True, exist_ok=True)
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
        failure = how_it_died(process.exitcode, run.folder / CONSOLE)
        write_json(run.folder / RESULT, {'failure': failure}, indent=1)


def how_it_died(exitcode: int, log: Path) -> str:
    """Return how a process ended that has not written why, given its exit status and its log."""
    if exitcode > 0:
        return f"the process exited with status {exitcode}; see '{log}'"
    name = signal.Signals(-exitcode).name
    return f'the process was killed by {name}{" (out of memory?)" if name == "SIGKILL" else ""}'


def _work(run: Run, device: str | None) -> None:
    """Train and evaluate one run; this is the main function of its process."""
    # wait for the process of a killed comparison, which ends after its current iteration
    with FileLock(run.folder / '.lock'), open(run.folder / CONSOLE, 'ab') as log:
        if 'metrics' in run.outcome():
            return  # that process was in the final evaluation, and has finished it
        (run.folder / RESULT).unlink(missing_ok=True)
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
    detections = run.folder / 'detections.json'
    detections.write_text('[]')  # nothing is written if no box was found
    metrics = test(config, str(last), str(detections), work_dir=work_dir, device=device)
    # mmdet returns no metrics if no box was found
    figures = figures_of(metrics) or dict.fromkeys(METRICS, 0.0)
    meta = {'dataset_meta': content['meta']['dataset_meta']}
    write_checkpoint(content['state_dict'], run.folder / WEIGHTS, meta)
    samples = [round(ap, 2) for ap in _samples(Config.fromfile(config), detections)]
    result = {'metrics': figures, 'seconds': training_seconds(scalars), 'samples': samples}
    write_json(run.folder / RESULT, result)
    # optimizer states and detections are no longer needed
    for file in (detections, *run.folder.glob('epoch_*.pth')):
        file.unlink()


def _samples(cfg: Config, detections: Path) -> list[float]:
    """Return the AP in percent of resampled validation images."""
    truth = evaluated_truth(cfg.test_dataloader.dataset, coco_evaluators(cfg, 'test'))
    found = read_found(json.loads(detections.read_text()), truth)
    images = draw_images(len(truth.images))
    return (100 * resampled_ap(coco_evaluator(truth, found), images)).tolist()


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
        row.samples.append(np.array(result['samples']))
        if (weights := run.folder / WEIGHTS).is_file():
            row.weights = weights
