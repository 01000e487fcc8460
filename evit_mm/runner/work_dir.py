"""What a training left in its work dir: what it logged, and its checkpoints."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

WEIGHTS = 'weights.pth'  # what tools/compare.py keeps of its runs


def read_scalars(work_dir: str | Path) -> tuple[list[dict[str, Any]], int]:
    """Read what mmengine logged, in the order of time; a resumed run replaces what it repeats.

    Returns:
        Entries, those of training steps with ``iter``; and how many lines are not whole, as the
        last of a run that is writing or was killed.
    """
    entries: list[dict[str, Any]] = []
    broken = 0
    for log in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        added = []
        for line in filter(str.strip, log.read_text(errors='replace').splitlines()):
            try:
                added.append(json.loads(line))
            except ValueError:
                broken += 1
        first = min((entry['step'] for entry in added if 'iter' in entry), default=math.inf)
        entries = [e for e in entries if 'iter' not in e or e['step'] < first] + added
    return entries, broken


def pointed_at(work_dir: str | Path) -> Path | None:
    """Return the checkpoint that ``last_checkpoint`` names, None where there is no pointer."""
    with suppress(OSError, UnicodeDecodeError):
        named = Path(Path(work_dir, 'last_checkpoint').read_text().strip())
        own = Path(work_dir, named.name)  # the pointer of a folder that was copied names the first
        return own if own.is_file() else named
    return None


def recorded_config(runner: Any) -> Path:
    """Return the file for the config of a training, overrides included, as mmengine names it."""
    return Path(runner.work_dir, Path(runner.cfg.filename or f'{runner.timestamp}.py').name)


def last_checkpoints(work_dir: str | Path) -> list[Path]:
    """Return what a run can go on from: what ``last_checkpoint`` names, then the newest first."""
    folder = Path(work_dir)
    files = [*folder.glob('epoch_*.pth'), *folder.glob('iter_*.pth')]
    files.sort(key=lambda file: (file.stat().st_mtime_ns, number_of(file)), reverse=True)
    named = pointed_at(folder)
    return files if named is None else [named, *(file for file in files if file != named)]


def find_checkpoint(work_dir: str | Path) -> Path | None:
    """Return the best checkpoint of a run, else the last, None where there is none."""
    folder = Path(work_dir)
    best = sorted(folder.glob('best_*.pth'), key=number_of, reverse=True)
    candidates = [*best, *last_checkpoints(folder), folder / WEIGHTS]
    return next((file for file in candidates if file.is_file()), None)


def number_of(checkpoint: Path) -> int:
    """Return the epoch or iteration in a checkpoint's name, -1 where there is none."""
    digits = checkpoint.stem.rpartition('_')[2]
    return int(digits) if digits.isdecimal() else -1
