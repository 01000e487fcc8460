"""Latency, side by side: functions in turns, in this process or each in one of its own."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import TypeVar

import numpy as np
import torch
from rich.progress import track

from . import machine

Key = TypeVar('Key', bound=Hashable)
Call = Callable[[], object]
Build = Callable[[], Call]  # returns the call that is timed; can be pickled
CALLS_OF_A_PROCESS = 10


@dataclass(frozen=True)
class Setting:
    """How a suite is measured."""

    threads: int  # of the CPU
    rounds: int  # timed calls of each row
    device: str = 'cpu'  # where the networks are


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


def time_interleaved(
    functions: Mapping[Key, Call],
    rounds: int = 20,
    warmup: int = 3,
    limit: float = math.inf,
) -> dict[Key, list[float]]:
    """Time functions in turns, so that what slows the machine down slows all of them alike.

    The first call of each turn is not timed: it finds the caches and the heap as the function
    before left them, not as it would in a program of its own.

    Args:
        functions: What to call, by name.
        rounds: Timed calls of each.
        warmup: Calls of each before that.
        limit: Seconds after which no further round begins, once there has been one.

    Returns:
        Seconds of each timed call, in order: the same place is the same round.
    """
    turns = {name: partial(_turn, function) for name, function in functions.items()}
    return _take_turns(turns, rounds, warmup, limit)


def time_rows(timed: Sequence[tuple[Row, Call]], rounds: int, warmup: int = 1) -> list[Row]:
    """Time rows in turns in this process, and fill in their seconds."""
    calls = {place: call for place, (_, call) in enumerate(timed)}
    seconds = time_interleaved(calls, rounds, warmup)
    for place, (row, _) in enumerate(timed):
        row.seconds = seconds[place]
    return [row for row, _ in timed]


def time_in_processes(
    timed: Sequence[tuple[Row, Build]], rounds: int, warmup: int, threads: int
) -> list[Row]:
    """Time rows in turns, each in its own process; fill in their seconds or why there are none.

    Each has its own heap and its own threads, as in a program that does nothing else: memory that
    one has freed does not spare another the kernel's work. They are built one after the other and
    wait while others are timed. How the memory of a process happens to be laid out can make it
    faster or slower for its whole life, so new processes take over after
    :data:`CALLS_OF_A_PROCESS` calls.
    """
    able = list(timed)
    for start in range(0, rounds, CALLS_OF_A_PROCESS):
        processes = [
            _Process(build, threads) for _, build in track(able, 'preparing', transient=True)
        ]
        turns = {place: process.turn for place, process in enumerate(processes)}
        seconds = _take_turns(turns, min(CALLS_OF_A_PROCESS, rounds - start), warmup)
        for place, process in enumerate(processes):
            process.end()
            row, _ = able[place]
            row.seconds += seconds[place]
            if process.fault:
                row.seconds, row.note = [], process.fault
        able = [(row, build) for row, build in able if row.seconds]
    return [row for row, _ in timed]


def sentence(error: Exception) -> str:
    """Return an error in one line."""
    return f'{type(error).__name__}: {(str(error).strip().splitlines() or [""])[0][:160]}'


def median_and_quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and the quartiles below and above it."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return float(middle), float(low), float(high)


def ratio_of(row: Row, rows: Sequence[Row]) -> tuple[float, float, float] | None:
    """Return how many times faster than the row that it is held against: median and quartiles.

    Taken round by round, so that what slowed the machine down in a round slowed both.
    """
    other = next((r for r in rows if r.group == row.group and r.name == row.against), None)
    if other is None or not row.seconds or len(other.seconds) != len(row.seconds):
        return None
    return median_and_quartiles(np.divide(other.seconds, row.seconds).tolist())


def _take_turns(
    turns: Mapping[Key, Callable[[], float]], rounds: int, warmup: int, limit: float = math.inf
) -> dict[Key, list[float]]:
    seconds: dict[Key, list[float]] = {name: [] for name in turns}
    start = time.perf_counter()
    for step in track(range(-warmup, rounds), 'timing', transient=True):
        if step > 0 and time.perf_counter() - start > limit:
            break
        for name, turn in turns.items():
            value = turn()
            if step >= 0:
                seconds[name].append(value)
    return seconds


def _turn(function: Call) -> float:
    """Call twice and return the seconds of the second call."""
    function()
    _wait()
    start = time.perf_counter()
    function()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class _Process:
    """A function in a process of its own; ``fault`` is why it cannot be timed, empty if it can."""

    def __init__(self, build: Build, threads: int) -> None:
        context = multiprocessing.get_context('spawn')
        self.pipe, end = context.Pipe()
        # ends with this process, whatever becomes of it
        self.process = context.Process(target=_serve, args=(end, build, threads), daemon=True)
        self.process.start()
        end.close()
        try:
            self.fault = self.pipe.recv()
        except EOFError:
            self.fault = 'the process died'

    def turn(self) -> float:
        """Return the seconds of a turn, NaN where there is a fault."""
        if not self.fault:
            try:
                self.pipe.send(True)
                return self.pipe.recv()
            except (EOFError, OSError):
                self.fault = 'the process died during the measurement'
        return math.nan

    def end(self) -> None:
        """End the process, which leaves where its pipe is closed."""
        self.pipe.close()
        self.process.join()


def _serve(pipe: Connection, build: Build, threads: int) -> None:
    torch.set_num_threads(threads)
    machine.allow_tf32(False)
    try:
        function = build()
        function()
    except Exception as error:  # a compiler or a runtime may fail in any way; the rest goes on
        pipe.send(sentence(error))
        return
    pipe.send('')
    try:
        while pipe.recv():
            pipe.send(_turn(function))
    except EOFError:  # nobody asks any more
        return
