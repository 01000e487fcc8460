"""Whether a checkpoint's optimizer is the one that the config asks for."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook

from ..errors import ConfigError


class ResumedOptimizerHook(Hook):
    """Refuse another optimizer, and say whose learning rate counts, before a run is resumed.

    The checkpoint's rates and schedule count, as they do in mmengine, which does not say so.
    """

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Compare the checkpoint's groups of parameters with those of the config's optimizer.

        Raises:
            ConfigError: The optimizer has other settings, or other groups.
        """
        saved = (checkpoint.get('optimizer') or {}).get('param_groups')
        # the wrapper's own list has base settings as one group more
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        own = getattr(optimizer, 'param_groups', None)
        if not runner._resume or saved is None or own is None:
            return
        _compare_optimizers(own, saved, runner)
        rates = [(_rate(group), _rate(old)) for group, old in zip(own, saved, strict=True)]
        different = [(new, old) for new, old in rates if abs(new - old) > 1e-9 * abs(old)]
        if different:
            new, old = different[0]
            runner.logger.warning(
                f"the run goes on with the checkpoint's learning rate {old:g} and schedule, not "
                f"with the config's {new:g}; to train on with another rate, start from its "
                f'weights: --cfg-options load_from={runner._load_from}, without --resume'
            )


def _compare_optimizers(own: Any, saved: Any, runner: Any) -> None:
    kind = type(runner.optim_wrapper.optimizer).__name__
    mend = 'resume with the optimizer that it was trained with, or start from its weights: '
    mend += f'--cfg-options load_from={runner._load_from}, without --resume'
    where = f"'{runner._load_from}' was trained with"
    missing = sorted({*own[0]} - {*saved[0]})
    if missing:
        raise ConfigError(
            f'{where} another optimizer than {kind}: it has no {", ".join(missing)}; {mend}'
        )
    sizes = [[len(group['params']) for group in groups] for groups in (own, saved)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f'{where} {sum(sizes[1])} parameters in {len(saved)} groups, and optim_wrapper makes '
            f'{sum(sizes[0])} in {len(own)}; {mend}'
        )


def _rate(group: Any) -> float:
    return float(group.get('initial_lr', group['lr']))
