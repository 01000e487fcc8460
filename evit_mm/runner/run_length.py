"""Compare data loaders and parameter schedules with the length of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import ceil, floor
from typing import Any

from mmengine.dist import get_world_size
from mmengine.runner import IterBasedTrainLoop

from ..errors import ConfigError
from ..utils.text import counted
from .config import config_name

# attributes of mmengine's schedulers: the number of steps after which a schedule is complete
LENGTHS = ('total_steps', 'T_max')

# share of these steps after which the value is near the last one; mmdet's YOLOX makes 98 %
NEAR = 0.9

# the factors by which they multiply the value
FACTORS = ('factor', 'gamma', 'start_factor', 'end_factor')


def check_batches(loader: Any, split: str, config: str) -> None:
    """Check that a data loader yields a batch.

    Args:
        loader: Data loader.
        split: ``train``, ``val`` or ``test``.
        config: Name of the config.

    Raises:
        ConfigError: It yields no batch.
    """
    with suppress(TypeError):  # a sampler or a data set without a length
        images = len(loader.dataset)
        # an infinite sampler can give batches in spite of a length of 0, but not without images
        if images and (len(loader) or next(iter(loader.batch_sampler), None) is not None):
            return
        size, drops = (
            getattr(loader.batch_sampler, name, None) for name in ('batch_size', 'drop_last')
        )
        raise ConfigError(
            f'{config}: {split}_dataloader has no batch with {counted(images, "image")}, '
            f'{counted(get_world_size(), "process")}, batch_size={size} and drop_last={drops}; use '
            'more images (see filter_cfg of the data set), a smaller batch_size or drop_last=False'
        )


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
            note = _unreached(runner, scheduler, entry)
            if note is not None:
                kind = type(scheduler).__name__
                notes.append(f'{config_name(runner.cfg)}: {name} ({kind}) {note}')
    return notes


def _unreached(runner: Any, scheduler: Any, entry: Mapping[str, Any]) -> str | None:
    """Return a sentence on the first part of a schedule that comes after its last step, or None.

    A schedule counts its steps from ``begin``. A milestone of 2 changes the value before step 2,
    the third one. The numbers in the sentence are in the unit of the config.
    """
    value = {'lr': 'learning rate'}.get(scheduler.param_name, scheduler.param_name)
    if {getattr(scheduler, name, None) for name in FACTORS} - {None} == {1}:
        return None  # the value never changes
    by_epoch, begin, end = scheduler.by_epoch, scheduler.begin, scheduler.end
    by_metric = getattr(scheduler, 'need_val_args', False)  # it makes a step at each evaluation
    if by_epoch and not by_metric and isinstance(runner.train_loop, IterBasedTrainLoop):
        return (
            f'counts epochs, but the run has only iterations, so the {value} does not change; set '
            'by_epoch=False and give all numbers in iterations'
        )
    converted = not by_epoch and bool(entry.get('convert_to_iter_based'))
    scale = len(runner.train_dataloader) if converted else 1
    unit = 'epoch' if by_epoch or converted else 'iteration'
    last = runner.max_epochs if by_epoch else runner.max_iters
    stop = min(last, end)
    change, final = (f'the {value} does not {x}' for x in ('change there', 'reach its final value'))
    lengths = {name: getattr(scheduler, name) for name in LENGTHS if entry.get(name)}
    ends = not lengths and any(hasattr(scheduler, name) for name in ('total_iters', *LENGTHS))
    # field, its numbers, their distance to the step at which they are due, effect if it never comes
    parts: list[tuple[str, list[float], float, str]] = [
        ('begin', [begin], 0, 'it has no effect'),
        ('milestones', sorted(getattr(scheduler, 'milestones', ())), begin, change),
        ('step_size', [getattr(scheduler, 'step_size', 0)], begin, change),
        *((k, [x], begin - 1, final) for k, x in lengths.items() if stop - begin < NEAR * x),
        ('end', [end] if ends else [], -1, final),
    ]
    for field, numbers, distance, effect in parts:
        lost = [number for number in numbers if number + distance >= stop]
        if not lost:
            continue
        due = lost[0] + distance
        counted_later = begin and field not in ('begin', 'end')
        since = f' from {unit} {_number(begin / scale)} on' if counted_later else ''
        limit = 'the run ends at' if last <= end else 'its end is'
        fix, bound = f'{field} below', stop - distance
        if end < last and due < last:  # a longer schedule is possible
            fix, bound = 'end to', due + 1 if effect == final else scale * ceil(last / scale)
        elif effect == final:
            fix, bound = f'{field} to', bound - 1
        return (
            f'has {field} {" and ".join(_number(x / scale) for x in lost)}{since}, but {limit} '
            f'{unit} {_number(stop / scale)}, so {effect}; set {fix} {_number(bound / scale)}'
        )
    return None


def _number(number: float) -> str:
    """Write a number as in a config, rounded down to two digits."""
    return f'{floor(round(number * 100, 6)) / 100:.15g}'
