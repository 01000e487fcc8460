"""Resume from a checkpoint: find it, restore its seed, and apply the settings of the config."""

from __future__ import annotations

import copy
import itertools
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import ReduceOnPlateauParamScheduler
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, find_latest_checkpoint

from ..checkpoint import read_checkpoint, tensors_of
from ..errors import CheckpointError, ConfigError
from .loop import PLACE
from .work_dir import last_checkpoints

# entries of parameter groups and schedules that are no settings, or do not change the result
UNCOMPARED = {
    *('params', 'fused', 'foreach', 'capturable', 'differentiable'),
    *('last_step', 'base_values', 'verbose', 'best', 'num_bad_epochs', 'cooldown_counter'),
}
SCHEDULED = {'initial_lr', 'initial_momentum'}  # only with a schedule


def find_resumed(cfg: Config) -> dict[str, Any] | None:
    """Find the checkpoint to resume from and write its path and seed into the config.

    With ``resume``, the checkpoint is ``load_from``, by default the last intact checkpoint in
    ``work_dir``.

    Returns:
        The content of the checkpoint, or None if the training starts from the beginning.

    Raises:
        CheckpointError: The checkpoint cannot be read or has no training state.
        ConfigError: The seed of the config differs from the seed of the checkpoint.
    """
    if not cfg.get('resume'):
        return None
    path = cfg.get('load_from')
    found = (path, read_checkpoint(path)) if path else find_last_good(cfg.work_dir)
    cfg.resume = found is not None
    if found is None:
        return None
    path, content = found
    parts = {part: content.get(part) for part in ('optimizer', 'message_hub', 'meta')}
    lacking = [part for part, value in parts.items() if not (value and isinstance(value, dict))]
    if not lacking:
        lacking = [f'meta.{key}' for key in ('epoch', 'iter') if key not in content['meta']]
    if lacking:
        raise CheckpointError(
            f"checkpoint '{path}' has no {' and no '.join(lacking)}, so training cannot resume "
            f'from it; to start from its weights, use --cfg-options load_from={path} without '
            '--resume'
        )
    cfg.load_from = str(path)
    seed, chosen = content['meta'].get('seed'), cfg.get('randomness', {}).get('seed')
    if None not in (seed, chosen) and seed != chosen:
        raise ConfigError(
            f"checkpoint '{path}' was trained with seed {seed}, not {chosen}; resume with --seed "
            f'{seed}'
        )
    if seed is not None:
        # mmengine restores the seed too late, after the sampler has used its own
        cfg.randomness = {**cfg.get('randomness', {}), 'seed': seed}
    return {**content, 'state_dict': tensors_of(content, name=str(path))}


def find_last_good(work_dir: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the last intact checkpoint of a run and its content, or None if it has no checkpoint.

    Unreadable checkpoints are skipped with a warning.
    """
    passed_over: list[str] = []
    for file in last_checkpoints(work_dir):
        try:
            content = read_checkpoint(file)
        except CheckpointError as error:
            passed_over.append(str(error))
            continue
        for reason in passed_over:
            print_log(f'skipped: {reason}', logger='current', level=logging.WARNING)
        return file, content
    if passed_over:
        reasons = '\n  '.join(passed_over)
        raise CheckpointError(
            f"no checkpoint in '{work_dir}' can be read; choose another --work-dir or train "
            f'without --resume\n  {reasons}'
        )
    return None


def resumed_from(runner: Any) -> str | None:
    """Return the checkpoint that a run resumes from, or None.

    mmengine has no public attribute for it.
    """
    if not runner._resume:
        return None
    return runner._load_from or find_latest_checkpoint(runner.work_dir)


@HOOKS.register_module()
class ResumedOptimizerHook(Hook):
    """Apply the optimizer settings and the schedules of the config when training resumes.

    mmengine takes both from the checkpoint, whatever the config says. With this hook, the
    checkpoint gives only the state, such as the moments of AdamW, and the config gives the
    settings. After the resume, the learning rates are those of an uninterrupted training with the
    config. A warning names the settings that have changed. A different optimizer is an error.
    """

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Compare the settings with the checkpoint, and replace those that have changed."""
        file = resumed_from(runner)
        if file is None or 'optimizer' not in checkpoint:
            return
        saved = checkpoint['optimizer']['param_groups']
        # the wrapper's list has an additional group with the base settings
        optimizer = runner.optim_wrapper.optimizer
        own = optimizer.param_groups
        if {*own[0]} - {*saved[0]} - SCHEDULED or _sizes(own) != _sizes(saved):
            raise ConfigError(
                f'the optimizer {type(optimizer).__name__} or its parameter groups differ from '
                f"those in checkpoint '{file}'; resume with the optim_wrapper of that training, "
                f'or start from its weights with --cfg-options load_from={file} without --resume'
            )
        changes = _changed_length(runner, checkpoint)
        changes += _adopt_settings(runner, checkpoint)
        if changes:
            runner.logger.warning(
                f"the config differs from the training of checkpoint '{file}' in "
                f'{", ".join(changes)}; the learning rates are now those of an uninterrupted '
                'training with this config'
            )


def _sizes(groups: list[dict[str, Any]]) -> list[int]:
    return [len(group['params']) for group in groups]


def _changed_length(runner: Any, checkpoint: Mapping[str, Any]) -> list[str]:
    """Return how the length of the training has changed."""
    loop, known = runner.train_loop, checkpoint['message_hub'].get('runtime_info', {})
    length = len(loop.dataloader)
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    name = 'max_epochs' if by_epoch else 'max_iters'
    pairs = {
        f'train_cfg.{name}': (known.get(name), getattr(loop, name)),
        'batches per epoch': (known.get(PLACE, {}).get('batches'), length),
    }
    return [_change(key, *pair) for key, pair in pairs.items() if None is not pair[0] != pair[1]]


def _adopt_settings(runner: Any, checkpoint: dict[str, Any]) -> list[str]:
    """Write the settings of the config into the checkpoint and return those that have changed."""
    wrapper, schedules = runner.optim_wrapper, runner.param_schedulers or []
    saved = checkpoint['optimizer']
    states = checkpoint.get('param_schedulers', [])
    groups = [*saved['param_groups'], *filter(None, [saved.get('base_param_settings')])]
    pairs = list(zip(wrapper.param_groups, groups, strict=False))
    scheduled = {schedule.param_name for schedule in schedules}
    if 'momentum' in scheduled:
        scheduled.add('betas')  # of Adam, whose first beta is the momentum
    changes: dict[str, str] = {}
    for own, old in pairs:
        for key in own.keys() - UNCOMPARED - scheduled:
            if own[key] != old.get(key, own[key]):
                name = f'optim_wrapper.optimizer.{key.removeprefix("initial_")}'
                changes[name] = _change(name, old[key], own[key])  # the last is the base setting
            old[key] = own[key]
    replayed = bool(changes) or len(states) != len(schedules)
    if len(states) != len(schedules):
        changes['param_scheduler'] = _change('len(param_scheduler)', len(states), len(schedules))
    for place, (schedule, state) in enumerate(zip(schedules, states, strict=False)):
        for key, value in schedule.state_dict().items():
            if key not in UNCOMPARED and not key.startswith('_') and state.get(key) != value:
                name = f'param_scheduler.{place}.{key}'
                changes[name] = _change(name, state.get(key), value)
                replayed = True
    if schedules and replayed:
        checkpoint['param_schedulers'] = _replay(runner, checkpoint)
        for own, old in pairs:
            old.update({key: own[key] for key in own.keys() - {'params'}})
    return list(changes.values())


def _change(name: str, old: Any, new: Any) -> str:
    return f'{name} ({_short(old)}, now {_short(new)})'


def _short(value: Any) -> str:
    return f'{value:g}' if isinstance(value, float) else str(value)


def _replay(runner: Any, checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Step the schedules of the config to the position of a checkpoint and return their states.

    The steps are those of mmengine's ParamSchedulerHook in an uninterrupted training. They change
    the parameter groups of the optimizer.
    """
    schedules = runner.param_schedulers
    if any(isinstance(schedule, ReduceOnPlateauParamScheduler) for schedule in schedules):
        raise ConfigError(
            'a schedule that depends on the evaluations (ReduceOnPlateau) cannot be changed when '
            'training resumes; resume with the settings of the checkpoint, or start from its '
            'weights with load_from and without --resume'
        )
    groups = runner.optim_wrapper.param_groups
    # many groups are equal, for example one group per parameter: step each kind only once
    rows = [repr({key: x for key, x in group.items() if key != 'params'}) for group in groups]
    kinds = list(dict.fromkeys(rows))
    firsts = [rows.index(kind) for kind in kinds]
    stepped = torch.optim.SGD(
        [{**groups[first], 'params': [torch.zeros(1)]} for first in firsts], lr=0.0
    )
    twins = []
    for schedule in schedules:
        twin = copy.copy(schedule)
        twin.optimizer = stepped
        twin.base_values = [schedule.base_values[first] for first in firsts]
        twins.append(twin)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the optimizer makes no steps meanwhile
        for ends_epoch in _steps(runner.train_loop, checkpoint):
            for twin in twins:
                if twin.by_epoch == ends_epoch:
                    twin.step()
    places = [kinds.index(row) for row in rows]
    for group, place in zip(groups, places, strict=True):
        found = stepped.param_groups[place]
        group.update({key: found[key] for key in group.keys() - {'params'}})
    states = [twin.state_dict() for twin in twins]
    for state in states:
        for key in ('base_values', '_last_value'):
            state[key] = [state[key][place] for place in places]
    return states


def _steps(loop: Any, checkpoint: Mapping[str, Any]) -> Iterator[bool]:
    """Yield False for each iteration before the checkpoint and True for the end of each epoch.

    If the number of batches per epoch has changed, the epochs count and not the iterations.
    """
    epochs, rest = 0, checkpoint['meta']['iter']
    if isinstance(loop, EpochBasedTrainLoop):
        length, epochs = len(loop.dataloader), checkpoint['meta']['epoch']
        place = checkpoint['message_hub'].get('runtime_info', {}).get(PLACE, {})
        first = place['first_iter'] if place.get('epoch') == epochs else epochs * length
        rest = rest - first if 0 <= rest - first <= length else 0
        for _ in range(epochs):
            yield from itertools.repeat(False, length)
            yield True
    yield from itertools.repeat(False, rest)
