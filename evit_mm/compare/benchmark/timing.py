"""Latency, side by side: functions in turns, in this process or each in one of its own."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from typing import TypeVar

import numpy as np
import torch
from rich.progress import track

from . import machine

Key = TypeVar('Key', bound=Hashable)
Call = Callable[[], object]
Build = Callable[[], Call]  # returns the call that is timed
CALLS_OF_A_PROCESS = 10
SENTENCE = 160  # characters


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
    return _take_turns(
        {name: partial(_turn, function) for name, function in functions.items()},
        rounds,
        warmup,
        limit,
    )


def time_in_processes(
    builds: Mapping[Key, Build],
    rounds: int = 20,
    warmup: int = 3,
    threads: int = 1,
) -> tuple[dict[Key, list[float]], dict[Key, str]]:
    """Time functions in turns, each in a process of its own.

    As :func:`time_interleaved`, but each function has its own heap and its own threads, as in a
    program that does nothing else: memory that one has freed does not spare another the kernel's
    work. They are built one after the other and wait while others are timed. How the memory
    of a process happens to be laid out can make it faster or slower for its whole life, so new
    processes take over after :data:`CALLS_OF_A_PROCESS` calls.

    Args:
        builds: What returns the function to call, by name; can be pickled.
        rounds: Timed calls of each.
        warmup: Calls of each before that.
        threads: Torch's threads in each process.

    Returns:
        Seconds as :func:`time_interleaved` has them, and for what could not be timed the reason.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in builds}
    faults: dict[Key, str] = {}
    for start in range(0, rounds, CALLS_OF_A_PROCESS):
        processes = {
            name: _Process(builds[name], threads)
            for name in track(list(seconds), 'preparing', transient=True)
        }
        turns = {name: process.turn for name, process in processes.items()}
        found = _take_turns(turns, min(CALLS_OF_A_PROCESS, rounds - start), warmup)
        for name, process in processes.items():
            process.end()
            seconds[name] += found[name]
            if process.fault:
                faults[name] = process.fault
                del seconds[name]
    return seconds, faults


def build_all(builds: Mapping[Key, Build]) -> tuple[dict[Key, Call], dict[Key, str]]:
    """Return the calls that could be built, and for the others the reason."""
    calls: dict[Key, Call] = {}
    faults: dict[Key, str] = {}
    for name, build in track(builds.items(), 'preparing', len(builds), transient=True):
        try:
            calls[name] = build()
        except Exception as error:  # a compiler or a runtime may fail in any way; the rest goes on
            faults[name] = sentence(error)
    return calls, faults


def sentence(error: Exception) -> str:
    """Return an error in one line."""
    return f'{type(error).__name__}: {(str(error).strip().splitlines() or [""])[0][:SENTENCE]}'


def median_and_quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the median and the quartiles below and above it."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return float(middle), float(low), float(high)


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
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


class _Process:
    """A function in a process of its own.

    Attributes:
        fault: Why it cannot be timed, empty if it can.
    """

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
            self.fault = 'its process died'

    def turn(self) -> float:
        """Return the seconds of a turn, NaN where there is a fault."""
        if not self.fault:
            try:
                self.pipe.send(True)
                return self.pipe.recv()
            except (EOFError, OSError):
                self.fault = 'its process died while it was timed'
        return math.nan

    def end(self) -> None:
        """End the process."""
        if not self.fault:
            self.pipe.send(False)
        self.process.join()


def _serve(pipe: Connection, build: Build, threads: int) -> None:
    torch.set_num_threads(threads)
    machine.allow_tf32(False)
    try:
        function = build()
        function()
    except Exception as error:  # as in build_all
        pipe.send(sentence(error))
        return
    pipe.send('')
    while pipe.recv():
        pipe.send(_turn(function))
