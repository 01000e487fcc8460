"""A loss that is not finite: caught before it reaches the weights, named, and kept to look at."""

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
SKIPPED = 'evit_mm_skipped_batches'  # key of the message hub, and so of a checkpoint


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Catch a loss that is NaN or infinite before it reaches the weights; name it and its images.

    The batch is saved under ``work_dir/non_finite``. It looks at the losses that the model's
    forward returns, so it works with any loop of mmengine's.

    Args:
        policy: ``'stop'``, or ``'skip'`` the batch: its gradient, and what has been accumulated
            with it, is dropped, while the iteration counts.

    Raises:
        ConfigError: The policy does not exist.
    """

    priority = 'HIGHEST'  # before RuntimeInfoHook takes the outputs for the log

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
        """Look at what the model returns, and stand before the optimizer's step."""
        self.runner, self.skips = runner, False
        optimizer = runner.optim_wrapper.optimizer
        self.handles = [
            unwrap(runner.model).register_forward_hook(self._check, with_kwargs=True),
            optimizer.register_step_pre_hook(self._before_step),
        ]

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the batch at hand."""
        self.batch, self.skips = data_batch, False

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Drop what a skipped batch was accumulated with; it has nothing to log."""
        self.batch = None
        if not self.skips:
            self.skipped_in_a_row = 0
            return
        runner.optim_wrapper.zero_grad()
        outputs.clear()

    def after_train(self, runner: Any) -> None:
        """Say how many batches were skipped."""
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
        """Look at the losses; return others in their place where the batch is skipped.

        All processes act alike, so that none waits for another's gradients.
        """
        if kwargs.get('mode') != 'loss' or not isinstance(losses, Mapping):
            return None
        with torch.no_grad():  # train_step parses them once more, for the gradient
            total, terms = model.parse_losses(losses)
        finite = torch.isfinite(total).all().float()
        all_reduce(finite, 'min')
        if finite:
            return None
        self._handle({name: float(torch.as_tensor(x)) for name, x in terms.items()})
        self.skips = True
        # reaches every weight, as gradients do that several processes share
        return {'loss': 0.0 * sum(p.sum() for p in model.parameters() if p.requires_grad)}

    def _before_step(self, optimizer: torch.optim.Optimizer, *args: Any) -> None:
        if self.skips:
            optimizer.zero_grad(set_to_none=True)  # what has no gradient stays as it is

    def _handle(self, terms: Mapping[str, float]) -> None:
        """Keep the batch and stop the run, or count the batch as skipped."""
        runner = self.runner
        what = self._keep({k: v for k, v in terms.items() if not math.isfinite(v)})
        self.skipped_in_a_row += 1
        if self.policy == 'stop' or self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            many = f' ({self.skipped_in_a_row} batches in a row)' * (self.skipped_in_a_row > 1)
            raise EvitError(
                f'{what}{many}. Check its boxes, reduce the learning rate or set '
                'optim_wrapper.clip_grad; to skip such batches, use --cfg-options '
                'default_hooks.non_finite_loss.policy=skip'
            )
        runner.logger.warning(f'{what}; the batch is skipped')
        hub = runner.message_hub
        hub.update_info(SKIPPED, hub.runtime_info.get(SKIPPED, 0) + 1)

    def _keep(self, terms: Mapping[str, float]) -> str:
        """Save the batch of a loss that is not finite, and say what has happened where.

        The file has plain values and tensors, which ``torch.load`` reads weights-only.
        """
        runner = self.runner
        number = runner.iter + 1
        where = f'became NaN or infinite in iteration {number}'
        if not terms:
            return f'the loss of another process {where}'
        named = {k: v for k, v in terms.items() if k != 'loss'} or terms  # not the sum
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
    """Turn mmengine's and mmdet's structures into dicts of tensors and plain values."""
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
