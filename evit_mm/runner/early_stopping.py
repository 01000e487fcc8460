"""End a training when its evaluations no longer improve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.hooks import EarlyStoppingHook
from mmengine.registry import HOOKS

from ..errors import ConfigError
from ..utils.text import counted
from .config import config_name, is_classifier
from .resuming import resumed_from
from .summary import MAIN_METRIC, STOPPED

STATE = 'evit_mm_early_stopping'  # key of the message hub, which is saved in checkpoints
# mmengine's default of 0.1 would be ten points of AP
MIN_DELTA = 0.001


@HOOKS.register_module()
class ResumedEarlyStoppingHook(EarlyStoppingHook):
    """mmengine's EarlyStoppingHook, which a resumed training continues.

    mmengine's hook starts again after a resume. This hook saves the best value and the number of
    evaluations since then in each checkpoint. The arguments are the same. A training that resumes
    after it has ended early goes on only with a larger ``patience``.

    ``IterBasedTrainLoop`` does not repeat an evaluation of the iteration of a checkpoint. After a
    resume, this evaluation may not count.
    """

    priority = 'LOW'  # before the checkpoint hook saves the record

    def before_train(self, runner: Any) -> None:
        """Continue the count of the checkpoint."""
        saved = runner.message_hub.runtime_info.get(STATE) if resumed_from(runner) else None
        if saved is not None and saved['monitor'] == self.monitor:
            self.best_score, self.wait_count = saved['best_score'], saved['wait_count']

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any]) -> None:
        """Decide whether to stop, and record the count and the reason."""
        super().after_val_epoch(runner, metrics)
        state = {
            'monitor': self.monitor,
            'best_score': float(self.best_score),
            'wait_count': self.wait_count,
        }
        runner.message_hub.update_info(STATE, state)
        if runner.train_loop.stop_training:
            reason = f'{self.monitor} is {metrics.get(self.monitor)}'
            if self.wait_count >= self.patience:
                number = counted(self.wait_count, 'evaluation')
                reason = f'{self.monitor} has not improved in {number}'
            runner.message_hub.update_info(STOPPED, reason)


def add_early_stopping(cfg: Config, patience: int) -> None:
    """Add ``default_hooks.early_stopping`` to a config.

    It monitors the metric of ``default_hooks.checkpoint.save_best``, with its ``rule``. If the
    config has this hook already, only its patience changes.

    Args:
        cfg: Config.
        patience: Number of evaluations without an improvement after which the training ends.

    Raises:
        ConfigError: The training has no evaluation or too few, or the metric is not named.
    """
    name = config_name(cfg)
    if patience < 1:
        raise ConfigError(f'--early-stopping must be at least 1, got {patience}')
    if cfg.get('val_cfg') is None or cfg.get('val_dataloader') is None:
        raise ConfigError(
            f'{name}: --early-stopping needs evaluations during the training; set val_cfg, '
            'val_dataloader and val_evaluator'
        )
    for hook in cfg.get('custom_hooks') or ():
        if str(hook.get('type')).endswith('EarlyStoppingHook'):
            raise ConfigError(
                f'{name}: custom_hooks has an EarlyStoppingHook; remove it, or set its patience '
                'there and remove --early-stopping'
            )
    evaluations = _evaluations(cfg.train_cfg)
    if evaluations is not None and evaluations <= patience + 1:
        raise ConfigError(
            f'{name}: --early-stopping {patience} has no effect with '
            f'{counted(evaluations, "evaluation")}; use a smaller number, or evaluate more often '
            f'with train_cfg.val_interval (now {_interval(cfg.train_cfg)})'
        )
    found = cfg.default_hooks.get('early_stopping')
    if found:
        found.patience = patience
        return
    checkpoint = cfg.default_hooks.get('checkpoint') or {}
    monitor, rule = (_first(checkpoint.get(key)) for key in ('save_best', 'rule'))
    if monitor is None and not is_classifier(cfg):
        monitor = MAIN_METRIC
    if monitor in (None, 'auto'):
        raise ConfigError(
            f'{name}: --early-stopping needs the name of a metric; set '
            'default_hooks.checkpoint.save_best, for example to coco/bbox_mAP'
        )
    cfg.default_hooks.early_stopping = {
        'type': 'ResumedEarlyStoppingHook',
        'monitor': monitor,
        'rule': rule,
        'patience': patience,
        'min_delta': MIN_DELTA,
    }


def _first(value: Any) -> Any:
    """Return the first of several metrics or rules, by which the best evaluation is known."""
    return value[0] if isinstance(value, (list, tuple)) and value else value


def _evaluations(train_cfg: Mapping[str, Any]) -> int | None:
    """Return the number of evaluations of a training, or None if it cannot be known."""
    last = train_cfg.get('max_epochs') or train_cfg.get('max_iters')
    if last is None or train_cfg.get('dynamic_intervals'):
        return None
    interval, begin = _interval(train_cfg), max(train_cfg.get('val_begin', 1), 1)
    due = {place for place in range(interval, last + 1, interval) if place >= begin}
    return len(due | {last})


def _interval(train_cfg: Mapping[str, Any]) -> int:
    """Return ``val_interval``, or the default of mmengine's loops for epochs and iterations."""
    return train_cfg.get('val_interval', 1 if train_cfg.get('max_epochs') else 1000)
