"""Checkpoints that are whole or not there, and the way back to the last good one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmengine.dist import all_reduce, broadcast, is_distributed, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..checkpoint import read_checkpoint
from ..errors import CheckpointError, EvitError
from ..utils.files import PARTIAL, write_atomically

POINTER = 'last_checkpoint'  # mmengine's name
ATOMIC = 'evit_mm.atomic'
GRADIENTS = 'gradients'  # key in a checkpoint


class AtomicBackend(LocalBackend):
    """mmengine's backend for local files, whose files are whole or not there."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes."""
        write_atomically(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text."""
        write_atomically(filepath, obj.encode(encoding))


register_backend(ATOMIC, AtomicBackend, force=True)  # a module may be imported again


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook that never leaves a run without a whole checkpoint.

    Files are written beside and moved into place; an old one goes only when the new one is there,
    the pointer to it included. Gradients that are being accumulated are kept, averaged over the
    processes, so that a checkpoint may be taken between two steps of the optimizer. Buffers, such
    as BatchNorm's statistics, are those of the first process on all, when a checkpoint is taken as
    when it is loaded. Arguments as mmengine's.
    """

    _gradients: Mapping[str, Tensor] = {}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Keep the gradients of a checkpoint that is resumed until the training begins."""
        gradients = checkpoint.pop(GRADIENTS, {})
        if runner._resume:
            self._gradients = gradients

    def before_train(self, runner: Any) -> None:
        """Choose the atomic backend for a local disk, and put gradients back."""
        folder = str(self.out_dir or runner.work_dir)
        if not (self.backend_args or self.file_client_args or '://' in folder):
            self.backend_args = {'backend': ATOMIC}
        super().before_train(runner)
        if is_main_process() and '://' not in self.out_dir:
            self._tidy(runner)
        parameters = dict(unwrap(runner.model).named_parameters())
        for name, gradient in self._gradients.items():
            parameters[name].grad = gradient.to(parameters[name].device)
        if self._gradients:
            runner.logger.info('the gradients accumulated since the last step are restored')
        self._gradients = {}

    def before_val_epoch(self, runner: Any) -> None:
        """Let all processes evaluate with the same statistics."""
        share_buffers(unwrap(runner.model))

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:  # noqa: ARG002
        """Put the gradients in."""
        if self._gradients:
            checkpoint[GRADIENTS] = {k: v.cpu() for k, v in self._gradients.items()}

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        share_buffers(unwrap(runner.model))
        outdated = self._outdated(runner, step)
        name = self.filename_tmpl.format(step)
        good, self.last_ckpt = self.last_ckpt, self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._gradients = gradients_in_flight(runner)
        with _full_disk(self.last_ckpt, good or runner._load_from):
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if is_main_process():
                pointer = Path(runner.work_dir, POINTER)
                write_atomically(pointer, str(self.last_ckpt).encode())
        self._gradients = {}
        if is_main_process():
            for path in outdated:
                self._remove(path)

    def _save_best_checkpoint(self, runner: Any, metrics: dict) -> None:
        if not self.save_best:
            return
        # mmengine removes the former best file before it writes the new one; hide it meanwhile
        single = len(self.key_indicators) == 1
        former = {'': self.best_ckpt_path} if single else dict(self.best_ckpt_path_dict)
        self._set_best(dict.fromkeys(former))
        with _full_disk('the best checkpoint', self.last_ckpt):
            super()._save_best_checkpoint(runner, metrics)
        found = {'': self.best_ckpt_path} if single else self.best_ckpt_path_dict
        found = {key: found.get(key) or former.get(key) for key in {**former, **found}}
        self._set_best(found)
        for path in set(former.values()) - set(found.values()):
            if path and is_main_process():
                self._remove(path)

    def _tidy(self, runner: Any) -> None:
        """Do what a killed run had no time for: remove what is half written, point at the last."""
        for left in Path(self.out_dir).glob(f'*.pth{PARTIAL}'):
            left.unlink()
        resumed = Path(runner._load_from) if runner._resume and runner._load_from else None
        if resumed is not None and resumed.parent.resolve() == Path(self.out_dir).resolve():
            write_atomically(Path(runner.work_dir, POINTER), str(resumed).encode())

    def _set_best(self, paths: dict[str, str | None]) -> None:
        if '' in paths:
            self.best_ckpt_path = paths['']
        else:
            self.best_ckpt_path_dict = dict(paths)

    def _outdated(self, runner: Any, step: int) -> list[str]:
        """Count a checkpoint among those to keep, and return the files that are then too many."""
        if self.max_keep_ckpts <= 0 or step in self.keep_ckpt_ids:
            return []
        kept = [*self.keep_ckpt_ids, step]
        gone, kept = kept[: -self.max_keep_ckpts], kept[-self.max_keep_ckpts :]
        self.keep_ckpt_ids.extend(kept)  # a deque of that length
        runner.message_hub.update_info('keep_ckpt_ids', kept)
        join = self.file_backend.join_path
        return [join(self.out_dir, self.filename_tmpl.format(old)) for old in gone]

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)


def gradients_in_flight(runner: Any) -> dict[str, Tensor]:
    """Return the gradients accumulated since the optimizer's last step, by parameter.

    In several processes, which all must ask, each one's become their average, here and now: a step
    averages over the processes what each has summed, so it makes no difference when that is done,
    and the run that goes on has the very bits of one that is resumed.
    """
    wrapper = runner.optim_wrapper
    if not isinstance(wrapper, OptimWrapper) or wrapper.should_update():
        return {}
    parameters = unwrap(runner.model).named_parameters()
    found = {name: p.grad for name, p in parameters if p.grad is not None}
    for gradient in found.values():
        all_reduce(gradient, 'mean')
    return found


def share_buffers(model: nn.Module) -> None:
    """Give all processes the first one's buffers, as torch's DDP does before each forward."""
    if is_distributed():
        for buffer in model.buffers():
            broadcast(buffer)


def find_last_good(work_dir: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the last whole checkpoint of a run and what it holds, None where it has none.

    It is the one that ``last_checkpoint`` names; where that cannot be read, the others are tried,
    newest first, and a warning names each that was passed over.

    Raises:
        CheckpointError: There are checkpoints, but none can be read.
    """
    folder = Path(work_dir)
    files = [f for kind in ('epoch', 'iter') for f in folder.glob(f'{kind}_*.pth')]
    files.sort(key=lambda file: (file.stat().st_mtime_ns, _number(file)), reverse=True)
    with suppress(OSError, UnicodeDecodeError):
        named = Path((folder / POINTER).read_text().strip())
        own = folder / named.name  # the pointer of a folder that was copied names the first one
        named = own if own.is_file() else named
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


@contextmanager
def _full_disk(wanted: Any, good: Any) -> Iterator[None]:
    """Say in one sentence what could not be written and what is still there."""
    try:
        yield
    except OSError as error:
        left = f"the last good checkpoint is '{good}'" if good else 'there is no earlier one'
        raise EvitError(
            f"'{wanted}' could not be written ({error.strerror or error}); {left}. Make room and "
            'go on with --resume'
        ) from error


def _number(file: Path) -> int:
    digits = file.stem.rpartition('_')[2]
    return int(digits) if digits.isdecimal() else -1


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside the wrapper that several processes need."""
    return model.module if is_model_wrapper(model) else model
