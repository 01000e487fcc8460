"""Latency, side by side in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch


def time_interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int = 20, warmup: int = 3
) -> dict[str, list[float]]:
    """Time functions in turns, so that what slows the machine down slows all of them alike.

    Args:
        functions: What to call, by name.
        rounds: Timed calls of each.
        warmup: Calls of each before that.

    Returns:
        Seconds of each timed call, in order: the same place is the same round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for step in range(-warmup, rounds):
        for name, function in functions.items():
            _wait()
            start = time.perf_counter()
            function()
            _wait()
            if step >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_and_quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the median and the quartiles below and above it."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return float(middle), float(low), float(high)


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
