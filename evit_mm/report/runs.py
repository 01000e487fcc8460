"""The contents of a work dir: curves, config, and facts about the training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import ConfigError, DataError
from ..runner.summary import read_summary
from ..runner.work_dir import configs_in, read_scalars, trained_config

METRIC = 'bbox_mAP'  # end of the name in CocoMetric, after an optional prefix
NOT_RECORDED = 'not recorded'

Series = dict[str, list[tuple[int, float]]]


@dataclass
class Run:
    """One training.

    Attributes:
        name: Name on the page: the name of the folder, or its path if the name is not unique.
        folder: Work dir.
        config: Config of the training, with all values.
        steps: ``(iteration, value)`` pairs of each logged training value, for example ``loss``.
        evaluations: ``(epoch or iteration, value)`` pairs of each metric.
        summary: Contents of ``summary.json``; empty if it cannot be read.
        notes: Sentences about missing data.
    """

    name: str
    folder: Path
    config: Config
    steps: Series
    evaluations: Series
    summary: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def ap(self) -> list[tuple[int, float]]:
        """``(epoch or iteration, AP)`` of each evaluation with an AP."""
        series = next((v for k, v in self.evaluations.items() if k.endswith(METRIC)), [])
        return [(step, value) for step, value in series if value >= 0]

    @property
    def best(self) -> tuple[int, float] | None:
        """Epoch or iteration, and AP, of the best evaluation."""
        return max(self.ap, key=lambda entry: entry[1], default=None)

    @cached_property
    def config_text(self) -> str:
        """The config as Python."""
        return self.config.pretty_text

    def facts(self) -> dict[str, str]:
        """Return facts about the run by name; unknown facts are ``NOT_RECORDED``."""
        told, best = self.summary, self.best
        seconds = told.get('seconds')
        states = {None: '', True: 'finished', False: 'not finished'}
        seed = told.get('seed', (self.config.get('randomness') or {}).get('seed'))
        memory = told.get('peak_memory_mib', {})
        sizes = [f'{kind.upper()} {mib / 1024:.2f} GiB' for kind, mib in memory.items() if mib]
        versions = [f'{name} {version}' for name, version in told.get('versions', {}).items()]
        machine = [f'{key}: {value}' for key, value in told.get('host', {}).items() if value]
        facts = {
            'config': [*configs_in(self.folder), Path(self.config.filename)][0].name,
            'state': states[told.get('finished')],
            'best evaluation': best and f'AP {best[1]:.3f} after epoch {best[0]}',
            'training time': seconds and str(timedelta(seconds=round(seconds))),
            'peak memory': ', '.join(sizes),
            'seed': '' if seed is None else str(seed),
            'command': ' '.join(told.get('command', ())),
            'commit': told.get('commit', ''),
            'versions': ', '.join(versions),
            'machine': ', '.join(machine),
        }
        return {name: fact or NOT_RECORDED for name, fact in facts.items()}


def read_runs(work_dirs: Sequence[str | Path]) -> list[Run]:
    """Read work dirs of finished or running trainings of ``tools/train.py``, without changing them.

    Raises:
        ConfigError: A config cannot be read.
        DataError: A folder is not a work dir, or is given twice.
    """
    folders = [Path(work_dir) for work_dir in work_dirs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise DataError(f"'{folder}' is given twice; give each work dir once")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read(folder: Path, name: str) -> Run:
    trained = trained_config(folder)
    if trained is None:
        raise DataError(
            f"'{folder}' is not a work dir of tools/train.py: it contains no config (*.py)"
        )
    try:
        config = Config.fromfile(str(trained))
    except Exception as error:  # a config is a Python program and can raise anything
        reason = f'{type(error).__name__}: {error}'
        raise ConfigError(f"config '{trained}' cannot be read ({reason})") from error
    logged, broken = read_scalars(folder)
    run = Run(
        name=name,
        folder=folder,
        config=config,
        steps=_series(entry for entry in logged if 'iter' in entry),
        evaluations=_series(entry for entry in logged if 'iter' not in entry),
        summary=read_summary(folder),
    )
    if broken:
        run.notes.append(f'Incomplete lines skipped in scalars.json: {broken}.')
    if not logged:
        run.notes.append('The training has not logged anything yet.')
    return run


def _series(entries: Iterable[Mapping[str, Any]]) -> Series:
    """Return the ``(step, value)`` pairs of each logged value."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for entry in entries:
        for key, value in entry.items():
            if key not in ('iter', 'epoch', 'step') and isinstance(value, (int, float)):
                found[key][entry['step']] = float(value)
    return {key: sorted(values.items()) for key, values in found.items()}
