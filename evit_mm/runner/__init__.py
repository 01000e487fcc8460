"""Training that survives: exact resuming, safe checkpoints, and faults that are named."""

from ..utils.environment import check_environment

check_environment()  # before anything imports what may be broken
from .checkpoints import SafeCheckpointHook, find_last_good
from .faults import named_faults
from .loop import ExactTrainLoop
from .optimizers import FusedAdamW

__all__ = ['ExactTrainLoop', 'FusedAdamW', 'SafeCheckpointHook', 'find_last_good', 'named_faults']
