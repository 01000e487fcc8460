"""Resume from a checkpoint: find it, restore its seed, and compare its optimizer."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import find_latest_checkpoint

from ..checkpoint import read_checkpoint, tensors_of
from ..errors import CheckpointError, ConfigError
from .work_dir import last_checkpoints


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
    """Compare the optimizer of the config with the checkpoint when training resumes.

    A different optimizer is an error. A different learning rate gives a warning, because the
    training continues with the learning rate and the schedule of the checkpoint, as in mmengine.
    """

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Compare the parameter groups and the learning rates with the checkpoint."""
        file = resumed_from(runner)
        if file is None or 'optimizer' not in checkpoint:
            return
        saved = checkpoint['optimizer']['param_groups']
        # the wrapper's list has an additional group with the base settings
        optimizer = runner.optim_wrapper.optimizer
        own = optimizer.param_groups
        if {*own[0]} - {*saved[0]} or _sizes(own) != _sizes(saved):
            raise ConfigError(
                f'the optimizer {type(optimizer).__name__} or its parameter groups differ from '
                f"those in checkpoint '{file}'; resume with the optim_wrapper of that training, "
                f'or start from its weights with --cfg-options load_from={file} without --resume'
            )
        for new, old in zip(_rates(own), _rates(saved), strict=True):
            if not math.isclose(new, old):
                runner.logger.warning(
                    f'training resumes with the learning rate {old:g} and the schedule of the '
                    f'checkpoint, not with the learning rate {new:g} of the config; to use another '
                    f'learning rate, start from the weights with --cfg-options load_from={file} '
                    'without --resume'
                )
                return


def _sizes(groups: list[dict[str, Any]]) -> list[int]:
    return [len(group['params']) for group in groups]


def _rates(groups: list[dict[str, Any]]) -> list[float]:
    return [float(group.get('initial_lr', group['lr'])) for group in groups]
