"""What the backbones of the comparison share, so that one recipe treats all of them alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .pretrained import load_checked, split_init_cfg


class Backbone(BaseModule):
    """Memory layout, frozen stages, BatchNorm kept in eval mode, and weights checked by name.

    A subclass builds its modules, defines :meth:`parts` and calls :meth:`freeze` last. It lays
    the images out first, by :meth:`to_layout` or in an
    :class:`~evit_mm.models.layers.ImageConvBN`.

    Args:
        channels_last: Compute in channels last, otherwise contiguous. A convolution puts its
            result into the layout of its input, so that the neck and the head follow. Only the
            maps change their layout, parameters stay contiguous.
        init_cfg: As everywhere in OpenMMLab.

    Attributes:
        channels_last: As given.
        memory_format: The layout of the maps that follows from it.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_eval: Every BatchNorm stays in eval mode while training.
        unused: Beginnings of the names in a published file that belong to parts which this
            backbone may have been built without, such as the classifier.
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
        """Return images ``(B, C, H, W)`` in the layout of the maps."""
        return x.contiguous(memory_format=self.memory_format)

    def parts(self) -> list[list[nn.Module]]:
        """Return the modules of the stem, then those of each stage that is built."""
        raise NotImplementedError

    def freeze(self, frozen_stages: int, norm_eval: bool) -> None:
        """Settle what will not be trained."""
        last = len(self.parts()) - 1
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= last:
            raise ValueError(
                f'frozen_stages must be an integer from -1 (nothing) to {last} (all stages that '
                f'out_indices needs), got {frozen_stages}'
            )
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        for module in self._frozen_modules():
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode; frozen stages, and with ``norm_eval`` every BatchNorm, stay in eval."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; ``Pretrained`` files are checked name by name."""
        if self.is_init or not self.init_cfg:
            super().init_weights()
            return
        init_cfg = self.init_cfg
        # mmengine's own Pretrained loads what happens to match and only warns about the rest
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
    """Return the indices as a tuple; they must be increasing and among those known."""
    indices = tuple(out_indices) if isinstance(out_indices, Sequence) else ()
    if not indices or not set(indices) <= set(known) or sorted(set(indices)) != list(indices):
        raise ValueError(
            f'out_indices must be an increasing sequence from {sorted(known)}, got {out_indices!r}'
        )
    return indices
