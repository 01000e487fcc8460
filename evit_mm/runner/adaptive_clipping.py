"""Optimizer wrappers with adaptive gradient clipping. Configs import it by ``custom_imports``."""

from __future__ import annotations

from typing import Any

from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from timm.utils.agc import adaptive_clip_grad


class _AdaptiveClipping:
    """Clip gradients with timm's function."""

    optimizer: Any

    def __init__(self, clip_factor: float = 0.02, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # mmengine calls the method below only if this dict is not empty
        self.clip_grad_kwargs = {'clip_factor': clip_factor}

    def _clip_grad(self) -> None:
        for group in self.optimizer.param_groups:
            adaptive_clip_grad(group['params'], **self.clip_grad_kwargs)


@OPTIM_WRAPPERS.register_module()
class AGCOptimWrapper(_AdaptiveClipping, OptimWrapper):
    """mmengine's OptimWrapper with adaptive gradient clipping (arXiv 2102.06171).

    The gradient norm of each output unit is limited to ``clip_factor`` times the weight norm of the
    unit. Weight norms below 1e-3 count as 1e-3. The gradients of the classifier are also clipped,
    as in the training code of the authors.

    Args:
        clip_factor: Maximum ratio of the gradient norm of a unit to its weight norm.
        **kwargs: Arguments of mmengine's wrapper, except ``clip_grad``.
    """


@OPTIM_WRAPPERS.register_module()
class AmpAGCOptimWrapper(_AdaptiveClipping, AmpOptimWrapper):
    """:class:`AGCOptimWrapper` for mixed precision. Gradients are unscaled before clipping."""
