"""Training and testing by a config: runner, loop and hooks, registered by name."""

from ..utils.environment import check_environment

check_environment()  # before anything imports what may be broken
from .build import CheckedRunner
from .checkpoints import SafeCheckpointHook
from .console import ConsoleLoggerHook
from .data_check import DataCheckHook
from .guards import NonFiniteLossHook
from .loop import ExactTrainLoop
from .optimizers import FusedAdamW
from .resuming import ResumedOptimizerHook
from .summary import BestMetricHook, SummaryHook
from .tracking import TrackingHook

__all__ = [
    'BestMetricHook',
    'CheckedRunner',
    'ConsoleLoggerHook',
    'DataCheckHook',
    'ExactTrainLoop',
    'FusedAdamW',
    'NonFiniteLossHook',
    'ResumedOptimizerHook',
    'SafeCheckpointHook',
    'SummaryHook',
    'TrackingHook',
]
