"""Rows of a table: what is timed and what it is held against, declared first and filled then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .timing import (
    Build,
    Call,
    build_all,
    median_and_quartiles,
    time_in_processes,
    time_interleaved,
)


@dataclass(frozen=True)
class Setting:
    """How a suite is measured.

    Attributes:
        threads: CPU threads.
        rounds: Timed calls of each row.
        device: Where the networks are, ``'cpu'``, ``'cuda'``, ...
    """

    threads: int
    rounds: int
    device: str = 'cpu'


@dataclass
class Row:
    """One thing that is timed.

    Attributes:
        group: What it is compared within.
        name: The thing.
        seconds: Every timed call; empty before, and where it was not run.
        work: Floating point operations (a multiply-add is two) or images of one call, None where
            neither says anything.
        against: Name of the row in the group that its ratio is taken to.
        note: What else is to be known, or why it was not run.
    """

    group: str
    name: str
    seconds: list[float] = field(default_factory=list)
    work: float | None = None
    against: str | None = None
    note: str = ''


def time_rows(
    timed: Sequence[tuple[Row, Build]], rounds: int, warmup: int = 1, threads: int | None = None
) -> list[Row]:
    """Time rows in turns and fill in their seconds, or in their note why they cannot be timed.

    Args:
        timed: Each row with what builds its call.
        rounds: Timed calls of each.
        warmup: Calls of each before that.
        threads: Time each row in a process of its own with so many threads; None: in this one.
    """
    builds = {(row.group, row.name): build for row, build in timed}
    if threads is None:
        calls, faults = build_all(builds)
        seconds = time_interleaved(calls, rounds, warmup)
    else:
        seconds, faults = time_in_processes(builds, rounds, warmup, threads)
    rows = [row for row, _ in timed]
    for row in rows:
        row.seconds = seconds.get((row.group, row.name), [])
        row.note = faults.get((row.group, row.name), row.note)
    return rows


def ready(call: Call) -> Build:
    """Return a call as what is built already."""
    return lambda: call


def ratio_of(row: Row, rows: Sequence[Row]) -> tuple[float, float, float] | None:
    """Return how many times faster than the row that it is held against: median and quartiles.

    Taken round by round, so that what slowed the machine down in a round slowed both.
    """
    other = next((r for r in rows if r.group == row.group and r.name == row.against), None)
    if other is None or not row.seconds or len(other.seconds) != len(row.seconds):
        return None
    return median_and_quartiles(list(np.divide(other.seconds, row.seconds)))
