"""What a training leaves for the one who started it: ``summary.json``, and what to type next.

``summary.json`` in the work dir is there as a whole or not at all; it is written at the start,
after each epoch and evaluation, and at the end, however that comes.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop

from ..data.dataset_configs import dataset_paths
from ..ops import PROVIDED
from ..utils.files import read_json_dict, write_atomically
from ..utils.package_files import MIM, project_path
from ..utils.provenance import commit, cpu, versions
from .resuming import resumed_from
from .weights import unwrap
from .work_dir import pointed_at

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
    """Remember the best evaluation, in checkpoints too."""

    priority = 'LOW'  # before the checkpoint hook saves what it knows of the best

    def before_train(self, runner: Any) -> None:
        """Take over what a checkpoint knows that was made without this hook."""
        known = runner.message_hub.runtime_info
        names = _saved_by(runner)
        epoch = re.search(r'_epoch_(\d+)\.pth$', str(known.get('best_ckpt')))
        if BEST not in known and 'best_score' in known and len(names) == 1 and epoch:
            value = float(known['best_score'])
            found = {'metric': names[0], 'value': value, 'epoch': int(epoch[1])}
            runner.message_hub.update_info(BEST, found)

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any] | None = None) -> None:
        """Compare the evaluation with the best so far."""
        metric, is_better = watched_metric(runner, metrics or {})
        value, best = (metrics or {}).get(metric or ''), best_so_far(runner)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return
        if best is None or best['metric'] != metric or is_better(value, best['value']):
            found = {'metric': metric, 'value': float(value), 'epoch': runner.epoch}
            runner.message_hub.update_info(BEST, found)


@HOOKS.register_module()
class SummaryHook(Hook):
    """Log what a run is made with, and write ``summary.json``; only the first process does.

    With a :class:`~evit_mm.runner.build.CheckedRunner` the summary is written and logged however
    the training ends; with mmengine's runner, when it comes to its end.
    """

    priority = 'LOWEST'  # after the checkpoint hook has saved the best

    def __init__(self) -> None:
        self.start: float | None = None
        self.first = 0  # iterations that were done before
        self.resumed = False
        self.finished = False
        self.former: dict[str, Any] = {}
        self.facts: dict[str, Any] = {}

    def before_train(self, runner: Any) -> None:
        """Take over what the run that is resumed had recorded, and start the clock.

        What the run is made with is logged, too; mmengine logs the config and the machine.
        """
        if not is_main_process():
            return
        file = resumed_from(runner)
        self.resumed = file is not None
        if file is not None:
            self.former = read_summary(Path(file).parent)
        self.start, self.first = time.monotonic(), runner.iter
        self.facts = {
            'command': [Path(sys.executable).name, *sys.argv],
            'seed': runner.seed,
            'commit': commit(),
            'versions': versions(PACKAGES),
            'host': {'cores': os.cpu_count(), 'cpu': cpu(), 'gpu': _gpu(runner)},
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
        if self.start is not None and self.has_done_nothing(runner) and self.former:
            # the former run may have been killed after its last iteration
            self.save(runner, {**self.former, 'finished': True})
        self.write(runner)

    def write(self, runner: Any) -> None:
        """Write the file, unless nothing new has come."""
        if self.start is None or self.has_done_nothing(runner):
            return
        self.save(runner, self.content(runner))

    def save(self, runner: Any, content: Mapping[str, Any]) -> None:
        """Replace the file; a full disk is no reason for the training to end."""
        try:
            write_atomically(Path(runner.work_dir, FILE), json.dumps(content, indent=1).encode())
        except OSError as error:
            runner.logger.warning(f'{FILE} could not be written ({error.strerror or error})')

    def has_done_nothing(self, runner: Any) -> bool:
        """Say whether a resumed run has trained nothing so far; the file is still the former's."""
        return self.resumed and runner.iter == self.first

    def content(self, runner: Any) -> dict[str, Any]:
        """Return what the file has."""
        best, peak = best_so_far(runner), peak_memory(runner)
        here = time.monotonic() - self.start if self.start else 0.0
        before = _mapping(self.former.get('peak_memory_mib'))
        return {
            'finished': self.finished,
            'best': best and {**best, 'checkpoint': _best_file(runner, best['metric'])},
            'seconds': _number(self.former.get('seconds')) + here,
            'peak_memory_mib': {
                kind: value if value is None else max(value, _number(before.get(kind)))
                for kind, value in peak.items()
            },
            **self.facts,
        }

    def after_run(self, runner: Any) -> None:
        """Write the file once more, and log the summary for people."""
        self.on_exit(runner)

    def on_exit(self, runner: Any) -> None:
        """Do so once, also when the training was interrupted."""
        if self.start is not None:
            self.write(runner)
            text = describe(runner, self.content(runner))
            if self.finished and self.has_done_nothing(runner):
                text = f'nothing was left to train\n{text.partition(chr(10))[2]}'
            runner.logger.info(text)
            self.start = None


def _provenance(runner: Any, facts: Mapping[str, Any]) -> str:
    """Return the lines that say how a run can be repeated: commit, versions, seeds, threads."""
    seed = facts['seed']
    found = ', '.join(f'{name} {version}' for name, version in facts['versions'].items())
    lines = (
        'This run',
        f'commit: {facts["commit"]}',
        f"versions: {found}; mmcv's operators: {PROVIDED}",
        f'seed of the weights: {seed}; of the data order: {seed} + epoch; of a sample: '
        f'({seed}, epoch, place); of the model in training: ({seed}, iteration, rank), '
        'whatever the workers',
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


def watched_metric(
    runner: Any, metrics: Mapping[str, Any]
) -> tuple[str | None, Callable[[float, float], bool]]:
    """Return the figure that says which epoch is the best, and how two of it compare.

    It is the one that the best checkpoint is saved by; where none is, the AP over all classes, or
    else the first figure.
    """
    numbers = [name for name, value in metrics.items() if isinstance(value, (int, float))]
    name = next(iter(_saved_by(runner)), None)
    if name not in metrics:  # nothing, or 'auto', which mmengine takes for the first figure
        main = MAIN_METRIC if MAIN_METRIC in numbers and name is None else None
        name = main or next(iter(numbers), None)
    for hook in _best_hooks(runner):
        if name in hook.is_better_than:
            return name, hook.is_better_than[name]
    rule = 'less' if 'loss' in (name or '') else 'greater'
    return name, CheckpointHook.rule_map[rule]


def peak_memory(runner: Any) -> dict[str, float | None]:
    """Return the most memory that this process has held so far, in MiB; workers do not count."""
    unit = 1 if sys.platform == 'darwin' else 1024  # of ru_maxrss, in bytes
    usage = resource.getrusage(resource.RUSAGE_SELF) if resource else None
    ram = usage.ru_maxrss * unit / MIB if usage else None
    gpu = torch.cuda.max_memory_allocated() / MIB if _gpu(runner) else None
    return {'ram': ram, 'gpu': gpu}


def describe(runner: Any, summary: Mapping[str, Any]) -> str:
    """Return the summary for people, with the commands to type next."""
    by_epoch = not isinstance(runner.train_loop, IterBasedTrainLoop)
    done = f'{runner.iter} of {runner.max_iters} iterations'
    if by_epoch:
        done = f'{runner.epoch} of {runner.max_epochs} epochs'
    seconds = datetime.timedelta(seconds=round(summary['seconds']))
    memory = ', '.join(
        f'{value / 1024:.1f} GiB of {"GPU memory" if kind == "gpu" else "memory"}'
        for kind, value in summary['peak_memory_mib'].items()
        if value is not None
    )
    state = 'finished' if summary['finished'] else 'stopped'
    lines = [f'{state} after {done} and {seconds}; at most {memory}']
    best, folder = summary['best'], Path(_shown(runner.work_dir))
    if best is None:
        lines.append('no evaluation, or none that found anything')
    else:
        kept = best['checkpoint']
        where = f"'{folder / kept}'" if kept else 'no checkpoint of it was kept'
        lines.append(f'best {best["metric"]}: {best["value"]:.4g}, epoch {best["epoch"]}: {where}')
    checkpoint = folder / best['checkpoint'] if best and best['checkpoint'] else pointed_at(folder)
    if checkpoint is not None and checkpoint.is_file():
        lines += ['next:', *(f'  {command}' for command in next_commands(runner, checkpoint))]
    return '\n'.join(lines)


def next_commands(runner: Any, checkpoint: str | Path) -> list[str]:
    """Return three commands to go on with, ready for a shell.

    They name the config that mmengine leaves in the work dir, which has every override in it.
    """
    folder, cfg = Path(runner.work_dir), runner.cfg
    config = folder / Path(cfg.filename).name
    commands: list[tuple[Any, ...]] = [('test', config, checkpoint)]
    if cfg.get('default_scope') == 'mmpretrain':
        commands.append(('test', config, checkpoint, '--show-dir', folder / 'pictures'))
    else:
        images = dataset_paths(cfg.test_dataloader.dataset)['img_dir']
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
    """Return the best checkpoint's name in the work dir, its path where it lies elsewhere."""
    for hook in _best_hooks(runner):
        single = len(hook.key_indicators) == 1
        path = hook.best_ckpt_path if single else hook.best_ckpt_path_dict.get(metric)
        if metric not in hook.key_indicators or not path:
            continue
        if Path(runner.work_dir, Path(path).name).is_file():  # the folder may be a copy
            return Path(path).name
        if Path(path).is_file():
            return str(Path(path).resolve())
    return None


def _best_hooks(runner: Any) -> list[CheckpointHook]:
    return [h for h in runner.hooks if isinstance(h, CheckpointHook) and h.save_best]


def _saved_by(runner: Any) -> list[str]:
    return [name for hook in _best_hooks(runner) for name in hook.key_indicators]


def _gpu(runner: Any) -> str | None:
    device = next(unwrap(runner.model).parameters()).device
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
