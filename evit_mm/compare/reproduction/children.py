"""Start trainings as child processes, with the project's own command."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from mmengine.config import Config

from ...errors import ConfigError
from ...utils.package_files import PACKAGE, project_path
from ..runs import POLL_SECONDS, how_it_died
from .settings import SEED, Settings

GRACE_SECONDS = 60  # to end after SIGTERM
TRAIN = str(project_path('tools') / 'train.py')


def training_command(settings: Settings, cfg: Config, file: Path, work_dir: Path) -> list[str]:
    """Return the command that trains a config on the GPUs of a reproduction, or on the CPU.

    Args:
        settings: The settings. With several GPUs, torchrun starts one process for each.
        cfg: The config.
        file: File of the config.
        work_dir: Work dir.
    """
    arguments = [str(file), '--work-dir', str(work_dir), '--seed', str(SEED)]
    command = [TRAIN, *arguments, *settings.scaling(cfg)]
    gpus = settings.num_gpus
    if gpus > 1:
        run = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={gpus}']
        return [sys.executable, *run, *command, '--launcher', 'pytorch']
    return [sys.executable, *command, '--device', 'cuda' if gpus else 'cpu']


def run_child(command: Sequence[str], log: Path, tick: Callable[[], None]) -> str | None:
    """Run a command with its output in a log file, and wait until all its processes have ended.

    All processes of the command inherit the open log file, which is locked. If the program that
    called this function was killed, its child may still run, and also the processes of a torchrun
    that was killed. Then this function first waits for their end.

    Args:
        command: The command.
        log: File to which the output is appended.
        tick: Is called regularly.

    Returns:
        None after a success, else the reason of the failure.
    """
    _wait_until_free(log, tick)
    start = log.stat().st_size if log.exists() else 0
    with log.open('ab') as file:
        _lock(file)
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, 'PYTHONPATH': _python_path()},
        )
    try:
        while process.poll() is None:
            tick()
            time.sleep(POLL_SECONDS)
    finally:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            process.kill()
            process.wait()
    _wait_until_free(log, tick)
    return None if process.returncode == 0 else _reason(process.returncode, log, start)


def _wait_until_free(log: Path, tick: Callable[[], None]) -> None:
    """Wait until no process has the log file locked."""
    while log.exists():
        with log.open('ab') as file:
            if _lock(file):
                return
        tick()
        time.sleep(POLL_SECONDS)


def _lock(file: IO[bytes]) -> bool:
    """Lock an open file, for this process and all that inherit it; return whether that worked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConfigError(
            f"'{file.name}' cannot be locked ({error}); choose an --out on another file system"
        ) from None
    return True


def _python_path() -> str:
    """Return a search path on which the children find this package."""
    return os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get('PYTHONPATH')]))


def _reason(code: int, log: Path, start: int) -> str:
    """Return the error message of our tools in the new part of a log, or how the process ended."""
    with log.open('rb') as file:
        file.seek(start)
        lines = file.read().decode(errors='replace').splitlines()
    said = [line.removeprefix('error: ') for line in lines if line.startswith('error: ')]
    return said[0] if said else how_it_died(code, log)
