"""Trainings of the configs of the paper's table on COCO 2017, one after the other."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ...errors import DataError
from ...runner.work_dir import read_scalars
from ...utils.files import read_json_dict, write_json
from ...utils.text import counted
from ..collect import check_alike, input_size, read_rows
from ..runs import CONSOLE, RESULT, Run, check_same, claimed, training_seconds
from ..table import PREFIX, Row, count_detector, figures_of, write_tables
from .children import run_child, training_command
from .coco2017 import COCO2017, check_coco2017, unlike_coco
from .cost import MEASURED, Cost, duration, measure
from .settings import DEFAULT_CONFIGS, SEED, Settings
from .weights import check_weights

RECORD = 'reproduce.json'
READ_EVERY = 10  # polls between two readings of the growing log


def reproduce(
    settings: Settings,
    names: Sequence[str] = DEFAULT_CONFIGS,
    estimate: bool = False,
) -> list[Row]:
    """Check data and weights, say what the trainings cost, train, and write the table.

    If it is interrupted, call this function again to continue. Finished trainings are kept, and an
    unfinished one resumes exactly.

    Args:
        settings: Data, folder, GPUs and overrides.
        names: Names of configs.
        estimate: Stop before the trainings, and return no rows.

    Returns:
        One row per config, best first.

    Raises:
        ConfigError: A setting is wrong or has changed, the folder is in use, or a training cannot
            start.
        DataError: Data or weights are missing or wrong, and the message lists all of them. Or two
            configs cannot be in one table.
    """
    console = Console(stderr=True)
    configs = settings.configs(names)
    check_alike(configs)
    with claimed(settings.out, 'reproduction'):
        begun = (settings.out / 'runs').exists()
        file, check_files = settings.out / RECORD, partial(check_weights, configs)
        facts = check(settings, configs, tuple(COCO2017), file, check_files, begun)
        for name, cfg in configs.items():
            settings.write_config(name, cfg)
        todo = {n: cfg for n, cfg in configs.items() if 'metrics' not in settings.run(n).outcome()}
        with console.status('measuring each training for about a minute') as status:
            costs = measure(
                settings, todo, lambda name: status.update(f'{name}: measuring for about a minute')
            )
        for line in cost_lines(settings, configs, costs):
            console.print(line, highlight=False, soft_wrap=True)
        if estimate:
            return []
        for name, cfg in todo.items():
            _train(settings, name, cfg, costs[name], console)
        return _write_table(settings, configs, facts)


def check(
    settings: Settings,
    configs: Mapping[str, Config],
    splits: Sequence[str],
    file: Path,
    check_files: Callable[[], tuple[list[str], dict[str, str]]],
    begun: bool,
) -> dict[str, Any]:
    """Check data, weights and settings, and return the facts about them.

    Args:
        settings: The settings.
        configs: Configs by name.
        splits: Splits of COCO that are needed.
        file: Where the facts are stored.
        check_files: Checks the weights; returns one sentence per error, and facts.
        begun: As for :func:`check_facts`.

    Raises:
        ConfigError: The settings have changed.
        DataError: Data or weights are missing or wrong. The message lists all of them.
    """
    console = Console(stderr=True)
    with console.status('checking the data'):
        faults, facts = check_coco2017(
            list(configs.values()), settings.data, splits, settings.rehearsal, read_json_dict(file)
        )
    with console.status('fetching and checking the weights'):
        others, digests = check_files()
    raise_faults([*faults, *others])
    return check_facts(file, settings, {**facts, **digests}, begun)


def check_facts(
    file: Path, settings: Settings, facts: Mapping[str, Any], begun: bool
) -> dict[str, Any]:
    """Write the settings and facts of a folder, and return the facts, also those of other configs.

    Args:
        file: Where they are stored.
        settings: The settings.
        facts: SHA-256 of data and weights.
        begun: Whether the folder has results. Without results, the settings may change.

    Raises:
        ConfigError: They have changed.
    """
    before = read_json_dict(file)
    known = {key: value for key, value in before.items() if key.startswith('sha256 of')}
    record = json.loads(json.dumps(settings.record({**known, **facts})))
    same = {key: record.get(key) for key in before}  # other configs than before are no change
    if begun:
        check_same(file, same, 'reproduction', 'setting')
    elif same != before:
        (file.parent / MEASURED).unlink(missing_ok=True)  # with other settings
    write_json(file, record, indent=1)
    return {**known, **facts}


def raise_faults(faults: Sequence[str]) -> None:
    """Raise a DataError that lists all that is missing or wrong, unless there is nothing."""
    if faults:
        lines = '\n  '.join(f'{place}. {fault}' for place, fault in enumerate(faults, 1))
        raise DataError(f'nothing was trained or evaluated; first fix the following:\n  {lines}')


def cost_lines(
    settings: Settings, configs: Mapping[str, Config], costs: Mapping[str, Cost]
) -> Iterator[str]:
    """Yield the lines that say what the trainings cost."""
    total = 0.0
    for name, cfg in configs.items():
        if name not in costs:
            yield f'{name}: finished'
            continue
        cost, done = costs[name], settings.run(name).epochs_done()
        hours = cost.hours(cfg, done)
        total += hours
        yield (
            f'{name}: {duration(hours)} for {cfg.train_cfg.max_epochs - done} of '
            f'{counted(cfg.train_cfg.max_epochs, "epoch")} '
            f'({cost.step:.3f} seconds a step, {cost.steps:,} steps an epoch)'
        )
    if costs:
        number = f'{settings.num_gpus} x ' if settings.num_gpus else ''
        device = f'{number}{settings.device}'
        yield f'in total: {duration(total)} on {device}, measured for a minute each'


def _train(settings: Settings, name: str, cfg: Config, cost: Cost, console: Console) -> None:
    """Train one config to the end, and write its result last."""
    run, epochs = settings.run(name), cfg.train_cfg.max_epochs
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / RESULT).unlink(missing_ok=True)
    command = training_command(settings, cfg, settings.config_file(name), run.folder)
    command.append('--resume')
    columns = (TextColumn('{task.description}'), BarColumn(), TextColumn('{task.fields[state]}'))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=epochs, state='starting')
        polls = itertools.count()

        def tick() -> None:
            if next(polls) % READ_EVERY == 0:
                done, ap = _progress(run, cost)
                hours = cost.hours(cfg, done)
                figure = '' if ap is None else f', AP {ap:.3f}'
                state = f'epoch {done:.1f} of {epochs}{figure}, {duration(hours)} left'
                progress.update(task, completed=done, state=state)

        failure = run_child(command, run.folder / CONSOLE, tick)
    scalars, _ = read_scalars(run.folder)
    evaluated = [entry for entry in scalars if f'{PREFIX}mAP' in entry]
    if failure is None and (not evaluated or evaluated[-1]['step'] < epochs):
        log = run.folder / CONSOLE
        failure = f"the training ended without an evaluation of epoch {epochs}; see '{log}'"
    if failure is not None:
        write_json(run.folder / RESULT, {'failure': failure}, indent=1)
        console.print(f'{name}: failed: {failure}', highlight=False, soft_wrap=True)
        return
    figures, seconds = figures_of(evaluated[-1]), training_seconds(scalars)
    write_json(run.folder / RESULT, {'metrics': figures, 'seconds': seconds}, indent=1)
    console.print(
        f'{name}: AP {figures["mAP"]:.3f} after {duration(seconds / 3600)}',
        highlight=False,
        soft_wrap=True,
    )


def _progress(run: Run, cost: Cost) -> tuple[float, float | None]:
    """Return the trained epochs, and the AP of the last evaluation if there is one."""
    scalars, _ = read_scalars(run.folder)
    steps = max((entry['step'] for entry in scalars if 'iter' in entry), default=0)
    aps = [entry[f'{PREFIX}mAP'] for entry in scalars if f'{PREFIX}mAP' in entry]
    return steps / cost.steps, aps[-1] if aps else None


def _write_table(
    settings: Settings, configs: Mapping[str, Config], facts: Mapping[str, Any]
) -> list[Row]:
    runs = {name: settings.run(name) for name in configs}
    finished = [run.folder for run in runs.values() if 'metrics' in run.outcome()]
    rows, about = read_rows(finished)
    for name, run in runs.items():
        if run.folder not in finished:
            row = Row(run.model, configs[name], failures=[run.outcome().get('failure', 'not run')])
            count_detector(row, input_size(configs[name]))
            rows.append(row)
    steps = {settings.images_per_step(cfg) for cfg in configs.values()}
    about = {
        'data': settings.data_name,
        **about,
        'device': f'{settings.num_gpus or 1} x {settings.device}',
        'images per step': ', '.join(map(str, sorted(steps))),
        'seed': SEED,
        **settings.facts(facts),
    }
    notices = [*settings.notices(), *unlike_coco(facts, settings.rehearsal)]
    if any(map(settings.scaling, configs.values())):
        notices.append(
            f'**Each step had {about["images per step"]} images instead of 16,** and the learning '
            'rate was scaled by the same factor.'
        )
    return write_tables(rows, settings.out, about, published=True, notices=notices)
