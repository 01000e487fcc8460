"""The training loop: resuming is exact, and nothing that is lost is lost silently."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop

from ..errors import ConfigError, EvitError
from .checkpoints import unwrap
from .data import CORRUPT_POLICIES, REPLACED, exact_loader
from .guards import (
    FOLDER,
    NON_FINITE_POLICIES,
    NonFiniteLossError,
    image_names,
    non_finite_weights,
    save_batch,
    watch_losses,
)
from .seeding import MODEL, derive_seed, seed_generators

PLACE = 'evit_mm_place'  # key of the message hub, and so of a checkpoint
MAX_SKIPPED_IN_A_ROW = 20
NAMED = 10  # images in a summary


@LOOPS.register_module()
class ExactTrainLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs, which can be resumed anywhere with nothing repeated or left out.

    A checkpoint taken within an epoch is resumed with that epoch's next batch, and what the run
    has seen already is not decoded again. Whatever is random is drawn under seeds that follow from
    the place, see :mod:`~evit_mm.runner.seeding`. An evaluation that was cut off is done again.

    Args:
        runner: The runner.
        dataloader: The training data.
        *args: mmengine's.
        non_finite_loss: What to do about a loss that is NaN or infinite: ``'stop'``, or ``'skip'``
            the batch: its gradient, and what has been accumulated with it, is dropped, while the
            iteration counts. Either way the batch is saved under ``work_dir/non_finite``.
        corrupt_images: What to do about an image that cannot be read: ``'raise'``, or
            ``'replace'`` it by another one.
        **kwargs: mmengine's.

    Raises:
        ConfigError: A policy does not exist.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        *args: Any,
        non_finite_loss: str = 'stop',
        corrupt_images: str = 'raise',
        **kwargs: Any,
    ) -> None:
        _check_policy('non_finite_loss', non_finite_loss, NON_FINITE_POLICIES)
        _check_policy('corrupt_images', corrupt_images, CORRUPT_POLICIES)
        super().__init__(runner, dataloader, *args, **kwargs)
        self.dataloader = exact_loader(self.dataloader, runner.seed, corrupt_images)
        self.non_finite_loss, self.corrupt_images = non_finite_loss, corrupt_images
        self.place: dict[str, Any] = {}
        self.skipped_in_a_row = 0

    def run(self) -> torch.nn.Module:
        """Train, from wherever the runner has been resumed."""
        self.place = self.runner.message_hub.runtime_info.get(PLACE, {})
        self.runner.message_hub.update_info(PLACE, self.place)
        watch_losses(unwrap(self.runner.model))
        self.runner.call_hook('before_train')
        if self._batches_done() == 0:
            self._evaluate()  # where the last run was cut off before it had
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._evaluate()
        self.runner.call_hook('after_train')
        self._summarise()
        return self.runner.model

    def run_epoch(self) -> None:
        """Train one epoch, or the rest of it."""
        done, sampler = self._batches_done(), self.dataloader.batch_sampler
        sampler.epoch, sampler.start = self._epoch, done
        self.place.update(
            epoch=self._epoch, first_iter=self._iter - done, batches=len(self.dataloader)
        )
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for idx, data_batch in enumerate(self.dataloader, done):
            self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Train on one batch.

        Raises:
            EvitError: The loss is not finite, and the policy is to stop.
        """
        self._count_replaced(data_batch)
        self.runner.call_hook('before_train_iter', batch_idx=idx, data_batch=data_batch)
        seed_generators(derive_seed(self.runner.seed, MODEL, self._iter, self.runner.rank))
        try:
            outputs = self.runner.model.train_step(
                data_batch, optim_wrapper=self.runner.optim_wrapper
            )
            self.skipped_in_a_row = 0
        except NonFiniteLossError as fault:
            outputs = self._handle(fault, data_batch)
        self.runner.call_hook(
            'after_train_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs
        )
        self._iter += 1

    def _batches_done(self) -> int:
        """Return how many batches of the current epoch an earlier run has seen."""
        batches = len(self.dataloader)
        if not self.place:  # mmengine's own checkpoint
            done = self._iter - self._epoch * batches
            return done if 0 <= done <= batches else 0
        if self.place['epoch'] != self._epoch:
            return 0
        done = self._iter - self.place['first_iter']
        if done and self.place['batches'] != batches:
            raise ConfigError(
                f'the checkpoint is from the middle of an epoch of {self.place["batches"]} '
                f'batches, and this run has {batches}; resume with the same data, batch size and '
                'number of processes, or from a checkpoint at the end of an epoch'
            )
        return done

    def _evaluate(self) -> None:
        """Evaluate where it is due and has not been done; a checkpoint taken meanwhile says so."""
        self._decide_current_val_interval()
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        evaluated = self.place.get('evaluated') == self._epoch
        if self.runner.val_loop is None or self._epoch < max(self.val_begin, 1):
            return
        if due and not evaluated:
            self.place['evaluated'] = self._epoch
            self.runner.val_loop.run()

    def _handle(self, fault: NonFiniteLossError, data_batch: Any) -> dict[str, Any]:
        """Stop the run, or skip the batch; return what a skipped iteration has to log."""
        what = self._keep(fault, data_batch)
        wrong = non_finite_weights(unwrap(self.runner.model))
        if wrong:
            raise EvitError(
                f'{what}. Not this batch is to blame: {len(wrong)} weights or statistics were not '
                f"finite before it, '{wrong[0]}' first; the update before it was too large. Train "
                'with a lower rate, a longer warm-up or optim_wrapper.clip_grad'
            )
        self.skipped_in_a_row += 1
        if self.non_finite_loss == 'stop' or self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            many = f' ({self.skipped_in_a_row} batches in a row)' * (self.skipped_in_a_row > 1)
            raise EvitError(
                f'{what}{many}. Look at its boxes; a lower rate or optim_wrapper.clip_grad may '
                'help; --cfg-options train_cfg.non_finite_loss=skip trains past such batches'
            )
        self.runner.logger.warning(f'{what}; it is skipped')
        self.place['skipped'] = self.place.get('skipped', 0) + 1
        wrapper = self.runner.optim_wrapper
        wrapper.zero_grad()
        wrapper._inner_count += 1  # as mmengine's backward does: steps keep their rhythm
        return {}

    def _keep(self, fault: NonFiniteLossError, data_batch: Any) -> str:
        """Save the batch of a loss that is not finite, and say what has happened where."""
        number = self._iter + 1
        where = f'became NaN or infinite in iteration {number}'
        if not fault.terms:
            return f'the loss of another process {where}'
        named = {k: v for k, v in fault.terms.items() if k != 'loss'} or fault.terms  # not the sum
        terms = ' and '.join(f'{name} ({value})' for name, value in named.items())
        file = Path(self.runner.work_dir, FOLDER, f'iter_{number}_rank_{self.runner.rank}.pth')
        save_batch(file, data_batch, losses=fault.terms, iteration=number)
        images = ', '.join(image_names(data_batch))
        return f"{terms} {where} on {images}; the batch is kept in '{file}'"

    def _count_replaced(self, data_batch: Any) -> None:
        """Take the names of replaced images out of a batch, and keep them."""
        if self.corrupt_images != 'replace':
            return
        own = [line for text in data_batch.pop(REPLACED) for line in text.splitlines()]
        counts = self.place.setdefault('replaced', {})
        for line in itertools.chain(*all_gather_object(own)):
            self.runner.logger.warning(f'another image is taken: {line}')
            counts[line] = counts.get(line, 0) + 1

    def _summarise(self) -> None:
        counts = self.place.get('replaced')
        if counts:
            worst = sorted(counts.items(), key=lambda item: -item[1])
            named = '\n  '.join(f'{n} times: {line}' for line, n in worst[:NAMED])
            more = f'\n  ... and {len(counts) - NAMED} more' if len(counts) > NAMED else ''
            self.runner.logger.warning(
                f'{sum(counts.values())} samples were replaced, because {len(counts)} images '
                f'cannot be read:\n  {named}{more}'
            )
        if self.place.get('skipped'):
            self.runner.logger.warning(
                f'{self.place["skipped"]} of {self._iter} batches were skipped, because their loss '
                f"was not finite; they are in '{Path(self.runner.work_dir, FOLDER)}'"
            )


def _check_policy(key: str, value: str, policies: tuple[str, ...]) -> None:
    if value not in policies:
        raise ConfigError(f"train_cfg.{key} must be one of {', '.join(policies)}, got '{value}'")
