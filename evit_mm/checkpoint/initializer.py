"""Pretrained weights as one of mmengine's initializers."""

from __future__ import annotations

from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from ..models.pretrained import INITIALIZER
from .fitting import load_pretrained


@WEIGHT_INITIALIZERS.register_module(name=INITIALIZER)
class CheckedPretrained:
    """mmengine's ``Pretrained`` for files that must fit, entry by entry.

    mmengine's own loads what happens to match and only warns about the rest. The networks of
    :mod:`evit_mm.models` use this one for ``init_cfg=dict(type='Pretrained', ...)``; any other
    module takes it by its name.

    Args:
        checkpoint: As in :func:`~evit_mm.checkpoint.read_checkpoint`.
        prefix: As in :func:`~evit_mm.checkpoint.extract_state_dict`.
    """

    def __init__(self, checkpoint: str, prefix: str | None = None) -> None:
        self.checkpoint, self.prefix = checkpoint, prefix

    def __call__(self, module: nn.Module) -> None:
        """Load the weights into a module, in place.

        Raises:
            evit_mm.errors.CheckpointError: The file cannot be read or does not fit.
        """
        load_pretrained(module, self.checkpoint, self.prefix)
