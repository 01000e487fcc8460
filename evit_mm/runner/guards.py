"""A loss that is not finite: caught before it reaches the weights, named, and kept to look at."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..utils.files import write_atomically

NON_FINITE_POLICIES = ('stop', 'skip')
FOLDER = 'non_finite'


class NonFiniteLossError(Exception):
    """A loss term is NaN or infinite; raised before anything is propagated back.

    Args:
        terms: The terms of this process by name, empty where only another process has one.
    """

    def __init__(self, terms: Mapping[str, float]) -> None:
        self.terms = dict(terms)
        super().__init__(', '.join(terms))


def watch_losses(model: nn.Module) -> None:
    """Let a model of mmengine raise :class:`NonFiniteLossError` in place of returning one.

    All processes raise it where one has reason to, so that none waits for another's gradients.
    """
    parse_losses = getattr(model, 'parse_losses', None)
    if parse_losses is None:
        return

    def watched(losses: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        total, terms = parse_losses(losses)
        finite = torch.isfinite(total.detach()).all().float()
        all_reduce(finite, 'min')
        if not finite:
            values = {name: float(torch.as_tensor(term).detach()) for name, term in terms.items()}
            raise NonFiniteLossError(
                {name: x for name, x in values.items() if not torch.isfinite(torch.tensor(x))}
            )
        return total, terms

    model.parse_losses = watched


def non_finite_weights(model: nn.Module) -> list[str]:
    """Return the names of the parameters and buffers that hold a NaN or an infinity."""
    return [name for name, x in model.state_dict().items() if not torch.isfinite(x).all()]


def image_names(batch: Any) -> list[str]:
    """Return path and id of each image of a batch, as far as they are known."""
    names = []
    for sample in _samples(batch):
        path, image_id = sample.get('img_path'), sample.get('img_id')
        number = '' if image_id is None else f' (id {image_id})'
        names.append(f"'{path or 'unknown image'}'{number}")
    return names


def save_batch(path: Path, batch: Any, **about: Any) -> None:
    """Save a batch as plain values and tensors, which ``torch.load`` reads weights-only.

    Args:
        path: File to write.
        batch: What the data loader gave: ``inputs`` and ``data_samples``.
        **about: Further plain values.
    """
    buffer = io.BytesIO()
    torch.save({**about, **_plain(batch)}, buffer)
    write_atomically(path, buffer.getvalue())


def _samples(batch: Any) -> Sequence[BaseDataElement]:
    samples = batch.get('data_samples', ()) if isinstance(batch, Mapping) else ()
    return [sample for sample in samples if isinstance(sample, BaseDataElement)]


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
    if hasattr(value, 'tolist') and not torch.is_tensor(value):
        return value.tolist()
    if torch.is_tensor(value):
        return value.detach().cpu()
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
