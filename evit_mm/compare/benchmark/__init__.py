"""Speed: what it is, measured side by side in one run, and written down with its circumstances."""

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
