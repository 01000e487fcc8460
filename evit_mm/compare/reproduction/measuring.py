"""A hook that measures how long the steps of a training take, and ends the training."""

from __future__ import annotations

import time
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...utils.files import write_json

WARMUP = 5  # iterations
SECONDS = 60.0


@HOOKS.register_module()
class MeasuringHook(Hook):
    """Time the first iterations for about a minute, write the result and end the training.

    Args:
        result: File to write.
    """

    priority = 'VERY_LOW'

    def __init__(self, result: str) -> None:
        self.result = result
        self.start, self.last = 0.0, -1

    def before_train_epoch(self, *_: Any, **__: Any) -> None:
        """Start the time, which starts again after the warm-up."""
        self.start = self._now()

    def after_train_iter(self, runner: Any, batch_idx: int, *_: Any, **__: Any) -> None:
        """Write the result after the last measured iteration, and end the process."""
        batches, done = len(runner.train_dataloader), batch_idx + 1
        warmup = min(WARMUP, batches // 2)
        if done == warmup:
            self.start = self._now()
        if done == min(2 * warmup + 1, batches):  # all processes stop at the same place
            agreed = [min(batches, done + round(SECONDS / max(self._step(done - warmup), 1e-3)))]
            broadcast_object_list(agreed)
            self.last = agreed[0]
        if done == self.last:
            images = len(runner.val_dataloader.dataset) / len(runner.train_dataloader.dataset)
            figures = {'steps': batches, 'evaluation': images * batches}
            if is_main_process():
                write_json(self.result, {'step': self._step(done - warmup), **figures})
            raise SystemExit(0)

    def _step(self, number: int) -> float:
        return (self._now() - self.start) / max(number, 1)

    @staticmethod
    def _now() -> float:
        if get_device() == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter()
