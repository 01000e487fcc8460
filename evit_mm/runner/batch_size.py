"""Find the largest batch size that fits into memory.

A child process trains the model of the config for one iteration per size. The training therefore
starts with unused memory and with the random state that it would have without the search.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, NoReturn

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, get_dist_info
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation

from ..errors import ConfigError, EvitError
from ..utils.distributed import is_first_process
from ..utils.text import counted
from .build import build_runner, join_processes, set_device
from .config import config_name
from .summary import MIB, peak_memory
from .tracking import drop_trackers
from .work_dir import trained_config

AUTO = 'auto'
SHARE = 0.9  # of the unused memory; the rest is for evaluations and for larger images
SAMPLES = 64  # images from which the largest ones are chosen
OVERFLOWS = torch.cuda.OutOfMemoryError, MemoryError
CHILD = 'from evit_mm.runner.batch_size import measure_in_child; measure_in_child()'


@dataclass(frozen=True)
class Trial:
    """One size of a search.

    Attributes:
        size: Batch size.
        fits: Whether it needs no more than the budget.
        mib: Peak memory in MiB, or None if memory ran out.
        predicted: Whether the memory was extrapolated from smaller sizes, and not measured.
    """

    size: int
    fits: bool
    mib: float | None
    predicted: bool = False

    def __str__(self) -> str:
        memory = 'out of memory' if self.mib is None else f'{self.mib / 1024:.2f} GiB'
        return f'{self.size}: {memory}{" (predicted)" if self.predicted else ""}'


def set_batch_size(cfg: Config, wanted: int | str, launcher: str = 'none') -> None:
    """Set ``train_dataloader.batch_size``, the number of images per process.

    A training that resumes keeps the batch size of its work dir with ``'auto'``. With several
    processes, the first one searches, and all use what it finds.

    Args:
        cfg: Config with all other settings of the training.
        wanted: Number, or ``'auto'`` for the largest that fits.
        launcher: As in :func:`~evit_mm.runner.train.train`.

    Raises:
        EvitError: The number is invalid, no size fits, or the training cannot start.
    """
    if wanted != AUTO:
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
    """Search the largest batch size per process whose training iteration fits into memory.

    Args:
        cfg: Config. It is not changed.
        processes: Number of processes of the training.

    Returns:
        The size. It prints what it has tried.

    Raises:
        EvitError: No size fits, or the config or its data cannot be used.
    """
    name, device = config_name(cfg), get_device()
    if device not in ('cpu', 'cuda'):
        raise ConfigError(
            f'--batch-size auto needs a CPU or a CUDA GPU, not {device}; give a number'
        )
    _say('searching for the largest batch size')
    on_gpu = device == 'cuda'
    if on_gpu:
        device = f'cuda:{torch.cuda.current_device()}'
    # several processes on a machine share its memory
    local = int(os.environ.get('LOCAL_WORLD_SIZE', processes))
    budget = None if on_gpu else SHARE * available_memory() / local
    with _Child(cfg, device) as child:
        if budget is None:
            budget = SHARE * child.free
        most = max(child.images // processes, 1)
        best = 0
        for trial in search(child.measure, budget, most, predict=not on_gpu):
            _say(f'  {trial}')
            best = max(best, trial.size if trial.fits else 0)
    limit = f'{budget / 1024:.2f} GiB, 90 % of the unused memory'
    if not best:
        raise ConfigError(
            f'{name}: one image does not fit into {limit}; use smaller images, --amp or another '
            'model'
        )
    if best == most:
        limit = f'there are {counted(child.images, "image")}'
    _say(f'batch size: {best} per process (limit: {limit})')
    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    if base not in (None, best * processes) and not cfg.auto_scale_lr.get('enable'):
        _say(f'the learning rate is for batch size {base}; --auto-scale-lr scales it')
    return best


def _say(text: str) -> None:
    sys.stdout.write(f'{text}\n')
    sys.stdout.flush()


def search(
    measure: Callable[[int], float | None], budget: float, most: int, predict: bool = False
) -> Iterator[Trial]:
    """Try 1, 2, 4, ... until a size does not fit, then sizes between the last two.

    The result is at most an eighth below the largest size that fits.

    Args:
        measure: Returns the peak memory of a size in MiB, or None if memory runs out.
        budget: Memory that may be used, in MiB.
        most: Largest size.
        predict: From the two largest measured sizes, predict the memory of others. A size that is
            predicted to be over the budget is not tried, because a system without memory ends
            programs. After size 8, the next one is the largest that is predicted to fit. It is not
            tried either if it is predicted to need less than half of the budget, because a CPU
            needs long for it.

    Yields:
        The sizes in the order in which they are tried.
    """
    known: list[tuple[int, float]] = []
    low, high = 0, most + 1  # low fits, high does not
    while low < most and (high > most or high - low > max(low // 8, 1)):
        size = max(2 * low, 1) if high > most else (low + high) // 2
        expected = None
        if predict and len(known) > 1:
            (a, at_a), (b, at_b) = sorted(known)[-2:]
            slope = max(at_b - at_a, 0) / (b - a)
            if high > most and low >= 8:
                size = max(int(b + (budget - at_b) / slope), low + 1) if slope else most
            size = min(size, most)
            expected = at_b + (size - b) * slope
        size = min(size, most)
        if expected is not None and (expected > budget or (low >= 8 and expected < budget / 2)):
            trial = Trial(size, expected <= budget, expected, predicted=True)
        else:
            mib = measure(size)
            trial = Trial(size, mib is not None and mib <= budget, mib)
            known += [] if mib is None else [(size, mib)]
        yield trial
        low, high = (size, high) if trial.fits else (low, size)


def available_memory() -> float:
    """Return the unused memory of this machine or container in MiB.

    Raises:
        ConfigError: The system does not tell it.
    """
    try:
        import psutil
    except ImportError:
        try:
            lines = Path('/proc/meminfo').read_text().splitlines()
        except OSError:
            raise ConfigError(
                '--batch-size auto needs the package psutil on this system; run pip install psutil'
            ) from None
        kib = next(int(line.split()[1]) for line in lines if line.startswith('MemAvailable'))
        unused = kib / 1024
    else:
        unused = psutil.virtual_memory().available / MIB
    return min([unused, *_unused_in_groups()])


def _unused_in_groups(root: Path = Path('/sys/fs/cgroup')) -> Iterator[float]:
    """Yield the unused memory in MiB of each control group with a limit, of both versions."""
    names = {''}
    with suppress(OSError):
        for line in Path('/proc/self/cgroup').read_text().splitlines():
            names.add(line.split(':', 2)[2].lstrip('/'))
    for name, (part, limit, used, cache) in itertools.product(
        sorted(names),
        [
            ('', 'memory.max', 'memory.current', 'inactive_file'),
            ('memory', 'memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file'),
        ],
    ):
        folder = root / part / name
        with suppress(OSError, ValueError, KeyError):  # 'max' is no limit
            most = int((folder / limit).read_text())
            rows = (folder / 'memory.stat').read_text().splitlines()
            # the system gives back what it keeps of files
            freed = int(dict(row.split() for row in rows)[cache])
            yield (most - int((folder / used).read_text()) + freed) / MIB


class _Child:
    """A child process that measures batch sizes.

    Attributes:
        images: Number of training images.
        free: Unused memory of the GPU at the start in MiB.
    """

    def __init__(self, cfg: Config, device: str) -> None:
        self.cfg, self.device = cfg, device
        self.images, self.free = 0, 0.0

    def __enter__(self) -> _Child:
        self.folder, self.log = TemporaryDirectory(), TemporaryFile()
        file = Path(self.folder.name, 'config.py')
        self.cfg.dump(file)
        environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
        for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):  # it trains alone
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, '-c', CHILD, str(file), self.device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            text=True,
        )
        try:
            found = self._read()
            if found is None:
                self._fail()
            self.images, self.free = found['images'], found['free']
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()
        self.folder.cleanup()

    def measure(self, size: int) -> float | None:
        """Return the peak memory of an iteration in MiB, or None if memory ran out."""
        if self.process.poll() is not None:  # the system has ended it
            return None
        assert self.process.stdin is not None
        self.process.stdin.write(f'{size}\n')
        self.process.stdin.flush()
        found = self._read()
        if found is None and self.process.wait() != -9:
            self._fail()
        return found['mib'] if found else None

    def _read(self) -> dict[str, Any] | None:
        """Return the next answer, or None if the process has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = json.loads(line) if line else None
        if found and 'error' in found:
            own = str(Path(self.folder.name, 'config.py'))
            raise ConfigError(found['error'].replace(own, config_name(self.cfg)))
        return found

    def _fail(self) -> NoReturn:
        self.log.seek(0)
        said = self.log.read().decode(errors='replace').strip().splitlines() or [
            'it printed nothing'
        ]
        raise ConfigError(
            f'{config_name(self.cfg)}: the search for a batch size failed ({said[-1]}); give '
            '--batch-size a number'
        )


def measure_in_child() -> None:
    """Answer the sizes in the standard input with lines of JSON, in a process of its own."""
    file, device = sys.argv[1:]
    answers = sys.stdout

    def answer(**found: Any) -> None:
        answers.write(json.dumps(found) + '\n')
        answers.flush()

    with redirect_stdout(sys.stderr), TemporaryDirectory() as folder:
        try:
            set_device(device)
            free = torch.cuda.mem_get_info()[0] / MIB if device != 'cpu' else 0.0
            cfg = Config.fromfile(file)
            cfg.work_dir = folder
            iteration = Iteration(cfg)
        except EvitError as error:
            answer(error=str(error))
            return
        answer(images=iteration.images, free=free)
        for line in sys.stdin:
            answer(mib=iteration.peak(int(line)))


class Iteration:
    """Training iterations of a config on batches of its largest images.

    Args:
        cfg: Config with an empty ``work_dir``.
    """

    def __init__(self, cfg: Config) -> None:
        drop_trackers(cfg)
        cfg.resume, cfg.load_from = False, None
        loader = cfg.train_dataloader
        self.waiting = loader.get('num_workers', 0) * (loader.pop('prefetch_factor', None) or 2)
        loader.update(batch_size=1, num_workers=0, persistent_workers=False)
        if 'accumulative_counts' in cfg.optim_wrapper:
            cfg.optim_wrapper.accumulative_counts = 1  # the step adds the state of the optimizer
        self.runner = build_runner(cfg)
        self.runner.call_hook('before_build', splits=('train',))
        self.model = self.runner.model.train()
        self.optimizer = self.runner.build_optim_wrapper(self.runner.optim_wrapper)
        loader = self.runner.train_loop.dataloader
        self.images, self.collate = len(loader.dataset), loader.collate_fn
        kind = type(getattr(loader.batch_sampler, 'batch_sampler', loader.batch_sampler))
        self.samples = largest_samples(loader.dataset, 'AspectRatio' in kind.__name__)
        self.image_mib = self.samples[0]['inputs'].nbytes / MIB
        self.on_gpu, self.has_stepped = get_device() != 'cpu', False

    def peak(self, size: int) -> float | None:
        """Return the peak memory of an iteration in MiB, or None if memory runs out."""
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        chosen = itertools.islice(itertools.cycle(self.samples), size)
        try:
            batch = self.collate([copy.deepcopy(sample) for sample in chosen])
            self.model.train_step(batch, self.optimizer)
            if not self.has_stepped:  # the first step of an optimizer adds its state
                self.model.train_step(batch, self.optimizer)
            self.has_stepped = True
        except OVERFLOWS:
            return None
        finally:
            self.optimizer.zero_grad()
        if self.on_gpu:
            return torch.cuda.max_memory_reserved() / MIB
        # the data loader workers keep the next batches
        return (peak_memory()['ram'] or 0.0) + self.waiting * size * self.image_mib


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
    chosen = [copy.deepcopy(x) for x in (largest, max(found, key=_objects))]
    for sample in chosen:
        missing = width - sample['inputs'].shape[-1], height - sample['inputs'].shape[-2]
        sample['inputs'] = F.pad(sample['inputs'], (0, missing[0], 0, missing[1]))
        sample['data_samples'].set_metainfo({'img_shape': (height, width)})
    return chosen


def _is_wide(sample: dict[str, Any]) -> bool:
    height, width = sample['inputs'].shape[-2:]
    return width > height


def _objects(sample: dict[str, Any]) -> int:
    return len(sample['data_samples'].get('gt_instances', ()))
