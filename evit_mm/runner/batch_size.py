"""Find the largest batch size that fits into the memory of a GPU.

A child process trains the model of the config for a few iterations per size. The training therefore
starts with unused memory and with the random state that it would have without the search.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, get_dist_info
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation

from ..checkpoint.reading import first_line
from ..errors import ConfigError, EvitError
from ..utils.distributed import is_first_process
from ..utils.text import counted
from .build import build_runner, join_processes, set_device
from .config import config_name
from .summary import MIB
from .tracking import drop_trackers
from .work_dir import trained_config

SHARE = 0.9  # of the unused memory; the rest is for evaluations and for larger images
SAMPLES = 64  # images from which the largest ones are chosen
CONFIG, RESULT = 'config.py', 'result.json'  # files that the two processes share
FAILED = 'the search for a batch size failed ({}); give --batch-size a number'
CHILD = 'from evit_mm.runner.batch_size import search_in_child; search_in_child()'

_say = partial(print, flush=True)


def set_batch_size(cfg: Config, wanted: int | str, launcher: str = 'none') -> None:
    """Set ``train_dataloader.batch_size``, the number of images per process.

    A training that resumes keeps the batch size of its work dir with ``'auto'``. With several
    processes, the first one searches, and all use what it finds.

    Args:
        cfg: Config with all other settings of the training.
        wanted: Number, or ``'auto'`` for the largest that fits into the memory of a CUDA GPU.
        launcher: As in :func:`~evit_mm.runner.train.train`.

    Raises:
        EvitError: The number is invalid, there is no CUDA GPU, no size fits, or the training cannot
            start.
    """
    if wanted != 'auto':
        with suppress(ValueError):
            cfg.train_dataloader.batch_size = int(wanted)
            if int(wanted) > 0:
                return
        raise ConfigError(f"--batch-size must be a positive integer or auto, got '{wanted}'")
    earlier = _earlier_size(cfg)
    if earlier is not None:
        cfg.train_dataloader.batch_size = earlier
        if is_first_process():
            _say(f'batch size: {earlier}, as in the training that is resumed')
        return
    if get_device() != 'cuda':
        raise ConfigError(
            f'--batch-size auto needs a CUDA GPU, not {get_device()}; give a number; on a CPU a '
            'larger batch is rarely faster'
        )
    if launcher != 'none':
        join_processes(launcher, cfg.get('env_cfg') or {})
    rank, processes = get_dist_info()
    found: list[Any] = [None]
    if rank == 0:
        try:
            found = [largest_batch(cfg, processes)]
        except EvitError as error:  # the other processes must not wait for ever
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], EvitError):
        raise found[0]
    cfg.train_dataloader.batch_size = found[0]


def _earlier_size(cfg: Config) -> int | None:
    """Return the batch size of the training that is resumed, if its work dir has it."""
    if not cfg.get('resume'):
        return None
    folder = Path(cfg.load_from).parent if cfg.get('load_from') else cfg.work_dir
    file = trained_config(folder)
    return None if file is None else Config.fromfile(file).train_dataloader.batch_size


def largest_batch(cfg: Config, processes: int = 1) -> int:
    """Run :func:`find_size` in a child process, and print what it says.

    Raises:
        ConfigError: No size fits, or the config or its data cannot be used.
    """
    _say('searching for the largest batch size')
    with TemporaryDirectory() as folder:
        config, result = Path(folder, CONFIG), Path(folder, RESULT)
        cfg.dump(config)
        device = f'cuda:{torch.cuda.current_device()}'
        command = [sys.executable, '-c', CHILD, folder, device, str(processes)]
        env = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
        with Popen(command, env=env, stdout=PIPE, stderr=DEVNULL, text=True) as child:
            try:
                for line in child.stdout or ():
                    _say(line.rstrip())
            except BaseException:
                child.kill()
                raise
        found = json.loads(result.read_text()) if result.exists() else {}
    if 'size' in found:
        return found['size']
    error = found.get('error', f'{config}: {FAILED.format(f"exit status {child.returncode}")}')
    raise ConfigError(error.replace(str(config), config_name(cfg)))


def search_in_child() -> None:
    """Search in a process of its own: print the sizes, and write the result or an error."""
    folder, device, processes = sys.argv[1:]
    config = Path(folder, CONFIG)
    say = partial(_say, file=sys.stdout)
    with redirect_stdout(sys.stderr):  # other output, which nobody reads
        try:
            set_device(device)
            cfg = Config.fromfile(config)
            cfg.work_dir = str(Path(folder, 'work'))
            found: dict[str, Any] = {'size': find_size(cfg, int(processes), say)}
        except EvitError as error:
            found = {'error': str(error)}
        except Exception as error:
            reason = f'{type(error).__name__}: {first_line(error)}'
            found = {'error': f'{config}: {FAILED.format(reason)}'}
    Path(folder, RESULT).write_text(json.dumps(found))


def find_size(cfg: Config, processes: int, say: Callable[[str], object]) -> int:
    """Return the largest batch size per process whose training iteration fits into the memory.

    Args:
        cfg: Config. Its settings of the training set and of the optimizer change.
        processes: Number of processes of the training.
        say: Is called with each line for the user.

    Raises:
        EvitError: No size fits, or the config or its data cannot be used.
    """
    budget = SHARE * torch.cuda.mem_get_info()[0] / MIB
    iteration = Iteration(cfg)
    # BatchNorm1d cannot normalise a single vector
    alone = not any(isinstance(module, nn.BatchNorm1d) for module in iteration.model.modules())
    least = 1 if alone else 2
    most = max(iteration.images // processes, least)

    def fits(size: int) -> bool:
        mib = iteration.peak(size)
        say(f'  {size}: ' + ('out of memory' if mib is None else f'{mib / 1024:.2f} GiB'))
        return mib is not None and mib <= budget

    best = search(fits, least, most)
    limit = f'{budget / 1024:.2f} GiB, 90 % of the unused memory'
    if not best:
        raise ConfigError(
            f'{config_name(cfg)}: batch size {least} does not fit into {limit}; use smaller '
            'images, --amp or another model'
        )
    if best == most:
        limit = f'there are {counted(iteration.images, "image")}'
    say(f'batch size: {best} per process (limit: {limit})')
    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    if base not in (None, best * processes) and not cfg.auto_scale_lr.get('enable'):
        say(f'the learning rate is for batch size {base}; --auto-scale-lr scales it')
    return best


def search(fits: Callable[[int], bool], least: int, most: int) -> int:
    """Double the size until it does not fit, then try sizes between the last two.

    Args:
        fits: Whether a size fits.
        least: Smallest size.
        most: Largest size.

    Returns:
        A size that fits, at most an eighth below the largest one that does, or 0.
    """
    low, high = least - 1, most + 1  # low fits, high does not
    while low < most and (high > most or high - low > max(low // 8, 1)):
        size = min(max(2 * low, 1), most) if high > most else (low + high) // 2
        low, high = (size, high) if fits(size) else (low, size)
    return low if low >= least else 0


class Iteration:
    """Training iterations of a config on batches of its largest images.

    Attributes:
        model: The model.
        images: Number of training images.

    Args:
        cfg: Config with an empty ``work_dir``. It changes.
    """

    def __init__(self, cfg: Config) -> None:
        drop_trackers(cfg)
        cfg.resume, cfg.load_from = False, None
        loader = cfg.train_dataloader
        loader.pop('prefetch_factor', None)
        loader.update(batch_size=1, num_workers=0, persistent_workers=False)
        if 'accumulative_counts' in cfg.optim_wrapper:
            cfg.optim_wrapper.accumulative_counts = 1  # the step adds the state of the optimizer
        runner = build_runner(cfg)
        runner.call_hook('before_build', splits=('train',))
        # mmdet's BatchSyncRandomResize reads it
        runner.message_hub.update_info_dict({'iter': 0, 'epoch': 0})
        self.model = runner.model.train()
        self.optimizer = runner.build_optim_wrapper(runner.optim_wrapper)
        loader = runner.train_loop.dataloader
        self.images, self.collate = len(loader.dataset), loader.collate_fn
        kind = type(getattr(loader.batch_sampler, 'batch_sampler', loader.batch_sampler))
        self.samples = largest_samples(loader.dataset, 'AspectRatio' in kind.__name__)

    def peak(self, size: int) -> float | None:
        """Return the peak memory of an iteration in MiB, or None if memory runs out."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        chosen = list(itertools.islice(itertools.cycle(self.samples), size))
        try:
            for _ in range(2):  # the first step of an optimizer adds its state
                batch = self.collate([copy.deepcopy(sample) for sample in chosen])
                self.model.train_step(batch, self.optimizer)
        except torch.cuda.OutOfMemoryError:
            return None
        finally:
            self.optimizer.zero_grad()
        return torch.cuda.max_memory_reserved() / MIB


def largest_samples(dataset: Any, grouped: bool = False) -> list[dict[str, Any]]:
    """Return the sample with the largest image and the one with the most objects, padded alike.

    They are chosen from samples that are spread over the data set. A batch of them has the largest
    height and width that a batch can have. The boxes do not change.

    Args:
        dataset: Built data set for training.
        grouped: Whether a batch is either of landscape or of portrait images.

    Raises:
        ConfigError: No sample can be read.
    """
    found = []
    for place in range(0, len(dataset), max(len(dataset) // SAMPLES, 1)):
        with suppress(Exception):  # the training itself reports an image that cannot be read
            found.append(dataset[place])
    found = [sample for sample in found if sample is not None]
    if not found:
        raise ConfigError('--batch-size auto: no training image can be read')
    largest = max(found, key=lambda sample: sample['inputs'].numel())
    if grouped:
        found = [sample for sample in found if _is_wide(sample) == _is_wide(largest)]
    height, width = (max(sample['inputs'].shape[axis] for sample in found) for axis in (-2, -1))
    crowded = max(found, key=lambda sample: len(sample['data_samples'].get('gt_instances', ())))
    chosen = [copy.deepcopy(sample) for sample in (largest, crowded)]
    for sample in chosen:
        missing = width - sample['inputs'].shape[-1], height - sample['inputs'].shape[-2]
        sample['inputs'] = F.pad(sample['inputs'], (0, missing[0], 0, missing[1]))
        sample['data_samples'].set_metainfo({'img_shape': (height, width)})
    return chosen


def _is_wide(sample: dict[str, Any]) -> bool:
    height, width = sample['inputs'].shape[-2:]
    return width > height
