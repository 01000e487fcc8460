"""Build a runner or a model from a config, with errors that name the config."""

from __future__ import annotations

import copy
import inspect
import itertools
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mmengine.device.utils
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import init_dist, is_distributed, is_main_process, master_only
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseTTAModel
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing
from mmengine.visualization import Visualizer

from ..checkpoint import check_source, check_state_dict, extract_state_dict
from ..data.pipeline import dataset_reader
from ..errors import ConfigError, EvitError
from ..utils.files import write_atomically
from .config import checkpoints_of, config_name, name_fault
from .console import file_only, prints_to_file, warnings_to_file
from .evaluators import check_metrics
from .faults import named_faults
from .resuming import find_resumed, resumed_from
from .run_length import check_batches, schedule_notes
from .tracking import drop_trackers
from .variables import follow_variables
from .weights import evaluated_weights, read_fitting, read_start, unwrap
from .work_dir import recorded_config, set_aside

# default hooks of mmengine; mmengine accepts None only for these
REMOVABLE = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')

# the first hook call of these shows that a training or a test works
BEGINNINGS = ('after_train_iter', 'after_val_epoch', 'after_test_iter')


@RUNNERS.register_module()
class CheckedRunner(Runner):
    """mmengine's runner with additional checks. A config selects it with ``runner_type``.

    - Checkpoints are read weights-only and must match the model. Testing needs an exact match.
      Training can start from a checkpoint with a different head. The config text in a checkpoint is
      ignored, because mmengine would execute it.
    - ``resume=True`` without ``load_from`` resumes from the last intact checkpoint in the work dir,
      with its seed.
    - Several processes without a GPU communicate with gloo.
    - The bases of the config follow its variables. See :mod:`evit_mm.runner.variables`.
    - The console shows less than the log file. See :mod:`evit_mm.runner.console`.
    - Training changes nothing in the work dir before its first iteration has succeeded. It then
      moves the files of an earlier training into a subfolder, unless it resumes, and writes the
      config, also for the trackers. A run that fails earlier removes its log and starts none of a
      tracker. Testing writes only its log.
    - ``default_hooks.NAME=None`` disables any default hook.
    - Hooks can define two additional methods. ``before_build(runner, splits)`` is called before the
      data sets and loops are built. ``on_exit(runner)`` is called at the end of training, also
      after an exception.

    Raises:
        EvitError: The config or a checkpoint cannot be used, the disk is full, or a data loader
            worker has died.
    """

    resumed: dict[str, Any] | None = None  # content of the checkpoint to resume from
    made_work_dir = False  # whether the work dir is new
    has_trained = False  # whether any run of this process has trained one iteration
    _evaluates = False
    _begun = False  # whether an iteration or an evaluation has succeeded
    _has_own_log = False  # False if another run of the same second writes to the same folder
    _numbers = itertools.count(1)  # of the runs in this process

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # mmengine would share logger and visualizer between runs of the same second and name
        if (number := next(self._numbers)) > 1:
            kwargs['experiment_name'] = f'{kwargs.get("experiment_name") or "run"}_{number}'
        with ExitStack() as self._while_built, self._nothing_left():
            super().__init__(*args, **kwargs)

    @classmethod
    def from_cfg(cls, cfg: Any) -> CheckedRunner:
        """Build a runner as mmengine does."""
        cfg = follow_variables(copy.deepcopy(cfg) if isinstance(cfg, Config) else Config(cfg))
        for source in checkpoints_of(cfg):
            check_source(source)
        resumed = find_resumed(cfg)
        with config_faults(cfg):
            runner = super().from_cfg(cfg)
        runner.resumed = resumed
        return runner

    def train(self) -> torch.nn.Module:
        """Train as mmengine does."""
        with named_faults(), self._nothing_left(), warnings_to_file(self.logger):
            self.call_hook('before_build', splits=('train', 'val'))
            try:
                return super().train()
            finally:
                self.call_hook('on_exit')

    def test(self) -> dict[str, float]:
        """Test as mmengine does."""
        self._evaluates = True
        with named_faults(), self._nothing_left(), warnings_to_file(self.logger):
            self.call_hook('before_build', splits=('test',))
            return super().test()

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call the hooks as mmengine does. Before this, record a training that has begun."""
        if not self._begun and fn_name in BEGINNINGS:
            self._begun = True
            self._record_config()
            if not self._evaluates:
                CheckedRunner.has_trained = True
                self._record_start()
        if fn_name == 'before_train':
            for note in schedule_notes(self):
                self.logger.warning(note)
        if fn_name != 'before_run':
            super().call_hook(fn_name, **kwargs)
            return
        with config_faults(self.cfg):  # some hooks build their parts here
            super().call_hook(fn_name, **kwargs)

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint that matches the model.

        mmengine calls this method after it has initialised the model and hooks such as EMA.
        """
        model = unwrap(self.model)
        if self._evaluates:
            content = read_fitting(filename, model, self.test_dataloader.dataset.metainfo)
            if any(isinstance(module, BaseTTAModel) for module in self.model.modules()):
                # mmpretrain's EMAHook would not find the names of its copy of this wrapper
                content['state_dict'] = evaluated_weights(self.cfg, content)
                content.pop('ema_state_dict', None)
        elif self.resumed is None:
            content = read_start(filename, model)
        else:
            content, self.resumed = self.resumed, None
            state = extract_state_dict(content, prefix='', name=filename)
            check_state_dict(state, model, name=filename)
            content['meta'].pop('config', None)  # mmengine would execute it as Python code
        self.call_hook('after_load_checkpoint', checkpoint=content)
        model.load_state_dict(content['state_dict'], strict=False)
        self.logger.info(f'Load checkpoint from {filename}')
        return content

    def dump_config(self) -> None:
        """Do nothing. mmengine calls this for each runner, but only :meth:`train` writes it."""

    @master_only
    def _record_start(self) -> None:
        """Move the files of an earlier training, and write the config unless it is the source."""
        file, source = recorded_config(self), self.cfg.filename
        is_source = bool(source) and file.exists() and file.samefile(source)
        resumed = resumed_from(self)
        if resumed is None or Path(resumed).resolve().parent != Path(self.work_dir).resolve():
            moved = set_aside(self.work_dir, self.timestamp, None if is_source else file)
            if moved is not None:
                self.logger.warning(f"the files of an earlier training are now in '{moved}'")
        if not is_source:
            write_atomically(file, self.cfg.dump().encode())

    @contextmanager
    def _nothing_left(self) -> Iterator[None]:
        """Remove the log of a run that fails before its first iteration, and a new work dir."""
        try:
            yield
        except BaseException:
            if self._has_own_log and not self._begun:
                shutil.rmtree(self.log_dir, ignore_errors=True)
                if self.made_work_dir:
                    _remove_empty(self.work_dir)
            raise

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """Register the default hooks that are not None."""
        kept = {k: v for k, v in (hooks or {}).items() if v is not None or k in REMOVABLE}
        super().register_default_hooks(kept)

    def register_hooks(self, *args: Any, **kwargs: Any) -> None:
        """Register the hooks, and check arguments that they pass on without looking at them."""
        super().register_hooks(*args, **kwargs)
        for hook in self.hooks:
            # mmpretrain's VisualizationHook
            passed = getattr(hook, 'draw_args', {})
            takes: Any = getattr(self.visualizer, 'visualize_cls', None)
            if isinstance(hook, CheckpointHook):
                passed, takes = hook.args, self.save_checkpoint
            known = inspect.signature(takes).parameters if takes else {}
            if not takes or any(p.kind is p.VAR_KEYWORD for p in known.values()):
                continue
            for key in passed:
                if key not in known:  # name_fault recognises Python's own sentence
                    name = type(hook).__name__
                    raise TypeError(f"{name}.__init__() got an unexpected keyword argument '{key}'")

    def setup_env(self, env_cfg: dict) -> None:
        """Set up the environment as mmengine does, but join other processes also without a GPU."""
        if self.distributed and get_device() == 'cpu':
            join_processes(self.launcher, env_cfg)
        super().setup_env(env_cfg)
        folder = Path(self.work_dir, self.timestamp)
        self._has_own_log = is_main_process() and not folder.exists()

    def wrap_model(self, model_wrapper_cfg: dict | None, model: torch.nn.Module) -> torch.nn.Module:
        """Wrap the model as mmengine does, also without a GPU."""
        if self.distributed and get_device() == 'cpu':
            if self.cfg.get('sync_bn'):  # torch supports it only on GPUs
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

    def build_visualizer(self, *args: Any, **kwargs: Any) -> Visualizer:
        """Build the visualizer, but keep the config from its backends until the run has begun.

        mmengine would give it to them at once, and a tracker starts its log with it.
        """
        built = super().build_visualizer(*args, **kwargs)
        built.add_config = lambda _: None  # until _record_config
        return built

    def _record_config(self) -> None:
        """Give the config to the backends of the visualizer."""
        self.visualizer.__dict__.pop('add_config', None)  # that of build_visualizer
        self.visualizer.add_config(self.cfg)

    def build_logger(self, *args: Any, **kwargs: Any) -> logging.Logger:
        """Build mmengine's logger and hide INFO messages on the console until the runner is built.

        The log file contains all messages.
        """
        logger = super().build_logger(*args, **kwargs)
        self._while_built.enter_context(file_only(logger))
        self._while_built.enter_context(warnings_to_file(logger))
        return logger

    def build_train_loop(self, loop: Any) -> Any:
        """Build the training loop and its data set."""
        with config_faults(self.cfg), prints_to_file(self.logger):
            built = super().build_train_loop(loop)
        self._check_loader(built, 'train')
        return built

    def build_val_loop(self, loop: Any) -> Any:
        """Build the validation loop and its data set, and check the metrics that hooks need."""
        with config_faults(self.cfg), prints_to_file(self.logger):
            built = super().build_val_loop(loop)
        self._check_loader(built, 'val')
        check_metrics(self, built.evaluator, self.hooks)
        return built

    def build_test_loop(self, loop: Any) -> Any:
        """Build the test loop and its data set, and check its metrics."""
        with config_faults(self.cfg), prints_to_file(self.logger):
            built = super().build_test_loop(loop)
        self._check_loader(built, 'test')
        check_metrics(self, built.evaluator)
        return built

    def _check_loader(self, loop: Any, split: str) -> None:
        """Check the data loader of a loop before its first batch."""
        with config_faults(self.cfg):
            dataset_reader(loop.dataloader.dataset)
        check_batches(loop.dataloader, split, config_name(self.cfg))

    def build_evaluator(self, evaluator: Any) -> Any:
        """Build the evaluator. mmengine's warnings about metrics go only to the log file."""
        with file_only(self.logger, errors=True):
            return super().build_evaluator(evaluator)

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Build the optimizer. The list of its parameters goes only to the log file."""
        with config_faults(self.cfg), file_only(self.logger):
            return super().build_optim_wrapper(optim_wrapper)

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Build the learning rate schedules."""
        with config_faults(self.cfg):
            return super().build_param_scheduler(scheduler)


def join_processes(launcher: str, env_cfg: Mapping[str, Any]) -> None:
    """Join the other processes of a launcher, unless this is done. Without a GPU, use gloo."""
    if is_distributed():
        return
    if get_device() == 'cpu':
        torch.distributed.init_process_group('gloo')
        return
    set_multi_processing(**(env_cfg.get('mp_cfg') or {}), distributed=True)
    init_dist(launcher, **(env_cfg.get('dist_cfg') or {}))


def build_runner(cfg: Config, launcher: str = 'none') -> Runner:
    """Build the runner of a config. The default type is :class:`CheckedRunner`."""
    cfg.launcher = launcher
    made = not Path(cfg.work_dir).exists()
    make_folder('--work-dir', cfg.work_dir)
    runner = RUNNERS.get(cfg.get('runner_type', 'CheckedRunner'))
    if runner is None:
        raise ConfigError(
            f"{config_name(cfg)}: unknown runner_type '{cfg.runner_type}'; use CheckedRunner, or "
            'import the module of your runner in custom_imports'
        )
    try:
        with config_faults(cfg):
            built = runner.from_cfg(cfg)
    except BaseException:
        if made:
            _remove_empty(cfg.work_dir)
        raise
    if isinstance(built, CheckedRunner):
        built.made_work_dir = made
    return built


def _remove_empty(folder: str) -> None:
    with suppress(OSError):  # it has files
        Path(folder).rmdir()


def rehearse(cfg: Config) -> list[str]:
    """Build all that a training and a test of a config build, but write and run nothing.

    Returns:
        The warnings that the training would log before its first iteration.

    Raises:
        EvitError: :func:`~evit_mm.runner.train.train` or :func:`~evit_mm.runner.test.test` would
            raise the same error.
    """
    cfg, notes = copy.deepcopy(cfg), []
    drop_trackers(cfg)
    with TemporaryDirectory() as cfg.work_dir:  # a runner needs one
        runner = build_runner(cfg)
        if cfg.get('train_cfg') is not None:
            with config_faults(cfg):
                runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
                runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
                assert runner.train_loop is not None
                if runner.param_schedulers is not None:
                    schedules = runner.build_param_scheduler(runner.param_schedulers)
                    runner.param_schedulers = schedules
                    notes = schedule_notes(runner)
            if cfg.get('val_cfg') is not None:
                assert runner.val_loop is not None  # the property builds it
        assert runner.test_loop is not None
        with config_faults(cfg):
            runner.call_hook('before_run')
        for handler in list(runner.logger.handlers):
            if isinstance(handler, logging.FileHandler):  # its folder is about to be removed
                handler.close()
                runner.logger.removeHandler(handler)
    return notes


def load_detector(cfg: Config, checkpoint: str | Path) -> torch.nn.Module:
    """Build the detector or classifier of a config and load a checkpoint.

    The model is in eval mode and on the current device. Its ``dataset_meta`` contains the class
    names.
    """
    from mmdet.registry import MODELS

    init_default_scope(cfg.get('default_scope', 'mmdet'))
    with config_faults(cfg):
        if cfg.get('data_preprocessor'):  # as mmengine's runner does
            cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
        model = MODELS.build(cfg.model)
    model.dataset_meta = test_metainfo(cfg)
    content = read_fitting(checkpoint, model, model.dataset_meta)
    model.load_state_dict(evaluated_weights(cfg, content), strict=False)
    if isinstance(model.dataset_meta, Mapping):  # the classes of image folders are in no config
        model.dataset_meta = {**content['meta'].get('dataset_meta', {}), **model.dataset_meta}
    model.cfg = cfg
    return model.to(get_device()).eval()


def init_backbone(cfg: Config) -> None:
    """Build the backbone of a detector and load its ImageNet weights, to find errors early.

    Raises:
        CheckpointError: The weights cannot be read, or do not fit.
        ConfigError: The backbone cannot be built.
    """
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    with config_faults(cfg):
        backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()


def test_metainfo(cfg: Config) -> dict[str, Any]:
    """Return the metainfo of the test set, with its class names. Its files are not read."""
    from mmdet.registry import DATASETS

    init_default_scope(cfg.get('default_scope', 'mmdet'))
    with config_faults(cfg):
        return DATASETS.build({**cfg.test_dataloader.dataset, 'lazy_init': True}).metainfo


def set_device(device: str | None) -> None:
    """Set the device that mmengine uses in this process."""
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
    # mmengine has no setter; get_device() returns this module constant
    mmengine.device.utils.DEVICE = chosen.type


def make_folder(flag: str, folder: str | Path) -> None:
    """Create an output folder early, so that an error does not come after a long run."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{flag}: folder '{folder}' cannot be created ({error}); choose another folder"
        ) from None


@contextmanager
def config_faults(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Convert errors during the build of a component to a ConfigError that names the config.

    Use this context only around build calls, so that other errors are not converted.
    """
    try:
        yield
    except EvitError:
        raise
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        text = str(error.args[0] if error.args else error)
        named = name_fault(cfg, text)
        if named is not None:
            raise ConfigError(f'{config_name(cfg)}: {named}') from error
        said = text.replace('.__init__() got an unexpected keyword argument', ' has no argument')
        kind = '' if isinstance(error, ValueError) or said != text else f'{type(error).__name__}: '
        raise ConfigError(f'{config_name(cfg)}: {kind}{said}') from error
