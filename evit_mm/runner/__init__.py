"""Train and test from a config. Importing this package registers the runner, loop and hooks."""

from ..utils.environment import check_environment

check_environment()  # before the imports below fail in a broken environment
from .build import CheckedRunner
from .checkpoints import SafeCheckpointHook
from .console import ConsoleLoggerHook
from .data_check import DataCheckHook
from .early_stopping import ResumedEarlyStoppingHook
from .guards import NonFiniteLossHook
from .loop import ExactTrainLoop
from .optimizers import FusedAdamW
from .pictures import PictureHook
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
    'PictureHook',
    'ResumedEarlyStoppingHook',
    'ResumedOptimizerHook',
    'SafeCheckpointHook',
    'SummaryHook',
    'TrackingHook',
]
