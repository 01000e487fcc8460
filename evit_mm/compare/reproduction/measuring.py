"""Measure how long the steps of a training take, in a process that is discarded afterwards.

This is a program: ``python -m evit_mm.compare.reproduction.measuring CONFIG WORK_DIR RESULT``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook

from ...runner.train import train
from ...utils.cli import add_device, add_launcher, parse_with_rank, run_tool
from ...utils.files import write_json
from .settings import SEED

WARMUP = 5  # iterations
TRAINING_SECONDS = 45.0
EVALUATION_SECONDS = 15.0


class MeasuringHook(Hook):
    """Time iterations and evaluated images, write the result and end the process.

    The detector is hardly trained, so it finds few boxes and a later evaluation takes longer.
    """

    priority = 'VERY_LOW'

    def __init__(self, result: Path) -> None:
        self.result = result
        self.start, self.last = 0.0, -1

    def before_train_epoch(self, *_: Any, **__: Any) -> None:
        """Start the time, which starts again after the warm-up."""
        self.start = self._now()

    def after_train_iter(self, runner: Any, batch_idx: int, *_: Any, **__: Any) -> None:
        """Measure in the first epoch, for about a minute."""
        batches = len(runner.train_dataloader)
        warmup = min(WARMUP, batches // 2)
        if batch_idx + 1 == warmup:
            self.start = self._now()
        if batch_idx + 1 == min(2 * warmup + 1, batches):  # all processes stop at the same place
            step = (self._now() - self.start) / max(batch_idx + 1 - warmup, 1)
            agreed = [min(batches, batch_idx + 1 + round(TRAINING_SECONDS / max(step, 1e-3)))]
            broadcast_object_list(agreed)
            self.last = agreed[0]
        if batch_idx + 1 == self.last:
            seconds = (self._now() - self.start) / max(self.last - warmup, 1)
            self._finish(runner, {'step': seconds, 'steps': batches})

    def _finish(self, runner: Any, found: dict[str, Any]) -> None:
        runner.model.eval()
        start, images = self._now(), 0
        with torch.no_grad():
            for batch in runner.val_dataloader:
                runner.model.val_step(batch)
                images += len(batch['inputs'])
                if self._now() - start > EVALUATION_SECONDS:
                    break
        found['image'] = (self._now() - start) / max(images, 1)
        found['images'] = len(runner.val_dataloader.dataset)
        if is_main_process():
            write_json(self.result, found)
        raise SystemExit(0)

    @staticmethod
    def _now() -> float:
        if get_device() == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    """Measure one training."""
    parser = argparse.ArgumentParser(description='Measure the steps of a training')
    for name in ('config', 'work_dir', 'result'):
        parser.add_argument(name)
    parser.add_argument('--auto-scale-lr', action='store_true')
    add_device(parser)
    add_launcher(parser)
    args = parse_with_rank(parser)
    hook = MeasuringHook(Path(args.result))
    train(
        args.config,
        args.work_dir,
        auto_scale_lr=args.auto_scale_lr,
        launcher=args.launcher,
        seed=SEED,
        device=args.device,
        hooks=[hook],
    )


if __name__ == '__main__':
    run_tool(main)
