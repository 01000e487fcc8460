"""Training that survives: exact resuming, safe checkpoints, and faults that are named."""

from .checkpoints import SafeCheckpointHook, find_last_good
from .faults import named_faults
from .loop import ExactTrainLoop

__all__ = ['ExactTrainLoop', 'SafeCheckpointHook', 'find_last_good', 'named_faults']
