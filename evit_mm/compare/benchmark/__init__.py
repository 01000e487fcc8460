"""Speed: what it is, measured side by side in one run, and written down with its circumstances."""

from .evaluators import time_evaluators
from .suites import SUITES, Suite, run
from .timing import median_and_quartiles, time_interleaved

__all__ = [
    'SUITES',
    'Suite',
    'time_evaluators',
    'median_and_quartiles',
    'run',
    'time_interleaved',
]
