"""Write ``summary.json`` and log a summary with the next commands.

``summary.json`` in the work dir is written atomically: after the first iteration, after each epoch
and each evaluation, and at the end, also after an exception.
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
from ..errors import ConfigError
from ..ops import PROVIDED
from ..utils.files import read_json_dict, write_json
from ..utils.package_files import MIM, project_path
from ..utils.provenance import commit, cpu, versions
from .config import is_classifier, read_config
from .resuming import resumed_from
from .work_dir import pointed_at, recorded_config

try:
    import resource
except ImportError:  # not available on Windows
    resource = None  # type: ignore[assignment]

PACKAGES = ('evit_mm', 'torch', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'timm')
FILE = 'summary.json'
BEST = 'evit_mm_best'  # key of the message hub, which is saved in checkpoints
STOPPED = 'evit_mm_stopped_early'  # key of the message hub: why early stopping ended the training
SECONDS = 'evit_mm_seconds'  # key of meta in checkpoints
MAIN_METRIC = 'coco/bbox_mAP'  # with classwise=True, the first metric is the AP of one class
MIB = 2**20
TESTED = ('model', 'test_dataloader', 'test_evaluator', 'test_cfg')  # parts of a config


@HOOKS.register_module()
class BestMetricHook(Hook):
    """Record the best evaluation, also in checkpoints.

    The metric is the one of ``save_best``. Without ``save_best``, it is ``coco/bbox_mAP``, or the
    first metric if there is no ``coco/bbox_mAP``.
    """

    priority = 'LOW'  # before the checkpoint hook saves the record

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any] | None = None) -> None:
        """Compare the evaluation with the best one so far."""
        metrics = metrics or {}
        hooks = (h for h in runner.hooks if isinstance(h, CheckpointHook) and h.save_best)
        saving = next(hooks, None)
        name = MAIN_METRIC if saving is None else saving.key_indicators[0]
        if name not in metrics:  # for example 'auto', which means the first metric in mmengine
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
    """Log how to reproduce a run, and write ``summary.json``, in the first process only.

    With :class:`~evit_mm.runner.build.CheckedRunner`, the final summary is also written after an
    exception. With mmengine's runner, it is written only if the training finishes.
    """

    priority = 'LOWEST'  # after the checkpoint hook has saved the best

    def __init__(self) -> None:
        self.start: float | None = None  # None if this process writes no summary
        self.earlier = 0.0  # seconds until the checkpoint to resume from was saved
        self.begun = self.finished = False
        self.facts: dict[str, Any] = {}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Read the time of the earlier runs."""
        self.earlier = checkpoint.get('meta', {}).get(SECONDS, 0.0)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Save the time, so that it survives a loss of ``summary.json``."""
        if self.start is not None:
            checkpoint['meta'][SECONDS] = time.monotonic() - self.start

    def before_train(self, runner: Any) -> None:
        """Start the timer, and log the commit, versions and seed of the run."""
        if not is_main_process():
            return
        self.start = time.monotonic()
        file = resumed_from(runner)
        if file is not None:  # add the time of the earlier runs
            self.start -= max(self.earlier, read_summary(Path(file).parent).get('seconds', 0.0))
        self.facts = {
            'command': [Path(sys.executable).name, *sys.argv],
            'seed': runner.seed,
            'commit': commit(),
            'versions': versions(PACKAGES),
            'host': {'cores': os.cpu_count(), 'cpu': cpu(), 'gpu': _gpu()},
        }
        runner.logger.info(_provenance(runner, self.facts))

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write the file after the first iteration. A run that is refused does not change it."""
        if not self.begun:
            self.write(runner)

    def after_train_epoch(self, runner: Any) -> None:
        """Write the time of the epoch, in case the run is killed in the next one."""
        self.write(runner)

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any] | None = None) -> None:
        """Write the result of the evaluation."""
        self.write(runner)

    def after_train(self, runner: Any) -> None:
        """Record that the training has finished."""
        self.finished = True

    def after_run(self, runner: Any) -> None:
        """Write the final summary and log it."""
        self.on_exit(runner)

    def on_exit(self, runner: Any) -> None:
        """Write the final summary and log it, once, also if the training was interrupted.

        A run without an iteration or an evaluation writes nothing.
        """
        if self.start is not None and (self.begun or self.finished):
            summary = self.summary(runner)
            if self.begun:
                self.write(runner, summary)
            runner.logger.info(describe(runner, summary))
        self.start = None

    def write(self, runner: Any, summary: Mapping[str, Any] | None = None) -> None:
        """Write the file. A full disk gives only a warning."""
        if self.start is None:
            return
        self.begun = True
        try:
            write_json(Path(runner.work_dir, FILE), summary or self.summary(runner), indent=1)
        except OSError as error:
            runner.logger.warning(f'{FILE} cannot be written ({error.strerror or error})')

    def summary(self, runner: Any) -> dict[str, Any]:
        """Return the content of the file."""
        assert self.start is not None
        best = best_so_far(runner)
        return {
            'finished': self.finished,
            'stopped_early': stopped_early(runner),
            'best': best and {**best, 'checkpoint': _best_file(runner, best['metric'])},
            'seconds': time.monotonic() - self.start,
            'peak_memory_mib': peak_memory(),
            **self.facts,
        }


def _provenance(runner: Any, facts: Mapping[str, Any]) -> str:
    """Return the facts that are needed to reproduce a run: commit, versions, seed, threads."""
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
    """Return the summary in a work dir, or an empty dict if it cannot be read."""
    return read_json_dict(Path(work_dir, FILE))


def best_so_far(runner: Any) -> dict[str, Any] | None:
    """Return ``metric``, ``value`` and ``epoch`` of the best evaluation, or None before it."""
    return runner.message_hub.runtime_info.get(BEST)


def stopped_early(runner: Any) -> str | None:
    """Return why an early stopping hook has ended the training, or None if none has."""
    if not getattr(runner.train_loop, 'stop_training', False):
        return None
    return runner.message_hub.runtime_info.get(STOPPED, 'a hook has ended the training')


def peak_memory() -> dict[str, float | None]:
    """Return the peak memory of this process in MiB, without data loader workers."""
    gpu = torch.cuda.max_memory_allocated() / MIB if _gpu() else None
    return {'ram': _peak_ram(), 'gpu': gpu}


def _peak_ram() -> float | None:
    with suppress(OSError, StopIteration):
        # in Linux, ru_maxrss of a child process starts at the memory of its parent
        lines = Path('/proc/self/status').read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM')) / 1024
    unit = 1 if sys.platform == 'darwin' else 1024  # bytes per unit of ru_maxrss
    usage = resource.getrusage(resource.RUSAGE_SELF) if resource else None
    return usage.ru_maxrss * unit / MIB if usage else None


def describe(runner: Any, summary: Mapping[str, Any]) -> str:
    """Return the summary as text, with the next commands."""
    done = f'{runner.epoch} of {runner.max_epochs} epochs'
    if runner.epoch > runner.max_epochs:  # resumed with fewer epochs than before
        done = f'{runner.epoch} epochs'
    if isinstance(runner.train_loop, IterBasedTrainLoop):
        done = f'{runner.iter} of {runner.max_iters} iterations'
    seconds = datetime.timedelta(seconds=round(summary['seconds']))
    memory = ', '.join(
        f'{value / 1024:.1f} GiB of {"GPU memory" if kind == "gpu" else "memory"}'
        for kind, value in summary['peak_memory_mib'].items()
        if value is not None
    )
    state = 'finished' if summary['finished'] else 'stopped'
    reason = summary.get('stopped_early')
    if reason:
        state, done = 'stopped early', f'{done}, because {reason},'
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
    """Return shell commands to test the checkpoint, predict with it and write a report.

    They use the config in the work dir, which contains all overrides.
    """
    folder, cfg, config = Path(runner.work_dir), runner.cfg, _config_to_test(runner)
    commands: list[tuple[Any, ...]] = [('test', config, checkpoint)]
    if is_classifier(cfg):
        commands.append(('test', config, checkpoint, '--show-dir', folder / 'pictures'))
    elif dataset := next(coco_datasets(cfg, 'test'), None):
        images = dataset_paths(dataset)['img_dir']
        commands.append(('predict', config, checkpoint, images, '--out', folder / 'predictions'))
    commands.append(('report', folder, '-o', folder / 'report'))
    return [shlex.join([*_tool(tool), *map(_shown, rest)]) for tool, *rest in commands]


def _config_to_test(runner: Any) -> Path:
    """Return a config in the work dir with the values of the run in all that a test reads."""
    file, source = recorded_config(runner), runner.cfg.filename
    if source and file.exists() and file.samefile(source):  # it was not written by the run
        kept, own = Path(runner.log_dir, 'vis_data', 'config.py'), runner.cfg.to_dict()
        now: Mapping[str, Any] = {}
        with suppress(ConfigError):  # the user can edit it while the run trains
            now = read_config(file)[0].to_dict()
        if kept.exists() and any(now.get(part) != own.get(part) for part in TESTED):
            return kept
    return file


def _tool(name: str) -> list[str]:
    """Return the command that starts a tool from the current folder."""
    if MIM.is_dir():
        return ['python', '-m', 'evit_mm', name]
    return ['python', os.path.relpath(project_path(f'tools/{name}.py'))]


def _shown(argument: str | Path) -> str:
    """Return a path relative to the current folder if it is inside this folder."""
    with suppress(ValueError):
        return str(Path(argument).relative_to(Path.cwd()))
    return str(argument)


def _best_file(runner: Any, metric: str) -> str | None:
    """Return the file name of the best checkpoint, or None if it is not in the work dir."""
    known = runner.message_hub.runtime_info
    # mmengine's keys for one metric in save_best and for several metrics
    path = known.get('best_ckpt') or known.get(f'best_ckpt_{metric}')
    name = Path(path or '').name
    return name if Path(runner.work_dir, name).is_file() else None


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if get_device() == 'cuda' else None
