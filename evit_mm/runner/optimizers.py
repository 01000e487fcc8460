"""An optimizer that mmengine's registry does not have; configs name it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from mmengine.registry import OPTIMIZERS
from mmengine.utils import digit_version

FUSED_ON_CPU: bool = digit_version(torch.__version__) >= digit_version('2.4.0')


@OPTIMIZERS.register_module()
class FusedAdamW(torch.optim.AdamW):
    """torch's AdamW with one kernel for all parameters, where torch has it: on the CPU from 2.4 on.

    Args:
        params: Parameters, or groups of them.
        **kwargs: torch's, ``fused`` left out.
    """

    def __init__(self, params: Iterable[Any], **kwargs: Any) -> None:
        groups = list(params)
        parameters = (
            groups if torch.is_tensor(groups[0]) else [p for g in groups for p in g['params']]
        )
        fused = FUSED_ON_CPU or all(parameter.is_cuda for parameter in parameters)
        super().__init__(groups, fused=fused, **kwargs)
