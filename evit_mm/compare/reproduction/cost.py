"""What the trainings of a reproduction cost in hours, from a measured minute of each."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...errors import ConfigError
from ...utils.files import read_json_dict, write_json
from ..runs import CONSOLE
from .children import run_child, training_command
from .measuring import MeasuringHook
from .settings import Settings

MEASURED = 'cost.json'


@dataclass(frozen=True)
class Cost:
    """The measured cost of one training.

    Attributes:
        step: Seconds of an optimizer step.
        steps: Number of steps of an epoch.
        evaluation: Steps that an evaluation counts for: each of its images counts as a trained one.
        device: Name of the GPU, or ``cpu``.
    """

    step: float
    steps: int
    evaluation: float
    device: str

    def hours(self, cfg: Config, done: float = 0) -> float:
        """Return the hours of the epochs after ``done``, with their evaluations."""
        epochs, interval = cfg.train_cfg.max_epochs - done, cfg.train_cfg.get('val_interval', 1)
        steps = epochs * self.steps + math.ceil(epochs / interval) * self.evaluation
        return steps * self.step / 3600


def measure(
    settings: Settings,
    configs: Mapping[str, Config],
    watch: Callable[[str], Any],
) -> dict[str, Cost]:
    """Measure the trainings that were not measured before on this kind of device.

    Args:
        settings: The settings of the reproduction.
        configs: Configs by name, whose files are in the folder ``configs``.
        watch: Is called regularly with the name of the config that is measured.

    Raises:
        ConfigError: A training does not run.
    """
    file = settings.out / MEASURED
    known = read_json_dict(file)
    for name, cfg in configs.items():
        if known.get(name, {}).get('device') == settings.device:
            continue
        # not the folder of the run: nothing of this must be left there
        folder = settings.out / 'measuring'
        log, result = folder / CONSOLE, folder / 'result.json'
        folder.mkdir(exist_ok=True)
        config = folder / 'config.py'
        _measured(cfg, result).dump(config)
        command = training_command(settings, cfg, config, folder / 'work')
        result.unlink(missing_ok=True)
        failure = run_child(command, log, partial(watch, name))
        if failure is None and not result.is_file():
            failure = f"it measured nothing; see '{log}'"
        if failure is not None:
            raise ConfigError(f'{name}: a trial training failed, so nothing was trained: {failure}')
        known[name] = {**read_json_dict(result), 'device': settings.device}
        write_json(file, known, indent=1)
        shutil.rmtree(folder)
    return {name: Cost(**known[name]) for name in configs}


def _measured(cfg: Config, result: Path) -> Config:
    """Return a config whose training measures itself and ends."""
    cfg = copy.deepcopy(cfg)
    cfg.custom_imports.imports.append(MeasuringHook.__module__)
    hook = {'type': MeasuringHook.__name__, 'result': str(result)}
    cfg.custom_hooks = [*cfg.get('custom_hooks', ()), hook]
    return cfg


def duration(hours: float) -> str:
    """Return a number of hours or minutes as text."""
    return f'{hours:.1f} hours' if hours >= 1 else f'{60 * hours:.0f} minutes'
