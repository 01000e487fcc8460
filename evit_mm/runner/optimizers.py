"""Fused AdamW for mmengine's registry of optimizers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from mmengine.registry import OPTIMIZERS
from mmengine.utils import digit_version

FUSED_ON_CPU: bool = digit_version(torch.__version__) >= digit_version('2.4.0')


@OPTIMIZERS.register_module()
class FusedAdamW(torch.optim.AdamW):
    """torch's AdamW with the fused kernel if torch supports it. On the CPU, this needs torch 2.4.

    Args:
        params: Parameters or parameter groups.
        **kwargs: Arguments of torch's AdamW, except ``fused``.
    """

    def __init__(self, params: Iterable[Any], **kwargs: Any) -> None:
        groups = list(params)
        parameters = (
            groups if torch.is_tensor(groups[0]) else [p for g in groups for p in g['params']]
        )
        fused = FUSED_ON_CPU or all(parameter.is_cuda for parameter in parameters)
        super().__init__(groups, fused=fused, **kwargs)
