"""What a training leaves for the one who started it: ``summary.json``, and what to type next.

``summary.json`` in the work dir is there as a whole or not at all; it is written at the start,
after each epoch and evaluation, and at the end, however that comes.
"""

from __future__ import annotations

import datetime
import math
import operator
import os
import shlex
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop

from ..data.dataset_configs import coco_datasets, dataset_paths
from ..ops import PROVIDED
from ..utils.files import read_json_dict, write_json
from ..utils.package_files import MIM, project_path
from ..utils.provenance import commit, cpu, versions
from .config import is_classifier
from .resuming import resumed_from
from .work_dir import pointed_at, recorded_config

try:
    import resource
except ImportError:  # Windows has it not
    resource = None  # type: ignore[assignment]

PACKAGES = ('evit_mm', 'torch', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'timm')
FILE = 'summary.json'
BEST = 'evit_mm_best'  # key of the message hub, and so of a checkpoint
MAIN_METRIC = 'coco/bbox_mAP'  # with classwise=True, the first figure is one class's
MIB = 2**20


@HOOKS.register_module()
class BestMetricHook(Hook):
    """Remember the best evaluation, in checkpoints too.

    The figure that counts is the one that the best checkpoint is saved by; where none is, the AP
    over all classes, or else the first figure.
    """

    priority = 'LOW'  # before the checkpoint hook saves what it knows of the best

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any] | None = None) -> None:
        """Compare the evaluation with the best so far."""
        metrics = metrics or {}
        hooks = (h for h in runner.hooks if isinstance(h, CheckpointHook) and h.save_best)
        saving = next(hooks, None)
        name = MAIN_METRIC if saving is None else saving.key_indicators[0]
        if name not in metrics:  # 'auto', too, is mmengine's word for the first figure
            name = next(iter(metrics), '')
        value = metrics.get(name)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return
        rules = {} if saving is None else saving.is_better_than
        is_better = rules.get(name, operator.gt)
        best = best_so_far(runner)
        if best is None or best['metric'] != name or is_better(value, best['value']):
            found = {'metric': name, 'value': float(value), 'epoch': runner.epoch}
            runner.message_hub.update_info(BEST, found)


@HOOKS.register_module()
class SummaryHook(Hook):
    """Log what a run is made with, and write ``summary.json``; only the first process does.

    With a :class:`~evit_mm.runner.build.CheckedRunner` the summary is written and logged however
    the training ends; with mmengine's runner, when it comes to its end.
    """

    priority = 'LOWEST'  # after the checkpoint hook has saved the best

    def __init__(self) -> None:
        self.start: float | None = None  # None where there is nothing to write
        self.finished = False
        self.facts: dict[str, Any] = {}

    def before_train(self, runner: Any) -> None:
        """Start the clock, and log what the run is made with."""
        if not is_main_process():
            return
        self.start = time.monotonic()
        file = resumed_from(runner)
        if file is not None:  # the time of the runs before counts too
            self.start -= read_summary(Path(file).parent).get('seconds', 0.0)
        self.facts = {
            'command': [Path(sys.executable).name, *sys.argv],
            'seed': runner.seed,
            'commit': commit(),
            'versions': versions(PACKAGES),
            'host': {'cores': os.cpu_count(), 'cpu': cpu(), 'gpu': _gpu()},
        }
        runner.logger.info(_provenance(runner, self.facts))
        self.write(runner)

    def after_train_epoch(self, runner: Any) -> None:
        """Count the epoch's time, should the run be killed in the next."""
        self.write(runner)

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any] | None = None) -> None:
        """Write what the evaluation brought."""
        self.write(runner)

    def after_train(self, runner: Any) -> None:
        """Note that the training came to its end."""
        self.finished = True

    def after_run(self, runner: Any) -> None:
        """Write the file once more, and log the summary for people."""
        self.on_exit(runner)

    def on_exit(self, runner: Any) -> None:
        """Do so once, also when the training was interrupted."""
        summary = self.write(runner)
        if summary is not None:
            runner.logger.info(describe(runner, summary))
        self.start = None

    def write(self, runner: Any) -> dict[str, Any] | None:
        """Replace the file and return what it has; a full disk is no reason to end a training."""
        if self.start is None:
            return None
        best = best_so_far(runner)
        summary = {
            'finished': self.finished,
            'best': best and {**best, 'checkpoint': _best_file(runner, best['metric'])},
            'seconds': time.monotonic() - self.start,
            'peak_memory_mib': peak_memory(),
            **self.facts,
        }
        try:
            write_json(Path(runner.work_dir, FILE), summary, indent=1)
        except OSError as error:
            runner.logger.warning(f'{FILE} cannot be written ({error.strerror or error})')
        return summary


def _provenance(runner: Any, facts: Mapping[str, Any]) -> str:
    """Return the lines that say how a run can be repeated: commit, versions, seed, threads."""
    found = ', '.join(f'{name} {version}' for name, version in facts['versions'].items())
    lines = (
        'This run',
        f'commit: {facts["commit"]}',
        f"versions: {found}; mmcv's operators: {PROVIDED}",
        f'seed: {facts["seed"]}',
        f'deterministic: {torch.are_deterministic_algorithms_enabled()}, '
        f'threads: {torch.get_num_threads()}, processes: {runner.world_size}',
    )
    return '\n    '.join(lines)


def read_summary(work_dir: str | Path) -> dict[str, Any]:
    """Return a work dir's summary, empty where there is none that can be read."""
    return read_json_dict(Path(work_dir, FILE))


def best_so_far(runner: Any) -> dict[str, Any] | None:
    """Return ``metric``, ``value`` and ``epoch`` of the best evaluation, None before the first."""
    return runner.message_hub.runtime_info.get(BEST)


def peak_memory() -> dict[str, float | None]:
    """Return the most memory that this process has held so far, in MiB; workers do not count."""
    unit = 1 if sys.platform == 'darwin' else 1024  # of ru_maxrss, in bytes
    usage = resource.getrusage(resource.RUSAGE_SELF) if resource else None
    ram = usage.ru_maxrss * unit / MIB if usage else None
    gpu = torch.cuda.max_memory_allocated() / MIB if _gpu() else None
    return {'ram': ram, 'gpu': gpu}


def describe(runner: Any, summary: Mapping[str, Any]) -> str:
    """Return the summary for people, with the commands to type next."""
    done = f'{runner.epoch} of {runner.max_epochs} epochs'
    if isinstance(runner.train_loop, IterBasedTrainLoop):
        done = f'{runner.iter} of {runner.max_iters} iterations'
    seconds = datetime.timedelta(seconds=round(summary['seconds']))
    memory = ', '.join(
        f'{value / 1024:.1f} GiB of {"GPU memory" if kind == "gpu" else "memory"}'
        for kind, value in summary['peak_memory_mib'].items()
        if value is not None
    )
    state = 'finished' if summary['finished'] else 'stopped'
    lines = [f'{state} after {done} in {seconds}; peak: {memory}']
    best, folder = summary['best'], Path(_shown(runner.work_dir))
    checkpoint = pointed_at(folder)
    if best is None:
        lines.append('no evaluation result')
    else:
        where = 'its checkpoint is not in the work dir'
        if best['checkpoint']:
            checkpoint = folder / best['checkpoint']
            where = f"'{checkpoint}'"
        lines.append(f'best {best["metric"]}: {best["value"]:.4g}, epoch {best["epoch"]}: {where}')
    if checkpoint is not None and checkpoint.is_file():
        lines += ['next:', *(f'  {command}' for command in next_commands(runner, checkpoint))]
    return '\n'.join(lines)


def next_commands(runner: Any, checkpoint: str | Path) -> list[str]:
    """Return commands to go on with, ready for a shell.

    They name the config in the work dir, which has every override in it.
    """
    folder, cfg, config = Path(runner.work_dir), runner.cfg, recorded_config(runner)
    commands: list[tuple[Any, ...]] = [('test', config, checkpoint)]
    if is_classifier(cfg):
        commands.append(('test', config, checkpoint, '--show-dir', folder / 'pictures'))
    elif dataset := next(coco_datasets(cfg, 'test'), None):
        images = dataset_paths(dataset)['img_dir']
        commands.append(('predict', config, checkpoint, images, '--out', folder / 'predictions'))
    commands.append(('report', folder, '-o', folder / 'report'))
    return [shlex.join([*_tool(tool), *map(_shown, rest)]) for tool, *rest in commands]


def _tool(name: str) -> list[str]:
    """Return how a tool is started from here."""
    if MIM.is_dir():
        return ['python', '-m', 'evit_mm', name]
    return ['python', os.path.relpath(project_path(f'tools/{name}.py'))]


def _shown(argument: str | Path) -> str:
    """Return a path as it is typed in the current folder, where it lies below it."""
    with suppress(ValueError):
        return str(Path(argument).relative_to(Path.cwd()))
    return str(argument)


def _best_file(runner: Any, metric: str) -> str | None:
    """Return the best checkpoint's name, None where the work dir has none."""
    known = runner.message_hub.runtime_info
    # mmengine's keys, for one figure in save_best and for several
    path = known.get('best_ckpt') or known.get(f'best_ckpt_{metric}')
    name = Path(path or '').name
    return name if Path(runner.work_dir, name).is_file() else None


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if get_device() == 'cuda' else None
