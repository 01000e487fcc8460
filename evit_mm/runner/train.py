"""Train a model from a config."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..errors import ConfigError
from .batch_size import set_batch_size
from .build import CheckedRunner, build_runner, set_device
from .config import load_config
from .early_stopping import add_early_stopping
from .tracking import add_trackers
from .work_dir import last_checkpoints


def train(
    config: str | Path,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    launcher: str = 'none',
    cfg_options: Mapping[str, Any] | None = None,
    seed: int | None = None,
    device: str | None = None,
    hooks: Sequence[Hook] = (),
    deterministic: bool = False,
    track: Sequence[str] = (),
    early_stopping: int | None = None,
    batch_size: int | str | None = None,
) -> Runner:
    """Train a detector or a classifier.

    Args:
        config: Config file.
        work_dir: Folder for logs and checkpoints. None uses the work dir of the config, by default
            ``work_dirs/NAME``.
        resume: ``'auto'`` resumes from the last intact checkpoint in ``work_dir``, if there is one.
            A path resumes from this checkpoint. With :class:`~evit_mm.runner.ExactTrainLoop`, the
            losses and weights are the same as in an uninterrupted run.
        amp: Whether to train in mixed precision.
        auto_scale_lr: Whether to scale the learning rate to the actual batch size.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        cfg_options: Overrides of the config, with dotted keys.
        seed: Random seed. None chooses a random seed and logs it.
        device: ``'cpu'``, ``'cuda'``, ``'cuda:1'``, ... None uses a GPU if there is one.
        hooks: Additional hooks.
        deterministic: Whether to use only deterministic algorithms. Runs on the same machine then
            give bitwise equal results.
        track: Trackers for scalars and pictures, from
            :data:`evit_mm.runner.tracking.BACKENDS`.
        early_stopping: Number of evaluations without an improvement after which the training ends,
            see :func:`~evit_mm.runner.early_stopping.add_early_stopping`. None trains to the end.
        batch_size: Number of images per process, or ``'auto'`` for the largest that fits into the
            memory of a CUDA GPU, see :func:`~evit_mm.runner.batch_size.set_batch_size`. None uses
            the config.

    Returns:
        The runner after training.

    Raises:
        EvitError: The config, a data set or a checkpoint cannot be used, the loss is not finite,
            the disk is full, or a data loader worker has died.
    """
    cfg = load_config(config, cfg_options, work_dir)
    set_device(device)
    if amp:
        _use_amp(cfg)
    if auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ConfigError(
                f'{config}: --auto-scale-lr needs auto_scale_lr.base_batch_size; set it in the '
                'config'
            )
        cfg.auto_scale_lr.enable = True
    if seed is not None and not 0 <= seed < 2**32:
        raise ConfigError(f'--seed must be from 0 to 2**32 - 1, got {seed}')
    if seed is not None:
        cfg.randomness = {**cfg.get('randomness', {}), 'seed': seed}
    if deterministic:
        cfg.randomness = {'seed': None, **cfg.get('randomness', {}), 'deterministic': True}
        # cuBLAS reads this variable when CUDA starts, and deterministic torch requires it
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    if resume == 'auto':
        if last_checkpoints(cfg.work_dir):
            cfg.resume, cfg.load_from = True, None
    elif resume is not None:
        cfg.resume, cfg.load_from = True, str(resume)
    if early_stopping is not None:
        add_early_stopping(cfg, early_stopping)
    if batch_size is not None:
        if {'batch_size', 'train_dataloader.batch_size'} & {*(cfg_options or ())}:
            raise ConfigError('--batch-size and --cfg-options both set the batch size; use one')
        set_batch_size(cfg, batch_size, launcher)
    if track:
        add_trackers(cfg, track)
    runner = build_runner(cfg, launcher)
    for hook in hooks:
        runner.register_hook(hook)
    # other runners do not tell
    CheckedRunner.has_trained |= not isinstance(runner, CheckedRunner)
    runner.train()
    return runner


def how_to_continue() -> str:
    """Return what the user of ``tools/train.py`` can do after an interruption.

    ``EVIT_MM_CONTINUE`` replaces the command. The Makefile sets it.
    """
    resumes = any(word.partition('=')[0] == '--resume' for word in sys.argv)
    if not (resumes or CheckedRunner.has_trained):  # --resume would continue an earlier training
        return 'nothing was trained; run the same command again'
    again = 'the same command' if resumes else 'the same command with --resume'
    return f'run {os.environ.get("EVIT_MM_CONTINUE", again)} to continue'


def _use_amp(cfg: Config) -> None:
    if get_device() == 'cpu':
        raise ConfigError('--amp needs a GPU; remove it to train on the CPU')
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    # mmengine and evit_mm use the same naming scheme
    cfg.optim_wrapper.type = f'Amp{kind.removeprefix("Amp")}'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
