"""Training loop with exact resuming and a report of replaced images."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop

from ..errors import ConfigError, DataError
from .loader import CORRUPT_POLICIES, REPLACED, exact_loader
from .seeding import MODEL, derive_seed, seed_generators

PLACE = 'evit_mm_place'  # key of the message hub, which is saved in checkpoints
NAMED = 10  # maximum number of images in the summary


@LOOPS.register_module()
class ExactTrainLoop(EpochBasedTrainLoop):
    """mmengine's epoch-based training loop with exact resuming, also within an epoch.

    A run that resumes within an epoch continues with the next batch of this epoch. It does not
    decode the earlier images again. The seeds of all random numbers depend on the position in the
    training, see :mod:`~evit_mm.runner.seeding`. An interrupted evaluation is repeated.

    Args:
        runner: The runner.
        *args: Arguments of mmengine's loop.
        corrupt_images: Policy for unreadable images. ``'raise'`` stops the training, and
            ``'replace'`` uses another image.
        **kwargs: Arguments of mmengine's loop.

    Raises:
        ConfigError: The policy is unknown.
    """

    def __init__(
        self, runner: Any, *args: Any, corrupt_images: str = 'raise', **kwargs: Any
    ) -> None:
        if corrupt_images not in CORRUPT_POLICIES:
            policies = ', '.join(CORRUPT_POLICIES)
            raise ConfigError(
                f"train_cfg.corrupt_images must be one of {policies}, got '{corrupt_images}'"
            )
        super().__init__(runner, *args, **kwargs)
        self.dataloader = exact_loader(self.dataloader, runner.seed, corrupt_images)
        self.corrupt_images = corrupt_images
        self.place: dict[str, Any] = {}

    def run(self) -> torch.nn.Module:
        """Train from the start or from the position of the resumed checkpoint."""
        self.place = self.runner.message_hub.runtime_info.get(PLACE, {})
        self.runner.message_hub.update_info(PLACE, self.place)
        self.runner.call_hook('before_train')
        done, last = self._epoch, self._max_epochs
        if done >= last:
            self.runner.logger.warning(
                f'nothing to train: the checkpoint is from epoch {done}, and '
                f'train_cfg.max_epochs is {last}; set it above {done} to continue'
            )
        if self._batches_done() == 0 and done <= last:
            self._evaluate()  # if the last run was interrupted before its evaluation
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._evaluate()
        self.runner.call_hook('after_train')
        self._summarise()
        return self.runner.model

    def run_epoch(self) -> None:
        """Train one epoch, or the remaining batches of it."""
        done: int = self._batches_done()
        sampler: Any = self.dataloader.batch_sampler
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
        """Train on one batch."""
        if isinstance(data_batch, DataError):
            raise data_batch
        self._count_replaced(data_batch)
        self.runner.call_hook('before_train_iter', batch_idx=idx, data_batch=data_batch)
        seed_generators(derive_seed(self.runner.seed, MODEL, self._iter, self.runner.rank))
        outputs = self.runner.model.train_step(data_batch, optim_wrapper=self.runner.optim_wrapper)
        self.runner.call_hook(
            'after_train_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs
        )
        self._iter += 1

    def _batches_done(self) -> int:
        """Return the number of batches of the current epoch that an earlier run has processed."""
        if self.place.get('epoch') != self._epoch:
            return 0
        done = self._iter - self.place['first_iter']
        if done and self.place['batches'] != len(self.dataloader):
            raise ConfigError(
                f'the checkpoint is from the middle of an epoch of {self.place["batches"]} '
                f'batches, but this run has {len(self.dataloader)} batches per epoch; resume with '
                'the same data, batch size and number of processes, or resume from a checkpoint '
                'at the end of an epoch'
            )
        return done

    def _evaluate(self) -> None:
        """Evaluate if it is due, and record this in checkpoints that are saved meanwhile."""
        self._decide_current_val_interval()
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        evaluated = self.place.get('evaluated') == self._epoch
        if self.runner.val_loop is None or self._epoch < max(self.val_begin, 1):
            return
        if due and not evaluated:
            self.place['evaluated'] = self._epoch
            self.runner.val_loop.run()

    def _count_replaced(self, data_batch: Any) -> None:
        """Remove the errors of replaced images from a batch, log them and count them."""
        if self.corrupt_images != 'replace':
            return
        own = [line for text in data_batch.pop(REPLACED) for line in text.splitlines()]
        counts = self.place.setdefault('replaced', {})
        for line in itertools.chain(*all_gather_object(own)):
            self.runner.logger.warning(f'sample replaced: {line}')
            counts[line] = counts.get(line, 0) + 1

    def _summarise(self) -> None:
        counts = Counter(self.place.get('replaced'))
        if counts:
            worst = counts.most_common(NAMED)
            named = '\n  '.join(f'{number} times: {line}' for line, number in worst)
            self.runner.logger.warning(
                f'{counts.total()} samples were replaced because {len(counts)} images '
                f'cannot be read; the most frequent:\n  {named}'
            )
