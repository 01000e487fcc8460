"""Write checkpoints atomically and with the full training state."""

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
GRADIENTS = 'gradients'  # key of the checkpoint


class AtomicBackend(LocalBackend):
    """mmengine's backend for local files, with atomic writes and delayed removal.

    mmengine's CheckpointHook removes the old checkpoint before it writes the new one. This backend
    keeps a removed file until the next file has been written.

    Args:
        outdated: Files to remove after the next write. mmengine creates a backend for each call, so
            all backends share this list.
    """

    def __init__(self, outdated: list[str]) -> None:
        self.outdated = outdated

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write the file atomically, then remove the outdated files."""
        write_atomically(filepath, obj)
        while self.outdated:
            path = self.outdated.pop()
            if Path(path) != Path(filepath):
                with suppress(FileNotFoundError):
                    super().remove(path)

    def remove(self, filepath: str | Path) -> None:
        """Mark a file for removal after the next write."""
        self.outdated.append(str(filepath))


register_backend(ATOMIC, AtomicBackend, force=True)  # the module can be imported twice


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook with atomic writes, so that a run always has an intact checkpoint.

    - A checkpoint is written to a temporary file and then renamed. An old checkpoint is removed
      only after the new one exists.
    - Accumulated gradients are saved, averaged over the processes. A checkpoint can therefore be
      saved between two optimizer steps.
    - Buffers, such as BatchNorm statistics, are copied from the first process to all others before
      a checkpoint is saved and before each evaluation.

    The arguments are the same as in mmengine's hook.
    """

    _resumed_gradients: dict[str, Tensor] = {}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Keep the gradients of a resumed checkpoint until the training starts."""
        gradients = checkpoint.pop(GRADIENTS, {})
        if resumed_from(runner):
            self._resumed_gradients = gradients

    def before_train(self, runner: Any) -> None:
        """Select the atomic backend for a local disk and restore the gradients."""
        if self.backend_args is None and '://' not in str(self.out_dir or runner.work_dir):
            self.backend_args = {'backend': ATOMIC, 'outdated': []}
        with file_only(runner.logger, errors=True):  # hides mmengine's warnings about its own calls
            super().before_train(runner)
        parameters = dict(unwrap(runner.model).named_parameters())
        for name, gradient in self._resumed_gradients.items():
            parameters[name].grad = gradient.to(parameters[name].device)
        self._resumed_gradients = {}

    def before_val_epoch(self, runner: Any) -> None:
        """Synchronise the buffers of all processes before the evaluation."""
        share_buffers(unwrap(runner.model))

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the accumulated gradients to the checkpoint."""
        gradients = gradients_in_flight(runner)
        if gradients and 'optimizer' in checkpoint:
            checkpoint[GRADIENTS] = {name: x.cpu() for name, x in gradients.items()}

    def after_train_epoch(self, runner: Any) -> None:
        """Save a checkpoint if the interval is in epochs."""
        due = self.every_n_epochs(runner, self.interval, self.save_begin)
        if self.by_epoch and (due or self.save_last and self.is_last_train_epoch(runner)):
            share_state(runner)
        with file_only(runner.logger):
            super().after_train_epoch(runner)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save a checkpoint if the interval is in iterations."""
        due = self.every_n_train_iters(runner, self.interval, self.save_begin)
        if not self.by_epoch and (due or self.save_last and self.is_last_train_iter(runner)):
            share_state(runner)
        with file_only(runner.logger):
            super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any]) -> None:
        """Save the best checkpoint, and record it in the last checkpoint."""
        share_state(runner)
        with file_only(runner.logger):
            super().after_val_epoch(runner, metrics)


def gradients_in_flight(runner: Any) -> dict[str, Tensor]:
    """Return the gradients accumulated since the last optimizer step, by parameter name."""
    wrapper = runner.optim_wrapper
    if not isinstance(wrapper, OptimWrapper) or wrapper.should_update():
        return {}
    parameters = unwrap(runner.model).named_parameters()
    return {name: p.grad for name, p in parameters if p.grad is not None}


def share_state(runner: Any) -> None:
    """Synchronise the buffers and the accumulated gradients of all processes.

    The gradients are averaged over the processes. The optimizer step would average them later, so
    this does not change the result. The current run and a run that resumes from the checkpoint
    then give bitwise equal results.
    """
    share_buffers(unwrap(runner.model))
    for gradient in gradients_in_flight(runner).values():
        all_reduce(gradient, 'mean')


def share_buffers(model: nn.Module) -> None:
    """Copy the buffers of the first process to all others, as DDP does before each forward."""
    if is_distributed():
        for buffer in model.buffers():
            broadcast(buffer)
