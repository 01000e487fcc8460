"""Show short log lines on the console. The log file contains the full log of mmengine."""

from __future__ import annotations

import datetime
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from mmengine.hooks import LoggerHook
from mmengine.registry import HOOKS

from .summary import best_so_far

# packages whose Python warnings are about their own code
LIBRARIES = {'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'timm', 'torch', 'torchvision'}


@contextmanager
def file_only(logger: logging.Logger, errors: bool = False) -> Iterator[None]:
    """Hide INFO messages on the console inside this context. At level DEBUG, nothing is hidden.

    Args:
        logger: Logger of mmengine.
        errors: Whether to hide warnings too and show only errors.
    """
    level = logging.ERROR if errors else logging.WARNING
    handlers = console_handlers(logger)

    def is_shown(record: logging.LogRecord) -> bool:
        return record.levelno >= level

    # this filter runs last, so that mmengine's filter still records which warnings were logged
    for handler in handlers:
        handler.addFilter(is_shown)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_shown)


@contextmanager
def prints_to_file(logger: logging.Logger) -> Iterator[None]:
    """Write to the log file what libraries print inside this context."""
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            yield
    finally:
        _to_file(logger, text.getvalue().strip())


@contextmanager
def warnings_to_file(logger: logging.Logger) -> Iterator[None]:
    """Write to the log file the Python warnings of libraries inside this context."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Any, category: Any, filename: str, *rest: Any, **kwargs: Any) -> None:
            if LIBRARIES.isdisjoint(Path(filename).parts):
                shown(message, category, filename, *rest, **kwargs)
            else:
                _to_file(logger, f'{filename}: {category.__name__}: {message}')

        warnings.showwarning = show
        yield


def _to_file(logger: logging.Logger, text: str) -> None:
    if text:
        with file_only(logger):
            logger.info(text)


def console_handlers(logger: logging.Logger) -> list[logging.Handler]:
    """Return the console handlers whose level is above DEBUG."""
    handlers = (h for h in logger.handlers if not isinstance(h, logging.FileHandler))
    return [handler for handler in handlers if handler.level > logging.DEBUG]


@HOOKS.register_module()
class ConsoleLoggerHook(LoggerHook):
    """mmengine's LoggerHook with full lines in the log file and short lines on the console.

    The short line of an iteration shows the loss, the learning rate, the best metric so far and
    the remaining time. An evaluation gets one line, and its tables are only in the log file. The
    arguments are the same as in mmengine's hook.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.evaluation = ExitStack()  # hides INFO messages while the metrics are computed

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
        """Log the progress of the validation."""
        with file_only(runner.logger):
            super().after_val_iter(runner, batch_idx, data_batch, outputs)
        self._say_how_far(runner, batch_idx, len(runner.val_dataloader))
        if batch_idx + 1 == len(runner.val_dataloader):
            self.evaluation.enter_context(file_only(runner.logger))

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Log the progress of the test."""
        with file_only(runner.logger):
            super().after_test_iter(runner, batch_idx, data_batch, outputs)
        self._say_how_far(runner, batch_idx, len(runner.test_dataloader))

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Log the metrics of the validation."""
        self.evaluation.close()
        with file_only(runner.logger):
            super().after_val_epoch(runner, metrics)
        figures = '  '.join(_figures(dict(metrics or {})))
        when = f'{_epoch(runner, runner.epoch)}  ' if runner.log_processor.by_epoch else ''
        _say(runner, f'{when}evaluated: {figures or "no result"}')

    def on_exit(self, runner: Any) -> None:
        """Show all messages again after an exception in an evaluation."""
        self.evaluation.close()

    def _say_how_far(self, runner: Any, batch_idx: int, batches: int) -> None:
        if self.every_n_inner_iters(batch_idx, self.interval):
            place = f'{batch_idx + 1:>{len(str(batches))}}/{batches}'
            _say(runner, f'evaluating  {place}  {_left(runner)}')


def _say(runner: Any, text: str) -> None:
    """Print a line if this process logs to the console."""
    if any(handler.level <= logging.INFO for handler in console_handlers(runner.logger)):
        sys.stdout.write(f'{text}\n')
        sys.stdout.flush()


def _iteration(runner: Any, batch_idx: int) -> str:
    """Return the short log line of an iteration."""
    scalars = runner.message_hub.log_scalars
    if runner.log_processor.by_epoch:
        parts = [_epoch(runner, runner.epoch + 1)]
        place, last = batch_idx + 1, len(runner.train_dataloader)
    else:
        parts, place, last = [], runner.iter + 1, runner.max_iters
    parts.append(f'iteration {place:>{len(str(last))}}/{last}')
    if 'train/loss' in scalars:  # missing if the batch was skipped
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
    """Return the remaining time of the current loop, estimated by mmengine's IterTimerHook."""
    seconds = runner.message_hub.runtime_info.get('eta', 0)
    return f'left {datetime.timedelta(seconds=round(seconds))}'


def _epoch(runner: Any, epoch: int) -> str:
    last = str(runner.max_epochs)
    return f'epoch {epoch:>{len(last)}}/{last}'


def _figures(metrics: dict[str, Any]) -> list[str]:
    """Return metrics as text. COCO's six are one entry, as in the log of mmdet."""
    lines = []
    for name in [name for name in metrics if name.endswith('_mAP')]:
        six = [f'{name}{part}' for part in ('', '_50', '_75', '_s', '_m', '_l')]
        if metrics.keys() >= set(six):
            values = ' '.join(f'{metrics.pop(key):.3f}' for key in six)
            lines.append(f'{name}_copypaste: {values}')
    return lines + [f'{name}: {_figure(value)}' for name, value in metrics.items()]


def _figure(value: Any) -> str:
    return f'{value:.4f}' if isinstance(value, float) else str(value)
