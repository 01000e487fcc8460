"""Detection heads for mmdet.

The package does not import this module, because it needs mmdet. Configs import it by name.
"""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.dense_heads import RetinaHead
from mmdet.registry import MODELS
from mmdet.utils import reduce_mean


@MODELS.register_module()
class SyncedRetinaHead(RetinaHead):
    """mmdet's RetinaHead with a loss that does not depend on the number of processes.

    mmdet divides the loss of each process by the number of positive anchors in that process. This
    head averages the number over all processes. Therefore 2 processes with batch size 4 take the
    same training steps as 1 process with batch size 8. In a single process, both heads have
    the same loss. It takes the same arguments.
    """

    def get_targets(self, *args: Any, **kwargs: Any) -> tuple:
        """Return mmdet's targets, with ``avg_factor`` averaged over all processes."""
        *targets, avg_factor = super().get_targets(*args, **kwargs)
        device = targets[0][0].device
        total = torch.tensor(float(avg_factor), dtype=torch.float32, device=device)
        return (*targets, float(reduce_mean(total)))
