"""What a training left in its work dir: curves, config, and how it was made."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import ConfigError, DataError
from ..runner.resuming import POINTER
from ..runner.summary import FILE as SUMMARY

METRIC = 'bbox_mAP'  # at the end of CocoMetric's names, whatever their prefix
NOT_RECORDED = 'not recorded'
WEIGHTS = 'weights.pth'


@dataclass
class Run:
    """One training.

    Attributes:
        name: What it is called on the page: its folder's name, made unique.
        folder: Its work dir.
        config: The config that it was started with.
        steps: ``(iteration, value)`` of each figure logged while training, such as ``loss``.
        evaluations: ``(epoch or iteration, value)`` of each figure of an evaluation.
        summary: What ``summary.json`` says, as far as it can be read.
        logged: Seed, commit and versions as the log states them.
        notes: Sentences on what is missing.
    """

    name: str
    folder: Path
    config: Config
    steps: dict[str, list[tuple[int, float]]]
    evaluations: dict[str, list[tuple[int, float]]]
    summary: Mapping[str, Any] = field(default_factory=dict)
    logged: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def ap(self) -> list[tuple[int, float]]:
        """``(epoch or iteration, AP)`` of each evaluation that gave an AP."""
        series = next((v for k, v in self.evaluations.items() if k.endswith(METRIC)), [])
        return [(step, value) for step, value in series if math.isfinite(value) and value >= 0]

    @property
    def best(self) -> tuple[int, float] | None:
        """Epoch or iteration, and AP, of the best evaluation."""
        return max(self.ap, key=lambda entry: entry[1], default=None)

    def facts(self) -> dict[str, str]:
        """Return how the run was made, by what is asked; what is unknown says so."""
        config, summary = self.config, self.summary
        seconds: Any = summary.get('seconds')
        command: Any = summary.get('command')
        memory = _mapping(summary.get('peak_memory_mib'))
        host, versions = _mapping(summary.get('host')), _mapping(summary.get('versions'))
        seed = summary.get('seed', self.logged.get('seed'))
        if seed is None:
            seed = _mapping(config.get('randomness')).get('seed')
        versions = versions or _mapping(self.logged.get('versions'))
        return {
            'config': Path(config.filename).name if config.filename else NOT_RECORDED,
            'state': _state(summary.get('finished')),
            'command': ' '.join(map(str, command)) if _is_list(command) else NOT_RECORDED,
            'seed': NOT_RECORDED if seed is None else str(seed),
            'training time': _duration(seconds) if _is_finite(seconds) else self._step_time(),
            'peak memory': _memory(memory),
            'commit': str(summary.get('commit') or self.logged.get('commit') or NOT_RECORDED),
            'versions': ', '.join(f'{k} {v}' for k, v in versions.items()) or NOT_RECORDED,
            'machine': ', '.join(f'{k}: {v}' for k, v in host.items() if v) or NOT_RECORDED,
        }

    def _step_time(self) -> str:
        """Say how long the iterations took, where nothing has recorded the whole."""
        times = [value for _, value in self.steps.get('time', []) if math.isfinite(value)]
        last = max((step for step, _ in self.steps.get('time', [])), default=0)
        if not times:
            return NOT_RECORDED
        seconds = sum(times) / len(times) * last
        return f'{NOT_RECORDED}; {last} iterations took about {_duration(seconds)}'


def read_runs(work_dirs: Sequence[str | Path]) -> list[Run]:
    """Read work dirs of ``tools/train.py``, finished or running; nothing in them is changed.

    Raises:
        ConfigError: A config cannot be read.
        DataError: A folder is not such a work dir, or is given twice.
    """
    folders = [Path(work_dir) for work_dir in work_dirs]
    resolved = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, resolved, strict=True):
        if resolved.count(place) > 1:
            raise DataError(f"'{folder}' is given twice; give each training once")
    names = _names(resolved)
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def find_checkpoint(folder: Path) -> Path | None:
    """Return the best checkpoint of a run, else the last, None where there is none."""
    best = sorted(folder.glob('best_*.pth'), key=_age)
    with suppress(OSError, UnicodeDecodeError):
        # the pointer of a folder that was copied names the first one's
        best.insert(0, folder / Path((folder / POINTER).read_text().strip()).name)
    epochs = [f for kind in ('epoch', 'iter') for f in folder.glob(f'{kind}_*.pth')]
    # weights.pth is what tools/compare.py keeps of its runs
    candidates = [folder / WEIGHTS, *sorted(epochs, key=_age), *best]
    return next((file for file in reversed(candidates) if file.is_file()), None)


def flattened(value: Any, name: str = '') -> dict[str, Any]:
    """Return a config's values by their dotted names; a list's by their places."""
    if isinstance(value, Mapping) and value:
        parts = [(f'{name}.{key}' if name else str(key), part) for key, part in value.items()]
    elif _is_list(value) and any(isinstance(part, (Mapping, list, tuple)) for part in value):
        parts = [(f'{name}.{index}', part) for index, part in enumerate(value)]
    else:
        return {name: value}
    return {key: leaf for label, part in parts for key, leaf in flattened(part, label).items()}


def _read(folder: Path, name: str) -> Run:
    if folder.exists() and not folder.is_dir():
        raise DataError(f"'{folder}' is no folder; give the work dir of a training")
    if not folder.is_dir():
        raise DataError(f"'{folder}' does not exist; give the work dir of a training")
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    configs = sorted(folder.glob('*.py'), key=_age) or sorted(folder.glob('*/vis_data/config.py'))
    if not configs:
        raise DataError(
            f"'{folder}' is not a work dir of tools/train.py: no config (*.py) lies in it"
        )
    try:
        config = Config.fromfile(str(configs[-1]))
    except (Exception, SystemExit) as error:  # a config is a program and can fail in any way
        reason = ': '.join(filter(None, (type(error).__name__, str(error))))
        raise ConfigError(f"config '{configs[-1]}' cannot be read ({reason})") from error
    steps, evaluations, broken = _curves(logs)
    run = Run(name, folder, config, steps, evaluations)
    if broken:
        lines = 'line of its scalars.json is' if broken == 1 else 'lines of its scalars.json are'
        run.notes.append(f'{broken} {lines} not whole and left out.')
    if not steps and not evaluations:
        run.notes.append('Nothing has been logged yet.')
    run.summary = _summary(folder / SUMMARY, run.notes)
    run.logged = _log(sorted(folder.glob('*/*.log')))
    return run


def _curves(logs: Sequence[Path]) -> tuple[dict, dict, int]:
    """Read mmengine's logs in the order of time; a resumed run replaces what it repeats."""
    steps: dict[str, dict[int, float]] = defaultdict(dict)
    evaluations: dict[str, dict[int, float]] = defaultdict(dict)
    broken = 0
    for log in logs:
        entries = []
        for line in log.read_text(encoding='utf-8', errors='replace').splitlines():
            try:
                entry = json.loads(line)
                entry['step'] = int(entry['step'])
                entries.append(entry)
            except (ValueError, TypeError, KeyError):  # a run that is writing, or was killed
                broken += bool(line.strip())
        training = [entry for entry in entries if 'iter' in entry]
        if training:
            start = min(entry['step'] for entry in training)
            for series in steps.values():
                for step in [step for step in series if step >= start]:
                    del series[step]
        for entry in entries:
            target = steps if 'iter' in entry else evaluations
            for key, value in entry.items():
                if key not in ('iter', 'epoch', 'step') and _is_number(value):
                    target[key][entry['step']] = float(value)
    curves = [
        {key: sorted(series.items()) for key, series in target.items()}
        for target in (steps, evaluations)
    ]
    return curves[0], curves[1], broken


def _summary(path: Path, notes: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        notes.append(f'Its summary.json cannot be read ({error}).')
        return {}
    if not isinstance(content, dict):
        notes.append('Its summary.json holds no summary.')
        return {}
    return content


def _log(logs: Sequence[Path]) -> dict[str, Any]:
    """Read seed, commit and versions out of the last log that states them."""
    for log in reversed(logs):
        with suppress(OSError):
            text = log.read_text(encoding='utf-8', errors='replace')
            commit = re.search(r'^ +commit: (\S+)$', text, re.MULTILINE)
            versions = re.search(r'^ +versions: (.+)$', text, re.MULTILINE)
            seed = re.search(r'^ +seed of the weights: (\d+);', text, re.MULTILINE)
            if commit and versions and seed:
                parts = [part.partition(' ') for part in versions[1].split(', ')]
                found = {name: version for name, _, version in parts}
                return {'commit': commit[1], 'seed': seed[1], 'versions': found}
    return {}


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    names = [folder.name for folder in folders]
    for depth in range(2, 1 + max((len(folder.parts) for folder in folders), default=0)):
        if len(set(names)) == len(names):
            break
        names = [
            '/'.join(folder.parts[-depth:]) if names.count(name) > 1 else name
            for folder, name in zip(folders, names, strict=True)
        ]
    return names


def _state(finished: Any) -> str:
    if not isinstance(finished, bool):
        return NOT_RECORDED
    return 'finished' if finished else 'not finished'


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f'{seconds:.0f} s'
    if seconds < 2 * 3600:
        return f'{seconds / 60:.1f} min'
    return f'{seconds / 3600:.1f} h'


def _memory(memory: Mapping[str, Any]) -> str:
    parts = [
        f'{label} {memory[key] / 1024:.2f} GiB'
        for key, label in (('ram', 'RAM'), ('gpu', 'GPU'))
        if _is_number(memory.get(key))
    ]
    return ', '.join(parts) or NOT_RECORDED


def _age(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # a running training has just removed it
        return -1.0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
