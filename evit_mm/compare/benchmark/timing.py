"""Interleaved latency measurements, in this process or with one process per function."""

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
Build = Callable[[], Call]  # returns the timed call; must be picklable
CALLS_OF_A_PROCESS = 10


@dataclass(frozen=True)
class Setting:
    """Settings of a measurement."""

    threads: int  # CPU threads
    rounds: int  # timed calls per row
    device: str = 'cpu'  # device of the networks


@dataclass
class Row:
    """One row of a suite: a timed call.

    Attributes:
        group: Group of rows that are compared.
        name: Name of the row in its group.
        seconds: Seconds of each timed call; empty before the measurement or if it failed.
        work: Floating-point operations or images per call, or None. A multiply-add counts as two
            operations.
        against: Name of the reference row in the group.
        note: Additional information, or the reason of a failure.
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
    """Time functions in interleaved rounds, so a slow phase of the machine affects all of them.

    Each round calls each function twice and times the second call. The first call restores the
    caches and the heap, which the previous function has changed.

    Args:
        functions: Functions by name.
        rounds: Number of timed rounds.
        warmup: Number of rounds before the timed rounds.
        limit: Seconds after which no new round starts. At least one round is timed.

    Returns:
        Seconds of each timed call by name. Equal indices belong to the same round.
    """
    turns = {name: partial(_turn, function) for name, function in functions.items()}
    return _take_turns(turns, rounds, warmup, limit)


def time_rows(timed: Sequence[tuple[Row, Call]], rounds: int, warmup: int = 1) -> list[Row]:
    """Time rows in interleaved rounds in this process, and set their seconds."""
    calls = {place: call for place, (_, call) in enumerate(timed)}
    seconds = time_interleaved(calls, rounds, warmup)
    for place, (row, _) in enumerate(timed):
        row.seconds = seconds[place]
    return [row for row, _ in timed]


def time_in_processes(
    timed: Sequence[tuple[Row, Build]], rounds: int, warmup: int, threads: int
) -> list[Row]:
    """Time rows in interleaved rounds, with one process per row; set their seconds or a note.

    Each row has its own heap and threads, as in a separate program. Memory that one row frees
    cannot make another row faster. The processes are started one after the other, and wait while
    others are timed. The memory layout of a process can make it faster or slower for its whole
    lifetime, so new processes are started after ``CALLS_OF_A_PROCESS`` calls.
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
    """Format an error as one line."""
    return f'{type(error).__name__}: {(str(error).strip().splitlines() or [""])[0][:160]}'


def median_and_quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, the lower quartile and the upper quartile."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return float(middle), float(low), float(high)


def ratio_of(row: Row, rows: Sequence[Row]) -> tuple[float, float, float] | None:
    """Return the speedup over the reference row: median and quartiles.

    The ratio is computed per round, because a slow phase of the machine affects both rows.
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
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def wait() -> None:
    """Wait until the GPU has finished, if one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class _Process:
    """A function in a separate process; ``fault`` states why it cannot be timed, or is empty."""

    def __init__(self, build: Build, threads: int) -> None:
        context = multiprocessing.get_context('spawn')
        self.pipe, end = context.Pipe()
        # a daemon ends together with this process
        self.process = context.Process(target=_serve, args=(end, build, threads), daemon=True)
        self.process.start()
        end.close()
        try:
            self.fault = self.pipe.recv()
        except EOFError:
            self.fault = 'the process died'

    def turn(self) -> float:
        """Return the seconds of one timed call, or NaN after a fault."""
        if not self.fault:
            try:
                self.pipe.send(True)
                return self.pipe.recv()
            except (EOFError, OSError):
                self.fault = 'the process died during the measurement'
        return math.nan

    def end(self) -> None:
        """Close the pipe, which ends the process, and wait for it."""
        self.pipe.close()
        self.process.join()


def _serve(pipe: Connection, build: Build, threads: int) -> None:
    torch.set_num_threads(threads)
    machine.allow_tf32(False)
    try:
        function = build()
        function()
    except Exception as error:  # compilers and runtimes can raise anything; report it as a note
        pipe.send(sentence(error))
        return
    pipe.send('')
    try:
        while pipe.recv():
            pipe.send(_turn(function))
    except EOFError:  # the parent closed the pipe
        return
