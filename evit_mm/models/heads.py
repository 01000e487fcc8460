"""Detection heads on top of mmdet's; needs mmdet, so configs import it by name."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.dense_heads import RetinaHead
from mmdet.registry import MODELS
from mmdet.utils import reduce_mean


@MODELS.register_module()
class SyncedRetinaHead(RetinaHead):
    """mmdet's RetinaHead whose loss does not depend on how a batch is spread over processes.

    mmdet divides each process's loss by that process's positive anchors; here the number is
    averaged over all processes, so that 2 processes with batch 4 take the steps of one with batch
    8. In a single process the two heads are the same. Arguments as mmdet's.
    """

    def get_targets(self, *args: Any, **kwargs: Any) -> tuple:
        """Return mmdet's targets with ``avg_factor``, the last of them, averaged."""
        *targets, avg_factor = super().get_targets(*args, **kwargs)
        device = targets[0][0].device
        total = torch.tensor(float(avg_factor), dtype=torch.float32, device=device)
        return (*targets, float(reduce_mean(total)))
