"""Interleaved speed measurements, reported with the machine and the versions."""

from .evaluators import time_evaluators
from .suites import SUITES, run_suite
from .timing import median_and_quartiles, time_interleaved

__all__ = [
    'SUITES',
    'time_evaluators',
    'median_and_quartiles',
    'run_suite',
    'time_interleaved',
]
