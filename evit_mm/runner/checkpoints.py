"""Checkpoints that are whole or not there, and from which nothing is lost."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.dist import all_reduce, broadcast, is_distributed
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..utils.files import write_atomically
from .console import file_only
from .resuming import resumed_from
from .weights import unwrap

ATOMIC = 'evit_mm.atomic'
GRADIENTS = 'gradients'  # key in a checkpoint


class AtomicBackend(LocalBackend):
    """mmengine's backend for local files: they are whole or not there, and go when others come.

    mmengine's CheckpointHook removes an old checkpoint before it writes the new one. Here a file
    that is removed is there until the next one has been written.

    Args:
        outdated: Files that were removed since; mmengine makes a backend for each call, so all
            share one list.
    """

    def __init__(self, outdated: list[str]) -> None:
        self.outdated = outdated

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes, then remove what is outdated."""
        write_atomically(filepath, obj)
        while self.outdated:
            path = self.outdated.pop()
            if Path(path) != Path(filepath):
                with suppress(FileNotFoundError):
                    super().remove(path)

    def remove(self, filepath: str | Path) -> None:
        """Remove a file when the next one has been written."""
        self.outdated.append(str(filepath))


register_backend(ATOMIC, AtomicBackend, force=True)  # a module may be imported again


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook that never leaves a run without a whole checkpoint.

    Files are written beside and moved into place; an old one goes only when the new one is there.
    Gradients that are being accumulated are kept, averaged over the processes, so that a
    checkpoint may be taken between two steps of the optimizer. Buffers, such as BatchNorm's
    statistics, are those of the first process on all, when a checkpoint is taken as when it is
    loaded. Arguments as mmengine's.
    """

    _resumed_gradients: dict[str, Tensor] = {}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Keep the gradients of a checkpoint that is resumed until the training begins."""
        gradients = checkpoint.pop(GRADIENTS, {})
        if resumed_from(runner):
            self._resumed_gradients = gradients

    def before_train(self, runner: Any) -> None:
        """Choose the atomic backend for a local disk, and put gradients back."""
        if self.backend_args is None and '://' not in str(self.out_dir or runner.work_dir):
            self.backend_args = {'backend': ATOMIC, 'outdated': []}
        with file_only(runner.logger, errors=True):  # mmengine warns of its own calls
            super().before_train(runner)
        parameters = dict(unwrap(runner.model).named_parameters())
        for name, gradient in self._resumed_gradients.items():
            parameters[name].grad = gradient.to(parameters[name].device)
        self._resumed_gradients = {}

    def before_val_epoch(self, runner: Any) -> None:
        """Let all processes evaluate with the same statistics."""
        share_buffers(unwrap(runner.model))

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Put the gradients in."""
        gradients = gradients_in_flight(runner)
        if gradients and 'optimizer' in checkpoint:
            checkpoint[GRADIENTS] = {name: x.cpu() for name, x in gradients.items()}

    def after_train_epoch(self, runner: Any) -> None:
        """Save when it is due by epochs."""
        due = self.every_n_epochs(runner, self.interval, self.save_begin)
        if self.by_epoch and (due or self.save_last and self.is_last_train_epoch(runner)):
            share_state(runner)
        super().after_train_epoch(runner)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save when it is due by iterations."""
        due = self.every_n_train_iters(runner, self.interval, self.save_begin)
        if not self.by_epoch and (due or self.save_last and self.is_last_train_iter(runner)):
            share_state(runner)
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any]) -> None:
        """Save the best, and in the last checkpoint which one that is."""
        share_state(runner)
        super().after_val_epoch(runner, metrics)


def gradients_in_flight(runner: Any) -> dict[str, Tensor]:
    """Return the gradients accumulated since the optimizer's last step, by parameter."""
    wrapper = runner.optim_wrapper
    if not isinstance(wrapper, OptimWrapper) or wrapper.should_update():
        return {}
    parameters = unwrap(runner.model).named_parameters()
    return {name: p.grad for name, p in parameters if p.grad is not None}


def share_state(runner: Any) -> None:
    """Give all processes the buffers and the gradients that the first one saves.

    Each process's gradients become their average, here and now: a step averages over the processes
    what each has summed, so it makes no difference when that is done, and the run that goes on has
    the very bits of one that is resumed.
    """
    share_buffers(unwrap(runner.model))
    for gradient in gradients_in_flight(runner).values():
        all_reduce(gradient, 'mean')


def share_buffers(model: nn.Module) -> None:
    """Give all processes the first one's buffers, as torch's DDP does before each forward."""
    if is_distributed():
        for buffer in model.buffers():
            broadcast(buffer)
