"""Read the logs, find the checkpoints and move the files of an earlier training in a work dir."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import EvitError

WEIGHTS = 'weights.pth'  # file that tools/compare.py keeps of each run


def read_scalars(work_dir: str | Path) -> tuple[list[dict[str, Any]], int]:
    """Read the scalars that mmengine logged, in chronological order.

    Entries of a resumed run replace earlier entries of the same steps.

    Returns:
        The entries and the number of incomplete lines. Entries of training steps have the key
        ``iter``. The last line of an active or killed run can be incomplete.
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
    """Return the checkpoint named in ``last_checkpoint``, or None if this file does not exist."""
    with suppress(OSError, UnicodeDecodeError):
        named = Path(Path(work_dir, 'last_checkpoint').read_text().strip())
        own = Path(work_dir, named.name)  # in a copied folder, the path is that of the original
        return own if own.is_file() else named
    return None


def recorded_config(runner: Any) -> Path:
    """Return the path of the config with all overrides in the work dir, as in mmengine."""
    return Path(runner.work_dir, Path(runner.cfg.filename or f'{runner.timestamp}.py').name)


def trained_config(work_dir: str | Path) -> Path | None:
    """Return the config of the last training in a work dir, or None if there is none.

    This is the file that mmengine writes beside the scalars. It contains all values, whereas a
    config that lies in the work dir itself can be the one that the user edits.
    """
    folder = Path(work_dir)
    logs = [file.parent for file in sorted(folder.glob('*/vis_data/config.py'))]
    # a test writes no scalars
    logs = [log for log in logs if (log / 'scalars.json').exists()] or logs
    return logs[-1] / 'config.py' if logs else next(iter(configs_in(folder)), None)


def config_and_checkpoint(work_dir: str | Path) -> tuple[Path, Path]:
    """Return the config and the last checkpoint of a training.

    Raises:
        EvitError: One of them is missing.
    """
    config, checkpoint = trained_config(work_dir), pointed_at(work_dir)
    if config is None or checkpoint is None:
        raise EvitError(f"'{work_dir}' has no config or no checkpoint; give a work dir")
    return config, checkpoint


def configs_in(work_dir: str | Path) -> list[Path]:
    """Return the configs that lie in the work dir itself, the newest first."""
    files = Path(work_dir).glob('*.py')
    return sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)


def set_aside(work_dir: str | Path, timestamp: str, config: Path | None) -> Path | None:
    """Move the files of an earlier training into a subfolder, so that nothing is mixed or lost.

    Args:
        work_dir: Work dir of both trainings.
        timestamp: Time of the new training. Its log stays in place.
        config: Recorded config of the earlier training, or None to leave it in place.

    Returns:
        The subfolder, or None if there was no earlier training.
    """
    folder = Path(work_dir)
    own = [folder / name for name in ('summary.json', 'last_checkpoint', 'tracking.json')]
    files = [file for file in own if file.is_file()]
    files += [file for kind in ('epoch', 'iter', 'best') for file in folder.glob(f'{kind}_*.pth')]
    if not files:
        return None
    files += [config] if config is not None and config.is_file() else []
    files += [log.parent for log in folder.glob('*/vis_data') if log.parent.name != timestamp]
    moved = folder / f'before_{timestamp}'
    moved.mkdir()
    for file in files:
        file.rename(moved / file.name)
    return moved


def last_checkpoints(work_dir: str | Path) -> list[Path]:
    """Return the checkpoints to resume from: ``last_checkpoint`` first, then the newest first."""
    folder = Path(work_dir)
    files = [*folder.glob('epoch_*.pth'), *folder.glob('iter_*.pth')]
    files.sort(key=lambda file: (file.stat().st_mtime_ns, number_of(file)), reverse=True)
    named = pointed_at(folder)
    return files if named is None else [named, *(file for file in files if file != named)]


def find_checkpoint(work_dir: str | Path) -> Path | None:
    """Return the best checkpoint of a run, else the last one, else None."""
    folder = Path(work_dir)
    best = sorted(folder.glob('best_*.pth'), key=number_of, reverse=True)
    candidates = [*best, *last_checkpoints(folder), folder / WEIGHTS]
    return next((file for file in candidates if file.is_file()), None)


def number_of(checkpoint: Path) -> int:
    """Return the epoch or iteration in the name of a checkpoint, or -1."""
    digits = checkpoint.stem.rpartition('_')[2]
    return int(digits) if digits.isdecimal() else -1
