"""Latency, side by side: in one process, or each function in processes of its own."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Hashable, Mapping
from multiprocessing.connection import Connection
from typing import TypeVar

import numpy as np
import torch
from rich.progress import track

Key = TypeVar('Key', bound=Hashable)
CALLS_OF_A_PROCESS = 10


def time_interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: int = 20,
    warmup: int = 3,
    limit: float = math.inf,
) -> dict[str, list[float]]:
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
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    start = time.perf_counter()
    for step in track(range(-warmup, rounds), 'timing', transient=True):
        if step > 0 and time.perf_counter() - start > limit:
            break
        for name, function in functions.items():
            value = _turn(function)
            if step >= 0:
                seconds[name].append(value)
    return seconds


def time_in_processes(
    builders: Mapping[Key, Callable[[], Callable[[], object]]],
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
        builders: What returns the function to call, by name; can be pickled.
        rounds: Timed calls of each.
        warmup: Calls of each before that.
        threads: Torch's threads in each process.

    Returns:
        Seconds as :func:`time_interleaved` has them, and for what could not be built the reason.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in builders}
    faults: dict[Key, str] = {}
    for start in range(0, rounds, CALLS_OF_A_PROCESS):
        count = min(CALLS_OF_A_PROCESS, rounds - start)
        working = {name: builders[name] for name in seconds}
        found, new_faults = _time_in_processes(working, count, warmup, threads)
        seconds = {name: seconds[name] + values for name, values in found.items()}
        faults.update(new_faults)
    return seconds, faults


def _time_in_processes(
    builders: Mapping[Key, Callable[[], Callable[[], object]]],
    rounds: int,
    warmup: int,
    threads: int,
) -> tuple[dict[Key, list[float]], dict[Key, str]]:
    context = multiprocessing.get_context('spawn')
    pipes: dict[Key, Connection] = {}
    processes = []
    faults: dict[Key, str] = {}
    for name, builder in track(builders.items(), 'preparing', len(builders), transient=True):
        pipe, end = context.Pipe()
        # ends with this process, whatever becomes of it
        process = context.Process(target=_serve, args=(end, builder, threads), daemon=True)
        process.start()
        processes.append(process)
        end.close()
        try:
            fault = pipe.recv()
        except EOFError:
            fault = 'its process died'
        if fault:
            faults[name] = fault
        else:
            pipes[name] = pipe
    seconds: dict[Key, list[float]] = {name: [] for name in pipes}
    for step in track(range(-warmup, rounds), 'timing', transient=True):
        for name, pipe in list(pipes.items()):
            try:
                pipe.send(True)
                value = pipe.recv()
            except (EOFError, OSError):
                faults[name] = 'its process died while it was timed'
                del pipes[name], seconds[name]
                continue
            if step >= 0:
                seconds[name].append(value)
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    return seconds, faults


def _serve(pipe: Connection, builder: Callable[[], Callable[[], object]], threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        function = builder()
        function()
    except Exception as error:  # a compiler or a runtime may fail in any way
        pipe.send(f'{type(error).__name__}: {(str(error).splitlines() or [""])[0][:120]}')
        return
    pipe.send(None)
    while pipe.recv():
        pipe.send(_turn(function))


def median_and_quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the median and the quartiles below and above it."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return float(middle), float(low), float(high)


def _turn(function: Callable[[], object]) -> float:
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
