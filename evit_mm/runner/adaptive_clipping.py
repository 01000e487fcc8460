"""Adaptive gradient clipping for mmengine's optimizer wrappers; configs import this by name."""

from __future__ import annotations

from typing import Any

from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from timm.utils.agc import adaptive_clip_grad


class _AdaptiveClipping:
    """Clip with timm's function in place of one norm over all gradients."""

    optimizer: Any

    def __init__(self, clip_factor: float = 0.02, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # mmengine hands this to the method below, and skips clipping where it is empty
        self.clip_grad_kwargs = {'clip_factor': clip_factor}

    def _clip_grad(self) -> None:
        for group in self.optimizer.param_groups:
            adaptive_clip_grad(group['params'], **self.clip_grad_kwargs)


@OPTIM_WRAPPERS.register_module()
class AGCOptimWrapper(_AdaptiveClipping, OptimWrapper):
    """mmengine's OptimWrapper with adaptive gradient clipping (arXiv 2102.06171).

    The gradient of each output unit of each parameter is scaled down to at most ``clip_factor``
    times that unit's weight norm, itself taken as at least 1e-3. The classifier is clipped as
    well, as in the authors' training.

    Args:
        clip_factor: Largest ratio of a unit's gradient norm to its weight norm.
        **kwargs: mmengine's, ``clip_grad`` left out.
    """


@OPTIM_WRAPPERS.register_module()
class AmpAGCOptimWrapper(_AdaptiveClipping, AmpOptimWrapper):
    """:class:`AGCOptimWrapper` in mixed precision; gradients are unscaled before clipping."""
