"""Detect a non-finite loss before it changes the weights, and save its batch."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.structures import BaseDataElement

from ..errors import ConfigError, EvitError
from ..utils.files import write_atomically
from .weights import unwrap

POLICIES = ('stop', 'skip')
FOLDER = 'non_finite'
MAX_SKIPPED_IN_A_ROW = 20
SKIPPED = 'evit_mm_skipped_batches'  # key of the message hub, which is saved in checkpoints


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Stop the training or skip the batch if a loss is NaN or infinite.

    The check runs before the optimizer step. The message names the loss and the images, and the
    batch is saved in ``work_dir/non_finite``. The hook checks the losses that the forward of the
    model returns, so it works with any loop of mmengine.

    Args:
        policy: ``'stop'`` ends the training. ``'skip'`` discards the gradient of the batch and the
            gradients accumulated with it, and continues with the next iteration.

    Raises:
        ConfigError: The policy is unknown.
    """

    priority = 'HIGHEST'  # before RuntimeInfoHook logs the outputs

    def __init__(self, policy: str = 'stop') -> None:
        if policy not in POLICIES:
            raise ConfigError(
                f"NonFiniteLossHook: policy must be one of {', '.join(POLICIES)}, got '{policy}'"
            )
        self.policy = policy
        self.skips, self.skipped_in_a_row = False, 0
        self.runner: Any = None
        self.batch: Any = None
        self.handles: list[Any] = []

    def before_train(self, runner: Any) -> None:
        """Register hooks on the forward of the model and on the optimizer step."""
        self.runner, self.skips = runner, False
        optimizer = runner.optim_wrapper.optimizer
        self.handles = [
            unwrap(runner.model).register_forward_hook(self._check, with_kwargs=True),
            optimizer.register_step_pre_hook(self._before_step),
        ]

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Store the current batch."""
        self.batch, self.skips = data_batch, False

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Discard the accumulated gradients and the log values of a skipped batch."""
        self.batch = None
        if not self.skips:
            self.skipped_in_a_row = 0
            return
        runner.optim_wrapper.zero_grad()
        outputs.clear()

    def after_train(self, runner: Any) -> None:
        """Log the number of skipped batches."""
        for handle in self.handles:
            handle.remove()
        self.runner, self.handles = None, []
        skipped = runner.message_hub.runtime_info.get(SKIPPED)
        if skipped:
            runner.logger.warning(
                f'{skipped} of {runner.iter} batches were skipped because their loss was not '
                f"finite; they are saved in '{Path(runner.work_dir, FOLDER)}'"
            )

    def _check(self, model: Any, args: Any, kwargs: Mapping, losses: Any) -> Any:
        """Check the losses, and return a zero loss if the batch is skipped.

        All processes decide together, so that no process waits for the gradients of another.
        """
        if kwargs.get('mode') != 'loss' or not isinstance(losses, Mapping):
            return None
        with torch.no_grad():  # train_step parses the losses again to compute the gradient
            total, terms = model.parse_losses(losses)
        finite = torch.isfinite(total).all().float()
        all_reduce(finite, 'min')
        if finite:
            return None
        self._handle({name: float(torch.as_tensor(x)) for name, x in terms.items()})
        self.skips = True
        # depends on every trainable weight, because DDP expects a gradient for each of them
        return {'loss': 0.0 * sum(p.sum() for p in model.parameters() if p.requires_grad)}

    def _before_step(self, optimizer: torch.optim.Optimizer, *args: Any) -> None:
        if self.skips:
            optimizer.zero_grad(set_to_none=True)  # parameters without a gradient do not change

    def _handle(self, terms: Mapping[str, float]) -> None:
        """Save the batch, then stop the run or count the batch as skipped."""
        runner = self.runner
        what = self._keep({k: v for k, v in terms.items() if not math.isfinite(v)})
        self.skipped_in_a_row += 1
        if self.policy == 'stop' or self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            many = f' ({self.skipped_in_a_row} batches in a row)' * (self.skipped_in_a_row > 1)
            raise EvitError(
                f'{what}{many}. Check the boxes of this batch, reduce the learning rate or set '
                'optim_wrapper.clip_grad; to skip the batch, use --cfg-options '
                'default_hooks.non_finite_loss.policy=skip'
            )
        runner.logger.warning(f'{what}; the batch is skipped')
        hub = runner.message_hub
        hub.update_info(SKIPPED, hub.runtime_info.get(SKIPPED, 0) + 1)

    def _keep(self, terms: Mapping[str, float]) -> str:
        """Save the batch with the non-finite loss and return the message.

        The file contains plain values and tensors, so that ``torch.load`` can read it with
        ``weights_only=True``.
        """
        runner = self.runner
        number = runner.iter + 1
        where = f'became NaN or infinite in iteration {number}'
        if not terms:
            return f'the loss of another process {where}'
        named = {k: v for k, v in terms.items() if k != 'loss'} or terms  # without the sum
        said = ' and '.join(f'{name} ({value})' for name, value in named.items())
        file = Path(runner.work_dir, FOLDER, f'iter_{number}_rank_{runner.rank}.pth')
        buffer = io.BytesIO()
        torch.save({'losses': terms, 'iteration': number, **_plain(self.batch)}, buffer)
        write_atomically(file, buffer.getvalue())
        images = ', '.join(_image_name(sample) for sample in self.batch['data_samples'])
        return f"{said} {where} on {images}; the batch is saved in '{file}'"


def _image_name(sample: Any) -> str:
    image_id = getattr(sample, 'img_id', None)
    number = '' if image_id is None else f' (id {image_id})'
    return f"'{getattr(sample, 'img_path', 'unknown image')}'{number}"


def _plain(value: Any) -> Any:
    """Convert the structures of mmengine and mmdet to dicts of tensors and plain values."""
    if isinstance(value, BaseDataElement):
        return {name: _plain(x) for name, x in value.all_items()}
    if isinstance(value, Mapping):
        return {str(name): _plain(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(x) for x in value]
    if hasattr(value, 'to_tensor'):  # masks
        return value.to_tensor(torch.uint8, 'cpu')
    value = getattr(value, 'tensor', value)  # boxes
    if torch.is_tensor(value):
        return value.detach().cpu()
    if hasattr(value, 'tolist'):
        return value.tolist()
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
