"""What a training has beyond its config: the safe parts, and a line that says how it was made."""

from __future__ import annotations

import os
from typing import Any

import torch
from mmengine.config import Config

from ..ops import PROVIDED
from ..utils.provenance import commit, versions

PACKAGES = ('evit_mm', 'torch', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'timm')


def use_safe_parts(cfg: Config) -> None:
    """Put this package's loop and checkpoint hook in the place of mmengine's, where those stand.

    Other loops and hooks of the config's own choice stay.
    """
    loop = cfg.get('train_cfg')
    if loop is not None and loop.get('type', _plain_loop(loop)) == 'EpochBasedTrainLoop':
        loop.pop('by_epoch', None)
        loop['type'] = 'ExactTrainLoop'
    hooks = cfg.setdefault('default_hooks', {})
    hook = hooks.setdefault('checkpoint', {'type': 'CheckpointHook', 'interval': 1})
    if hook is not None and hook.get('type') == 'CheckpointHook':
        hook['type'] = 'SafeCheckpointHook'


def be_deterministic(cfg: Config) -> None:
    """Ask mmengine and torch for operations that give the same bits in each run."""
    cfg.randomness = {**cfg.get('randomness', {}), 'deterministic': True}
    # cuBLAS reads it when CUDA starts; torch refuses to work deterministically without
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')


def log_provenance(runner: Any) -> None:
    """Log seeds, commit, versions and threads; mmengine logs the config and the machine."""
    seed = runner.seed
    found = ', '.join(f'{name} {version}' for name, version in versions(PACKAGES).items())
    lines = (
        f'commit: {commit()}',
        f"versions: {found}; mmcv's operators: {PROVIDED}",
        f'seed of the weights: {seed}; of the data order: {seed} + epoch; of a sample: ({seed}, '
        f'epoch, place); of the model in training: ({seed}, iteration, rank), whatever the workers',
        f'deterministic: {torch.are_deterministic_algorithms_enabled()}, '
        f'threads: {torch.get_num_threads()}, processes: {runner.world_size}',
    )
    runner.logger.info('This run\n    ' + '\n    '.join(lines))


def _plain_loop(loop: Any) -> str:
    return 'EpochBasedTrainLoop' if loop.get('by_epoch', True) else 'IterBasedTrainLoop'
