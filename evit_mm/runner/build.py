"""From a config to a runner or a model: what is built, and what is said when it cannot be."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mmengine.device.utils
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed, master_only
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner

from ..checkpoint import check_state_dict, extract_state_dict
from ..errors import ConfigError, EvitError
from ..utils.files import write_atomically
from .console import file_only
from .faults import named_faults
from .resuming import find_resumed
from .weights import read_fitting, read_start, unwrap
from .work_dir import recorded_config

# mmengine's own default hooks, the only ones that it lets a config switch off by None
REMOVABLE = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')


@RUNNERS.register_module()
class CheckedRunner(Runner):
    """mmengine's runner with checks; a config names it by ``runner_type``, so any tool builds it.

    - A checkpoint is read weights-only, and must fit: exactly for a test, all but the head where
      a training starts from it. Its own config text, which mmengine would run, is dropped.
    - ``resume=True`` without ``load_from`` goes on from the last whole checkpoint in the work dir,
      with its seed.
    - Several processes without a GPU talk over gloo.
    - The console shows less than the log file, see :mod:`evit_mm.runner.console`.
    - Only a training leaves its config in the work dir; a test does not replace it.
    - ``default_hooks.NAME=None`` switches any hook off.
    - Hooks may have two methods more: ``before_build(runner, splits)``, before data sets and
      loops are built, and ``on_exit(runner)``, at the end of a training, however that comes.

    Raises:
        EvitError: The config or a checkpoint cannot be used, or the run cannot go on because the
            disk is full or a worker has died.
    """

    resumed: dict[str, Any] | None = None  # what the checkpoint holds that the run goes on from
    _evaluates = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with ExitStack() as self._while_built:
            super().__init__(*args, **kwargs)

    @classmethod
    def from_cfg(cls, cfg: Any) -> CheckedRunner:
        """Build a runner as mmengine does."""
        cfg = copy.deepcopy(cfg) if isinstance(cfg, Config) else Config(cfg)
        resumed = find_resumed(cfg)
        with config_faults(cfg):
            runner = super().from_cfg(cfg)
        runner.resumed = resumed
        return runner

    def train(self) -> torch.nn.Module:
        """Train as mmengine does."""
        self.call_hook('before_build', splits=('train', 'val'))
        with named_faults():
            self._record_config()
            try:
                return super().train()
            finally:
                self.call_hook('on_exit')

    def test(self) -> dict[str, float]:
        """Test as mmengine does."""
        self.call_hook('before_build', splits=('test',))
        self._evaluates = True
        with named_faults():
            return super().test()

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint that fits.

        mmengine calls this when hooks such as EMA's are ready for it, and after initialisation.
        """
        model = unwrap(self.model)
        if self._evaluates:
            content = read_fitting(filename, model, self.test_dataloader.dataset.metainfo)
        elif self.resumed is None:
            content = read_start(filename, model)
        else:
            content, self.resumed = self.resumed, None
            state = extract_state_dict(content, prefix='', name=filename)
            check_state_dict(state, model, name=filename)
            content['meta'].pop('config', None)  # mmengine would run it as Python
        self.call_hook('after_load_checkpoint', checkpoint=content)
        model.load_state_dict(content['state_dict'], strict=False)
        self.logger.info(f'Load checkpoint from {filename}')
        return content

    def dump_config(self) -> None:
        """Leave it to :meth:`train`; mmengine dumps the config of each runner that is built."""

    @master_only
    def _record_config(self) -> None:
        """Write the config into the work dir, unless it is read from there."""
        file, source = recorded_config(self), self.cfg.filename
        if not (source and file.exists() and file.samefile(source)):
            write_atomically(file, self.cfg.dump().encode())

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """Register hooks as mmengine does, but for those that are None."""
        kept = {k: v for k, v in (hooks or {}).items() if v is not None or k in REMOVABLE}
        super().register_default_hooks(kept)

    def setup_env(self, env_cfg: dict) -> None:
        """Set up as mmengine does, whose way to join other processes asks for a GPU."""
        if self.distributed and not is_distributed() and get_device() == 'cpu':
            torch.distributed.init_process_group('gloo')
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: torch.nn.Module) -> torch.nn.Module:
        """Wrap as mmengine does, also without a GPU."""
        if self.distributed and get_device() == 'cpu':
            if self.cfg.get('sync_bn'):  # torch has it for GPUs only
                self.cfg.sync_bn = None
                self.logger.warning(
                    'sync_bn needs GPUs; each process computes its own BatchNorm statistics'
                )
            model_wrapper_cfg = model_wrapper_cfg or {
                'type': 'MMDistributedDataParallel',
                'device_ids': None,
                'broadcast_buffers': False,
                'find_unused_parameters': self.cfg.get('find_unused_parameters', False),
            }
        return super().wrap_model(model_wrapper_cfg, model)

    def build_logger(self, *args: Any, **kwargs: Any) -> logging.Logger:
        """Build mmengine's logger; until the runner is built, its information is for the file."""
        logger = super().build_logger(*args, **kwargs)
        self._while_built.enter_context(file_only(logger))
        return logger

    def build_train_loop(self, loop: Any) -> Any:
        """Build the loop and its data sets."""
        with config_faults(self.cfg):
            return super().build_train_loop(loop)

    def build_val_loop(self, loop: Any) -> Any:
        """Build the loop and its data sets."""
        with config_faults(self.cfg):
            return super().build_val_loop(loop)

    def build_test_loop(self, loop: Any) -> Any:
        """Build the loop and its data sets."""
        with config_faults(self.cfg):
            return super().build_test_loop(loop)

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Build the optimizer; the list of its parameters is for the log file."""
        with config_faults(self.cfg), file_only(self.logger):
            return super().build_optim_wrapper(optim_wrapper)

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Build the schedules."""
        with config_faults(self.cfg):
            return super().build_param_scheduler(scheduler)


def build_runner(cfg: Config, launcher: str = 'none') -> Runner:
    """Build the runner that a config names, else a :class:`CheckedRunner`."""
    cfg.launcher = launcher
    make_folder('--work-dir', cfg.work_dir)
    runner = RUNNERS.get(cfg.get('runner_type', 'CheckedRunner'))
    if runner is None:
        raise ConfigError(
            f"{cfg.filename}: unknown runner_type '{cfg.runner_type}'; use CheckedRunner, or "
            'import the module of your runner in custom_imports'
        )
    with config_faults(cfg):
        return runner.from_cfg(cfg)


def load_detector(cfg: Config, checkpoint: str | Path) -> torch.nn.Module:
    """Build the config's detector with a checkpoint's weights, in eval mode on the device.

    Its ``dataset_meta`` has the class names.
    """
    from mmdet.registry import DATASETS, MODELS

    init_default_scope(cfg.get('default_scope', 'mmdet'))
    with config_faults(cfg):
        model = MODELS.build(cfg.model)
        dataset = {**cfg.test_dataloader.dataset, 'lazy_init': True}
        model.dataset_meta = DATASETS.build(dataset).metainfo
    content = read_fitting(checkpoint, model, model.dataset_meta)
    model.load_state_dict(content['state_dict'], strict=False)
    model.cfg = cfg
    return model.to(get_device()).eval()


def set_device(device: str | None) -> None:
    """Choose the device of this process, as mmengine sees it."""
    if device is None:
        return
    try:
        chosen = torch.device(device)
        if chosen.type == 'cuda':
            torch.cuda.set_device(chosen.index or 0)
        else:
            torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--device '{device}' is not available ({reason}); choose another device, such as cpu"
        ) from None
    # mmengine has no function for this: get_device() returns the module's constant
    mmengine.device.utils.DEVICE = chosen.type


def make_folder(flag: str, folder: str | Path) -> None:
    """Make a folder that results go to, before anything long starts."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{flag}: folder '{folder}' cannot be created ({error}); choose another folder"
        ) from None


@contextmanager
def config_faults(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Name the config file when something cannot be built from it; nothing else stands inside."""
    try:
        yield
    except EvitError:
        raise
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        text = str(error.args[0] if error.args else error)
        said = text.replace('.__init__() got an unexpected keyword argument', ' has no argument')
        kind = '' if isinstance(error, ValueError) or said != text else f'{type(error).__name__}: '
        raise ConfigError(f'{getattr(cfg, "filename", None)}: {kind}{said}') from error
