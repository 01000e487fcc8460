"""Reproduction of the paper's detection table on COCO 2017: checks, cost, trainings, evaluation."""

from .released import evaluate_released
from .settings import DEFAULT_CONFIGS, Settings
from .trainings import reproduce

__all__ = ['DEFAULT_CONFIGS', 'Settings', 'evaluate_released', 'reproduce']
