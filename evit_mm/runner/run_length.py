"""Compare data loaders and parameter schedules with the length of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from mmengine.dist import get_world_size

from ..errors import ConfigError
from ..utils.text import counted

# attributes of mmengine's schedulers: the number of steps after which a schedule is complete
LENGTHS = ('total_steps', 'T_max')


def check_batches(loader: Any, split: str, config: str | None) -> None:
    """Check that a data loader yields a batch.

    Args:
        loader: Data loader.
        split: ``train``, ``val`` or ``test``.
        config: Name of the config.

    Raises:
        ConfigError: It yields no batch.
    """
    with suppress(TypeError):  # a sampler or a data set without a length
        # an infinite sampler can give batches in spite of a length of 0
        if len(loader) or next(iter(loader.batch_sampler), None) is not None:
            return
        images, processes = len(loader.dataset), get_world_size()
        field = f'{split}_dataloader'
        has = f'the data set has {counted(images, "image")}'
        size, drops = (getattr(loader.batch_sampler, n, 0) for n in ('batch_size', 'drop_last'))
        own = images // processes
        if not images:
            fix = f'; check {field}.dataset, such as its filter_cfg'
        elif drops and size and size > own:
            many = f', there are {processes} processes' if processes > 1 else ''
            has += f'{many}, batch_size is {size} and drop_last is True'
            smaller = f'{field}.batch_size to {own} or less, or ' if own else ''
            fix = f'; set {smaller}{field}.drop_last=False'
        else:
            fix = f'; check {field}.sampler and {field}.batch_sampler'
            has += f' and there are {counted(processes, "process")}' if processes > 1 else ''
        raise ConfigError(f'{config}: {field} has no batch, because {has}{fix}')


def schedule_notes(runner: Any) -> list[str]:
    """Return a sentence for each schedule that the run is too short for.

    Args:
        runner: Runner whose training loop and ``param_schedulers`` are built.
    """
    built, config = runner.param_schedulers, runner.cfg.get('param_scheduler')
    groups = built if isinstance(built, Mapping) else {'': built or ()}
    notes = []
    for key, schedulers in groups.items():
        # one config can be for several optimizers
        entries = config.get(key, config) if key and isinstance(config, Mapping) else config
        several = isinstance(entries, Sequence)
        for number, scheduler in enumerate(schedulers):
            entry = entries[number] if several else entries
            name = f'param_scheduler{f".{key}" if entries is not config else ""}'
            name += f'.{number}' if several else ''
            entry = entry if isinstance(entry, Mapping) else {}
            note = next(_unreached(runner, scheduler, entry), None)
            if note is not None:
                notes.append(f'{runner.cfg.filename}: {name} ({type(scheduler).__name__}) {note}')
    return notes


def _unreached(runner: Any, scheduler: Any, entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each part of a schedule that comes after the last step of the run.

    A schedule counts its steps from ``begin``. A milestone of 2 changes the value before step 2,
    the third one. All numbers are in the unit of the config.
    """
    in_epochs = scheduler.by_epoch or bool(entry.get('convert_to_iter_based'))
    unit = 'epoch' if in_epochs else 'iteration'
    last = runner.max_epochs if in_epochs else runner.max_iters
    scale = len(runner.train_dataloader) if in_epochs and not scheduler.by_epoch else 1
    begin, end = scheduler.begin / scale, scheduler.end / scale
    value = {'lr': 'learning rate'}.get(scheduler.param_name, scheduler.param_name)
    run = f'but the run has {counted(last, unit)}'
    if begin >= last:
        yield f'begins at {unit} {begin:g}, {run}, so it has no effect; set begin below {last}'
    due = getattr(scheduler, 'milestones', None) or [getattr(scheduler, 'step_size', 0)]
    stop = min(last, end)
    lost = sorted(m / scale for m in due if m and begin + m / scale >= stop)
    if lost:
        field = 'milestones' if len(due) > 1 or hasattr(scheduler, 'milestones') else 'step_size'
        numbers = ' and '.join(f'{m:g}' for m in lost)
        limit = run if last <= end else f'but its end is {end:g}'
        yield (
            f'has {field} {numbers}, {limit}, so the {value} does not change there; set {field} '
            f'below {stop - begin:g}'
        )
    if hasattr(scheduler, 'total_iters') and end > last:
        yield (
            f'ends at {unit} {end:g}, {run}, so the {value} does not reach its final value; set '
            f'end to {last} or less'
        )
    for field in LENGTHS:
        length = getattr(scheduler, field, 0) / scale
        if begin + length > last:
            yield (
                f'has {field}={length:g} from {unit} {begin:g} on, {run}, so the {value} does not '
                f'reach its final value; set {field} and end to {last - begin:g} and {last} or less'
            )
