"""What of mmengine's log a person sees on the console; the log file has all of it as it is."""

from __future__ import annotations

import datetime
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.hooks import LoggerHook
from mmengine.registry import HOOKS

from .summary import best_so_far


@contextmanager
def file_only(logger: logging.Logger, errors: bool = False) -> Iterator[None]:
    """Keep information off the console meanwhile; warnings show, and at level DEBUG everything.

    Args:
        logger: mmengine's.
        errors: Of warnings, too, only errors show.
    """
    level = logging.ERROR if errors else logging.WARNING
    handlers = console_handlers(logger)

    def is_shown(record: logging.LogRecord) -> bool:
        return record.levelno >= level

    # the last filter: mmengine's first one still notes which warnings have been given
    for handler in handlers:
        handler.addFilter(is_shown)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_shown)


def console_handlers(logger: logging.Logger) -> list[logging.Handler]:
    """Return the handlers that write to the console, but for those that show everything."""
    handlers = (h for h in logger.handlers if not isinstance(h, logging.FileHandler))
    return [handler for handler in handlers if handler.level > logging.DEBUG]


@HOOKS.register_module()
class ConsoleLoggerHook(LoggerHook):
    """mmengine's LoggerHook: its lines go to the log file, short ones to the console.

    A short line of an iteration has the loss, the learning rate, the best figure so far and the
    time left. Arguments as mmengine's.
    """

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Log an iteration."""
        with file_only(runner.logger):
            super().after_train_iter(runner, batch_idx, data_batch, outputs)
        at_end = self.end_of_epoch(runner.train_dataloader, batch_idx)
        if at_end or self.every_n_inner_iters(batch_idx, self.interval):
            _say(runner, _iteration(runner, batch_idx))

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Log how far an evaluation is."""
        with file_only(runner.logger):
            super().after_val_iter(runner, batch_idx, data_batch, outputs)
        self._say_how_far(runner, batch_idx, len(runner.val_dataloader))

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Log how far a test is."""
        with file_only(runner.logger):
            super().after_test_iter(runner, batch_idx, data_batch, outputs)
        self._say_how_far(runner, batch_idx, len(runner.test_dataloader))

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Log the figures of an evaluation."""
        with file_only(runner.logger):
            super().after_val_epoch(runner, metrics)
        figures = '  '.join(f'{name}: {_figure(x)}' for name, x in (metrics or {}).items())
        when = f'{_epoch(runner, runner.epoch)}  ' if runner.log_processor.by_epoch else ''
        _say(runner, f'{when}evaluated: {figures or "no result"}')

    def _say_how_far(self, runner: Any, batch_idx: int, batches: int) -> None:
        if self.every_n_inner_iters(batch_idx, self.interval):
            place = f'{batch_idx + 1:>{len(str(batches))}}/{batches}'
            _say(runner, f'evaluating  {place}  {_left(runner)}')


def _say(runner: Any, text: str) -> None:
    """Write a line to the console of the process that has one."""
    if any(handler.level <= logging.INFO for handler in console_handlers(runner.logger)):
        sys.stdout.write(f'{text}\n')
        sys.stdout.flush()


def _iteration(runner: Any, batch_idx: int) -> str:
    """Return the short line of an iteration."""
    scalars = runner.message_hub.log_scalars
    if runner.log_processor.by_epoch:
        parts = [_epoch(runner, runner.epoch + 1)]
        place, last = batch_idx + 1, len(runner.train_dataloader)
    else:
        parts, place, last = [], runner.iter + 1, runner.max_iters
    parts.append(f'iteration {place:>{len(str(last))}}/{last}')
    if 'train/loss' in scalars:  # not where the batch was skipped
        loss = scalars['train/loss'].mean(runner.log_processor.window_size)
        parts.append(f'loss {_figure(loss)}')
    parts.append(f'lr {scalars["train/lr"].current():.2e}')
    best = best_so_far(runner)
    if best is not None:
        short = best['metric'].rpartition('/')[2].replace('bbox_mAP', 'AP')
        parts.append(f'{short} {best["value"]:.3f}')
    parts.append(_left(runner))
    return '  '.join(parts)


def _left(runner: Any) -> str:
    """Say how long mmengine's IterTimerHook expects the present loop to take."""
    seconds = runner.message_hub.runtime_info.get('eta', 0)
    return f'left {datetime.timedelta(seconds=round(seconds))}'


def _epoch(runner: Any, epoch: int) -> str:
    last = str(runner.max_epochs)
    return f'epoch {epoch:>{len(last)}}/{last}'


def _figure(value: Any) -> str:
    return f'{value:.4f}' if isinstance(value, float) else str(value)
