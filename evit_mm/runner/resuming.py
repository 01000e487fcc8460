"""Going on from a checkpoint: which one, with which seed, and whether the optimizer is the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import find_latest_checkpoint

from ..checkpoint import read_checkpoint, tensors_of
from ..errors import CheckpointError, ConfigError
from .work_dir import number_of, pointed_at


def find_resumed(cfg: Config) -> dict[str, Any] | None:
    """Find the checkpoint that a config's run goes on from; its path and seed go into the config.

    Args:
        cfg: With ``resume``, goes on from ``load_from``, else from the last whole checkpoint in
            ``work_dir``, else from nothing.

    Returns:
        What the checkpoint holds; None where the run begins anew.

    Raises:
        CheckpointError: It cannot be read, or has no optimizer state.
        ConfigError: The config names another seed.
    """
    if not cfg.get('resume'):
        return None
    path = cfg.get('load_from')
    found = (path, read_checkpoint(path)) if path else find_last_good(cfg.work_dir)
    cfg.resume = found is not None
    if found is None:
        return None
    path, content = found
    if not isinstance(content, Mapping) or 'optimizer' not in content:
        raise CheckpointError(
            f"'{path}' has weights but no optimizer state, so it cannot be resumed; start from it "
            f'with --cfg-options load_from={path}'
        )
    cfg.load_from = str(path)
    seed, chosen = (content.get('meta') or {}).get('seed'), cfg.get('randomness', {}).get('seed')
    if None not in (seed, chosen) and seed != chosen:
        raise ConfigError(
            f"'{path}' was trained with seed {seed} and not {chosen}; leave the seed out to go on"
        )
    if seed is not None:
        # mmengine restores the seed only after the sampler has drawn its own
        cfg.randomness = {**cfg.get('randomness', {}), 'seed': seed}
    return {**content, 'state_dict': tensors_of(content, name=str(path))}


def find_last_good(work_dir: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the last whole checkpoint of a run and what it holds, None where it has none.

    It is the one that ``last_checkpoint`` names; where that cannot be read, the others are tried,
    newest first, and a warning names each that was passed over.

    Raises:
        CheckpointError: There are checkpoints, but none can be read.
    """
    folder = Path(work_dir)
    files = [f for kind in ('epoch', 'iter') for f in folder.glob(f'{kind}_*.pth')]
    files.sort(key=lambda file: (file.stat().st_mtime_ns, number_of(file)), reverse=True)
    named = pointed_at(folder)
    if named is not None:
        files = [named, *(file for file in files if file != named)]
    passed_over: list[str] = []
    for file in files:
        try:
            content = read_checkpoint(file)
        except CheckpointError as error:
            passed_over.append(str(error))
            continue
        for reason in passed_over:
            print_log(f'passed over: {reason}', logger='current', level=30)
        return file, content
    if passed_over:
        reasons = '\n  '.join(passed_over)
        raise CheckpointError(
            f"'{folder}' has no checkpoint to resume that can be read; start in another --work-dir "
            f'or without --resume\n  {reasons}'
        )
    return None


def resumed_from(runner: Any) -> str | None:
    """Return the checkpoint that a run goes on from, None where it begins anew.

    mmengine tells its hooks in no other way than by these two attributes of its runner.
    """
    if not runner._resume:
        return None
    return runner._load_from or find_latest_checkpoint(runner.work_dir)


@HOOKS.register_module()
class ResumedOptimizerHook(Hook):
    """Refuse another optimizer, and say whose learning rate counts, before a run is resumed.

    The checkpoint's rates and schedule count, as they do in mmengine, which does not say so.
    """

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Compare the checkpoint's groups of parameters with those of the config's optimizer.

        Raises:
            ConfigError: The optimizer has other settings, or other groups.
        """
        file = resumed_from(runner)
        saved = (checkpoint.get('optimizer') or {}).get('param_groups')
        # the wrapper's own list has base settings as one group more
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        own = getattr(optimizer, 'param_groups', None)
        if file is None or saved is None or own is None:
            return
        _check_same_groups(type(optimizer).__name__, own, saved, file)
        rates = [(_rate(group), _rate(old)) for group, old in zip(own, saved, strict=True)]
        different = [(new, old) for new, old in rates if abs(new - old) > 1e-9 * abs(old)]
        if different:
            new, old = different[0]
            runner.logger.warning(
                f"the run goes on with the checkpoint's learning rate {old:g} and schedule, not "
                f"with the config's {new:g}; to train on with another rate, start from its "
                f'weights: --cfg-options load_from={file}, without --resume'
            )


def _check_same_groups(kind: str, own: Any, saved: Any, file: str) -> None:
    mend = (
        'resume with the optimizer that it was trained with, or start from its weights: '
        f'--cfg-options load_from={file}, without --resume'
    )
    missing = sorted({*own[0]} - {*saved[0]})
    if missing:
        raise ConfigError(
            f"'{file}' was trained with another optimizer than {kind}: it has no "
            f'{", ".join(missing)}; {mend}'
        )
    sizes = [[len(group['params']) for group in groups] for groups in (own, saved)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"'{file}' was trained with {sum(sizes[1])} parameters in {len(saved)} groups, and "
            f'optim_wrapper makes {sum(sizes[0])} in {len(own)}; {mend}'
        )


def _rate(group: Any) -> float:
    return float(group.get('initial_lr', group['lr']))
