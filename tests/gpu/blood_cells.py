"""Mixed-precision trainings on the blood cells, with as many seeds as the time allows.

The configs are the ones of ``tools/compare.py``. Each run is ``tools/train.py --amp`` in a separate
process. Several runs share the GPU, because a single run does not use it fully.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evit_mm.compare.budget import DEFAULT_MODELS, Budget
from tests.conftest import ROOT

MAX_SEEDS = 3


@dataclass
class Run:
    """One training."""

    model: str
    seed: int
    process: subprocess.Popen
    folder: Path
    started: float
    seconds: float | None = None


@dataclass
class Trainings:
    """A queue of trainings. ``slots`` of them run at the same time.

    Args:
        data: Folder of the blood cells.
        folder: Folder of the work dirs.
        device: Device of the trainings. AMP is used only on a GPU.
        deadline: Time when all runs are stopped. A run that would end later is not started.
        epochs: Epochs of each run. It is evaluated three times.
        slots: Number of runs at the same time.
        seeds: Maximum number of seeds per model.
        scale: ``(width, height)`` to which the images are resized.
        cfg_options: More overrides.
        models: Backbones, see ``DEFAULT_MODELS``.
    """

    data: str
    folder: Path
    device: str
    deadline: float
    epochs: int = 30
    slots: int = 6
    seeds: int = MAX_SEEDS
    scale: tuple[int, int] = (320, 240)
    cfg_options: dict[str, Any] = field(default_factory=dict)
    models: Sequence[str] = DEFAULT_MODELS

    def __post_init__(self) -> None:
        self.amp = self.device != 'cpu'
        self.queue = [(model, seed) for seed in range(self.seeds) for model in self.models]
        self.running: list[Run] = []
        self.done: list[dict[str, Any]] = []

    def step(self) -> bool:
        """Start and collect runs. Return True while runs are active."""
        now = time.time()
        for run in list(self.running):
            ended = run.process.poll() is not None
            if ended or now > self.deadline:
                self.running.remove(run)
                run.seconds = now - run.started
                if not ended:
                    run.process.terminate()
                    try:
                        run.process.wait(5)
                    except subprocess.TimeoutExpired:
                        run.process.kill()
                        run.process.wait()
                self.done.append(self._outcome(run, ended))
        while self.queue and len(self.running) < self.slots and self._fits(now):
            model, seed = self.queue.pop(0)
            self.running.append(self._start(model, seed))
        return bool(self.running)

    def _fits(self, now: float) -> bool:
        # the duration is unknown until the first run ends, so fill all slots
        lasted = [row['seconds'] for row in self.done if row['metrics']]
        if not lasted:
            return now < self.deadline and not self.done
        return now + 1.1 * max(lasted) < self.deadline

    def _start(self, model: str, seed: int) -> Run:
        folder = self.folder / f'{model}_seed{seed}'.replace(':', '_')
        folder.mkdir(parents=True, exist_ok=True)
        options = dict(self.cfg_options)
        budget = Budget(self.data, self.epochs, self.scale, cfg_options=options)
        cfg = budget.config(model)
        third = -(-self.epochs // 3)
        # for an AP even if the time is up before the end
        cfg.train_cfg.update(val_interval=third, val_begin=third)
        cfg.default_hooks.checkpoint = {'type': 'CheckpointHook', 'interval': self.epochs}
        cfg.dump(folder / 'config.py')
        command = [sys.executable, 'tools/train.py', str(folder / 'config.py')]
        command += ['--work-dir', str(folder), '--seed', str(seed), '--device', self.device]
        command += ['--amp'] if self.amp else []
        env = {**os.environ, 'OMP_NUM_THREADS': '1'}
        env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), env.get('PYTHONPATH', '')]))
        with open(folder / 'console.log', 'wb') as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Run(model, seed, process, folder, time.time())

    def _outcome(self, run: Run, ended: bool) -> dict[str, Any]:
        evaluations = read_scalars(run.folder)
        losses = [row for row in evaluations if 'loss' in row]
        metrics = [row for row in evaluations if 'coco/bbox_mAP' in row]
        last = metrics[-1] if metrics else {}
        fault = ''
        if not ended:
            fault = 'time was up'
        elif run.process.returncode:
            tail = (run.folder / 'console.log').read_text(errors='replace').strip().splitlines()
            fault = f'ended with status {run.process.returncode}: {(tail or [""])[-1][:200]}'
        scales = loss_scales(run.folder)
        return {
            'model': run.model,
            'seed': run.seed,
            'amp': self.amp,
            'seconds': round(run.seconds or 0, 1),
            'epochs': last.get('step', 0),
            'of': self.epochs,
            'metrics': {k.removeprefix('coco/'): v for k, v in last.items() if 'bbox_' in k},
            'seconds an iteration': losses[-1].get('time') if losses else None,
            'memory MiB': losses[-1].get('memory') if losses else None,
            'last loss': losses[-1]['loss'] if losses else None,
            'last loss scale': scales[-1] if scales else None,
            'fault': fault,
        }


def read_scalars(folder: Path) -> list[dict[str, Any]]:
    """Return mmengine's log: one dict per logged iteration and per evaluation."""
    rows = []
    for file in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # incomplete line
                continue
    return rows


def loss_scales(folder: Path) -> list[float]:
    """Return the loss scales in the checkpoints, and delete these files."""
    import torch

    from evit_mm.checkpoint import read_checkpoint

    found = []
    for file in sorted(folder.glob('epoch_*.pth')):
        scaler = read_checkpoint(str(file)).get('optimizer', {}).get('loss_scaler', {})
        if 'scale' in scaler:
            found.append(float(torch.as_tensor(scaler['scale'])))
        file.unlink()  # hundreds of MiB
    return found
