"""Base class of the backbones, which gives all of them the same training options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .pretrained import load_checked, split_init_cfg


class Backbone(BaseModule):
    """Base class with memory format, frozen stages, ``norm_eval`` and strict loading of weights.

    A subclass builds its modules in ``__init__``, calls :meth:`freeze` at the end of ``__init__``,
    and defines :meth:`parts`. Its ``forward`` first converts the images with :meth:`to_layout` or
    with an :class:`~evit_mm.models.layers.ImageConvBN`.

    Args:
        channels_last: Compute in channels-last instead of contiguous memory format. The neck and
            the head use the same format, because a convolution keeps the format of its input.
            Parameters are always contiguous.
        init_cfg: Initialisation config of OpenMMLab.

    Attributes:
        channels_last: The argument.
        memory_format: The memory format of the feature maps.
        frozen_stages: -1 freezes nothing, 0 freezes the stem, k also freezes the first k stages.
        norm_eval: Whether every BatchNorm stays in eval mode during training.
        unused: Name prefixes of optional parts, such as the classifier. A published checkpoint may
            contain them even if this backbone is built without them.
    """

    frozen_stages: int = -1
    norm_eval: bool = False
    unused: tuple[str, ...] = ()

    def __init__(
        self, channels_last: bool = True, init_cfg: dict | list[dict] | None = None
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.channels_last = channels_last
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def to_layout(self, x: Tensor) -> Tensor:
        """Return images ``(B, C, H, W)`` in the memory format of the feature maps."""
        return x.contiguous(memory_format=self.memory_format)

    def parts(self) -> list[list[nn.Module]]:
        """Return the modules of the stem, then the modules of each stage that is built."""
        raise NotImplementedError

    def freeze(self, frozen_stages: int, norm_eval: bool) -> None:
        """Freeze the first stages, and set ``norm_eval``."""
        last = len(self.parts()) - 1
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= last:
            raise ValueError(
                f'frozen_stages must be an integer from -1 (freeze nothing) to {last} (freeze all '
                f'stages that out_indices needs), got {frozen_stages!r}'
            )
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        for module in self._frozen_modules():
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Set the training mode.

        Frozen stages stay in eval mode. With ``norm_eval``, every BatchNorm stays in eval mode too.
        """
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Initialise the weights from ``init_cfg``. Every ``Pretrained`` entry must fit."""
        if self.is_init or not self.init_cfg:
            super().init_weights()
            return
        init_cfg = self.init_cfg
        # mmengine's Pretrained skips entries that do not match and only warns
        pretrained, self.init_cfg = split_init_cfg(init_cfg)
        try:
            super().init_weights()
        finally:
            self.init_cfg = init_cfg
        for cfg in pretrained:
            load_checked(self, cfg['checkpoint'], cfg.get('prefix'))

    def _frozen_modules(self) -> list[nn.Module]:
        return [module for part in self.parts()[: self.frozen_stages + 1] for module in part]


def check_out_indices(out_indices: Sequence[int], known: Sequence[int]) -> tuple[int, ...]:
    """Check that ``out_indices`` are known and increasing, and return them as a tuple."""
    indices = tuple(out_indices) if isinstance(out_indices, Sequence) else ()
    if not indices or not set(indices) <= set(known) or sorted(set(indices)) != list(indices):
        raise ValueError(
            f'out_indices must contain indices from {sorted(known)} in increasing order, '
            f'got {out_indices!r}'
        )
    return indices


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """Apply a block, and compute it again in the backward pass instead of keeping its maps."""

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _statistics_kept(block)

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Do not update the BatchNorm running statistics while a block is recomputed."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked.clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
