"""What of mmengine's log a person sees on the console; the log file has all of it as it is.

Several hundred lines of environment, config, hooks and parameter groups stay in the file, and
the line of an iteration is a short one with the best figure so far and the time left.
"""

from __future__ import annotations

import datetime
import logging
import re
import weakref
from typing import Any

from mmengine.runner import IterBasedTrainLoop

from .summary import best_so_far

FILE_ONLY = (
    'paramwise_options',
    'Hooks will be executed in the following',
    'Exp name:',
    # mmengine speaks of its own calls
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    'Please make sure that the mlflow server is running',
)
PLACE = re.compile(r'\[\s*(\d+)/(\d+)\]')
ETA = re.compile(r'\beta: ((?:\d+ days?, )?[\d:]+)')


def quieten(logger: logging.Logger, runner: Any) -> None:
    """Let a logger's stream say what a person reads; at log_level DEBUG it says everything."""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler) or handler.level <= logging.DEBUG:
            continue
        if not any(isinstance(f, ForPeople) for f in handler.filters):
            handler.addFilter(ForPeople())
        usual = handler.formatter or logging.Formatter()
        handler.setFormatter(Short(getattr(usual, 'usual', usual), runner))


class ForPeople(logging.Filter):
    """Pass what belongs on the console."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record belongs there."""
        environment = record.funcName == '_log_env' and record.levelno <= logging.INFO
        return not environment and not record.getMessage().startswith(FILE_ONLY)


class Short(logging.Formatter):
    """Shorten the lines of mmengine's LoggerHook; others are formatted as usual.

    Args:
        usual: The formatter for the others.
        runner: mmengine's runner, which knows how far the training is.
    """

    def __init__(self, usual: logging.Formatter, runner: Any) -> None:
        super().__init__()
        self.usual = usual
        # mmengine keeps its loggers, and a runner keeps the workers of its data
        self._runner = weakref.ref(runner)

    @property
    def runner(self) -> Any:
        """The runner."""
        return self._runner()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        short = None
        if record.module == 'logger_hook':
            text = record.getMessage()
            if record.funcName == 'after_train_iter':
                short = self._iteration(text)
            elif record.funcName in ('after_val_iter', 'after_test_iter'):
                short = _evaluating(text)
            elif record.funcName == 'after_val_epoch':
                short = self._evaluated(text)
        return self.usual.format(record) if short is None else short

    def _iteration(self, text: str) -> str | None:
        place, loss = PLACE.search(text), re.search(r'\bloss: (\S+)', text)
        if place is None:
            return None
        parts = [f'iteration {place[1]:>{len(place[2])}}/{place[2]}']
        if text.startswith('Epoch'):
            parts.insert(0, self._epoch(self.runner.epoch + 1))
        if loss is not None:
            parts.append(f'loss {loss[1]}')
        rate = re.search(r'\blr: (\S+)', text)
        if rate is not None:
            parts.append(f'lr {float(rate[1]):.2e}')
        best = best_so_far(self.runner)
        if best is not None:
            parts.append(f'{_short_name(best["metric"])} {best["value"]:.3f}')
        seconds = self.runner.message_hub.runtime_info.get('eta')
        if seconds is not None:
            left = seconds + evaluations_left(self.runner) * _evaluation_seconds(self.runner)
            parts.append(f'left {datetime.timedelta(seconds=round(left))}')
        return '  '.join(parts)

    def _evaluated(self, text: str) -> str:
        figures = re.sub(r'\s*\bdata_time: .*', '', text.partition(']  ')[2]).strip()
        when = f'{self._epoch(self.runner.epoch)}  ' if text.startswith('Epoch') else ''
        return f'{when}evaluated: {figures or "nothing was found"}'

    def _epoch(self, epoch: int) -> str:
        last = str(self.runner.max_epochs)
        return f'epoch {epoch:>{len(last)}}/{last}'


def evaluations_left(runner: Any) -> int:
    """Return how many evaluations are still to come, by the loop's present interval."""
    loop = runner.train_loop
    if runner.val_loop is None or isinstance(loop, IterBasedTrainLoop):
        return 0
    interval, end = loop.val_interval, runner.max_epochs
    first = max(runner.epoch + 1, loop.val_begin)
    return sum(epoch % interval == 0 or epoch == end for epoch in range(first, end + 1))


def _evaluation_seconds(runner: Any) -> float:
    """Return what the last evaluation took, as far as its iterations tell."""
    scalars = runner.message_hub.log_scalars
    if 'val/time' not in scalars:
        return 0.0
    batches = len(runner.val_dataloader)
    return scalars['val/time'].mean(batches) * batches


def _evaluating(text: str) -> str | None:
    place, eta = PLACE.search(text), ETA.search(text)
    if place is None:
        return None
    left = f'  left {eta[1]}' if eta else ''
    return f'evaluating  {place[1]:>{len(place[2])}}/{place[2]}{left}'


def _short_name(metric: str) -> str:
    return metric.rpartition('/')[2].replace('bbox_mAP', 'AP')
