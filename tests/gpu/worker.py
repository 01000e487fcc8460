"""Benchmarks in separate processes: all prepare in parallel, and they are timed one by one."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any, Protocol

import torch

from evit_mm.compare.benchmark import machine
from evit_mm.compare.benchmark.timing import Row, sentence

TIME_IS_UP = 'time was up'


class Job(Protocol):
    """A benchmark of a worker."""

    def prepare(self, stop: Callable[[], bool]) -> None:
        """Build and compile. Return early if ``stop()`` is True."""

    def measure(self, limit: float) -> Iterator[list[dict[str, Any]]]:
        """Measure for about ``limit`` seconds, and yield rows as soon as they are complete."""


def as_dict(row: Row, table: str, peak: int | None = None) -> dict[str, Any]:
    """Return a row for the JSON file.

    Args:
        row: The row.
        table: Name of its table.
        peak: Peak GPU memory of a call in bytes, without weights and input.
    """
    values = {**asdict(row), 'seconds': [round(x, 7) for x in row.seconds]}
    return {**values, 'table': table, 'peak': peak}


def working(
    functions: Mapping[str, Callable[[], object]],
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Call each function once. Return the functions without errors, and the other errors."""
    able, faults = {}, {}
    for name, function in functions.items():
        try:
            function()
            able[name] = function
        except Exception as error:  # any error: the other rows must still run
            traceback.print_exc()
            faults[name] = sentence(error)
    return able, faults


class Worker:
    """The process of one job.

    Args:
        name: Name in the tables.
        build: Picklable function that returns the job.
        tables: Tables that get a row with the reason if the job fails.
        weight: Share of the measuring time.
        folder: Folder of the log.
        turns: Limits the number of jobs that prepare at the same time.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[], Job],
        tables: tuple[str, ...],
        weight: float,
        folder: Path,
        turns: Semaphore,
    ) -> None:
        self.name, self.tables, self.weight = name, tables, weight
        context = multiprocessing.get_context('spawn')
        self.pipe, end = context.Pipe()
        self.log = folder / f'{name}.log'
        self.process = context.Process(target=_work, args=(end, build, str(self.log), turns))
        self.process.start()
        end.close()
        self.ready: Any = None
        self.fault = ''

    def tell(self, message: Any) -> None:
        """Send a message to the process, if it is alive."""
        try:
            self.pipe.send(message)
        except OSError:
            self.fault = self.fault or 'its process died'

    def hear(self, seconds: float) -> Any:
        """Return the next message of the process, or None after some seconds."""
        try:
            return self.pipe.recv() if self.pipe.poll(max(0.0, seconds)) else None
        except (EOFError, OSError):
            self.fault = self.fault or 'its process died'
            return None

    def is_ready(self, seconds: float = 0.0) -> bool:
        """Return True if the process has finished its preparation or is dead."""
        if self.ready is None and not self.fault:
            self.ready = self.hear(seconds)
            if isinstance(self.ready, str):
                self.fault = self.ready
        return self.ready is not None or bool(self.fault)

    def measure(self, limit: float, patience: float) -> Iterator[list[dict[str, Any]]]:
        """Start the measurement, and end the process afterwards.

        Args:
            limit: Seconds for the measurement.
            patience: Seconds after which the process is killed.

        Yields:
            The rows. If the job fails, the last one has the reason.
        """
        end = time.monotonic() + patience
        if not self.is_ready(patience):
            self.fault = f'still preparing when {TIME_IS_UP}'
        if not self.fault:
            self.tell(('measure', limit))
        while not self.fault:
            rows = self.hear(end - time.monotonic())
            if rows == 'end':
                break
            if isinstance(rows, str):
                self.fault = rows
            elif rows is not None:
                yield rows
            elif not self.fault:
                self.fault = f'still measuring when {TIME_IS_UP}'
        self.end()
        if self.fault:
            yield self.nothing(self.fault)

    def nothing(self, why: str) -> list[dict[str, Any]]:
        """Return rows with the reason why the job has no further rows."""
        return [as_dict(Row(self.name, 'the rest', note=why), table) for table in self.tables]

    def end(self) -> None:
        """End the process."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _work(pipe: Connection, build: Callable[[], Job], log: str, turns: Semaphore) -> None:
    with open(log, 'ab', buffering=0) as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    try:
        machine.allow_tf32(False)
        torch.set_num_threads(1)
        os.nice(5)  # the tests have priority
        start = time.perf_counter()
        while not (mine := turns.acquire(timeout=0.5)) and not pipe.poll():
            continue
        try:
            job = build()
            job.prepare(pipe.poll)
        finally:
            if mine:
                turns.release()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # for the other processes
        pipe.send({'seconds': time.perf_counter() - start})
        while (message := pipe.recv())[0] != 'measure':
            pass
        for rows in job.measure(message[1]):
            pipe.send(rows)
        pipe.send('end')
    except EOFError:  # the parent has closed the pipe
        return
    except Exception as error:  # any error: the other workers must still run
        traceback.print_exc()
        pipe.send(sentence(error))
