"""From a config to a run: what the tools for training and testing call."""

from __future__ import annotations

import inspect
import logging
import os
import re
import subprocess
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mmengine.device.utils
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from .. import models
from ..checkpoint import (
    DERIVED,
    check_state_dict,
    extract_state_dict,
    metadata_of,
    plain_weights_of,
    read_checkpoint,
    tensors_of,
)
from ..data.check import check_config_data
from ..data.check_images import check_image_data
from ..deploy.export.files import EXPORTED_SUFFIXES, describe
from ..errors import CheckpointError, ConfigError, EvitError
from ..utils.package_files import find_config
from ..utils.text import did_you_mean
from . import find_last_good, named_faults
from .checkpoints import unwrap
from .config_check import check_values
from .console import quieten
from .hooks import DropCheckpointConfigHook, FuseHook
from .resuming import ResumedOptimizerHook
from .setup import be_deterministic, log_provenance, use_safe_parts
from .summary import summarised
from .tracking import TrackingHook, add_trackers, drop_trackers

# files of mmengine's in which modules and optimizers are built from a config
BUILDERS = ('build_functions.py', 'default_constructor.py')
# what torch reads, and under which name Slurm has it
SLURM_NAMES = {
    'RANK': 'SLURM_PROCID',
    'WORLD_SIZE': 'SLURM_NTASKS',
    'LOCAL_RANK': 'SLURM_LOCALID',
}


class CheckedRunner(Runner):
    """mmengine's runner, which loads what has been read and checked before it was started."""

    content: dict[str, Any] | None = None

    def build_logger(self, *args: Any, **kwargs: Any) -> logging.Logger:
        """Build mmengine's logger, whose console says what a person reads."""
        logger = super().build_logger(*args, **kwargs)
        quieten(logger, self)
        return logger

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load ``content`` where it is set, else as mmengine does.

        mmengine calls this when hooks such as EMA's are ready for it, and after initialisation.
        """
        if self.content is None:
            return super().load_checkpoint(filename, *args, **kwargs)
        content, self.content = self.content, None
        self.call_hook('after_load_checkpoint', checkpoint=content)
        unwrap(self.model).load_state_dict(content['state_dict'], strict=False)
        self.logger.info(f'Load checkpoint from {filename}')
        return content


def train(
    config: str | Path,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    launcher: str = 'none',
    cfg_options: Mapping[str, Any] | None = None,
    seed: int | None = None,
    device: str | None = None,
    hooks: Sequence[Hook] = (),
    deterministic: bool = False,
    track: Sequence[str] = (),
) -> Runner:
    """Train a detector or a classifier as its config says.

    Args:
        config: Config file.
        work_dir: Where logs and checkpoints go; else the config's, else ``work_dirs/NAME``.
        resume: ``'auto'`` goes on from the last whole checkpoint in ``work_dir``, if there is one;
            a path goes on from that file. Losses and weights are those of a run that was never
            interrupted, see :class:`~evit_mm.runner.ExactTrainLoop`.
        amp: Train in mixed precision.
        auto_scale_lr: Scale the learning rate to the actual batch size.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        cfg_options: Overrides of the config, dotted keys.
        seed: Seed of everything random; None draws one, which the log states.
        device: ``'cpu'``, ``'cuda'``, ``'cuda:1'``, ...; None takes a GPU where there is one.
        hooks: Further hooks of the caller's own.
        deterministic: Take only operations that give the same bits in each run on one machine.
        track: Where scalars and pictures go besides the work dir, out of
            :data:`evit_mm.runner.tracking.BACKENDS`.

    Returns:
        The runner, after training.

    Raises:
        EvitError: The config, the data set or a checkpoint cannot be used, the loss is not finite,
            or the run cannot go on because the disk is full or a process has died.
    """
    cfg = load_config(config, cfg_options, work_dir)
    set_device(device)
    if amp:
        if mmengine.device.utils.get_device() == 'cpu':
            raise ConfigError('--amp needs a GPU; leave it out to train on the CPU')
        kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
        cfg.optim_wrapper.type = f'Amp{kind.removeprefix("Amp")}'  # mmengine's and evit_mm's alike
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ConfigError(f'{config}: --auto-scale-lr needs auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    if seed is not None:
        cfg.randomness = {**cfg.get('randomness', {}), 'seed': seed}
    if seed is not None and not 0 <= seed < 2**32:
        raise ConfigError(f'--seed must be from 0 to 2**32 - 1, got {seed}')
    if deterministic:
        be_deterministic(cfg)
    use_safe_parts(cfg)
    resumed = _prepare_resume(cfg, resume)
    if track:
        _check_folder('--work-dir', cfg.work_dir)
        hooks = [*hooks, TrackingHook(track, add_trackers(cfg, track, _is_first_process()))]
    if _is_first_process():
        check_config_data(cfg, ('train', 'val'))
        check_image_data(cfg, ('train', 'val'))
    runner = build_runner(cfg, launcher)
    runner.register_hook(ResumedOptimizerHook())
    for hook in hooks:
        runner.register_hook(hook)
    if resumed is not None:
        state = extract_state_dict(resumed, prefix='', name=str(cfg.load_from))
        check_state_dict(state, unwrap(runner.model), name=str(cfg.load_from))
        runner.content = resumed
    elif cfg.get('load_from'):
        runner.content = _read_start(cfg.load_from, unwrap(runner.model))
    log_provenance(runner)
    with config_faults(cfg), named_faults(), summarised(runner):
        runner.train()
    return runner


def test(
    config: str | Path,
    checkpoint: str | Path,
    out: str | None = None,
    show_dir: str | None = None,
    work_dir: str | None = None,
    launcher: str = 'none',
    cfg_options: Mapping[str, Any] | None = None,
    device: str | None = None,
    fuse: bool = False,
) -> dict[str, float]:
    """Evaluate a checkpoint on the config's test set.

    Args:
        config: Config file.
        checkpoint: What :func:`train` saved; for a classifier also the authors' ImageNet file; or
            what :func:`evit_mm.deploy.export.export` wrote.
        out: ``FILE.pkl`` takes the library's dump of all predictions, ``FILE.json`` COCO-style
            results of a detector; those of masks, which may have scores of their own, go to
            ``FILE.segm.json`` beside it.
        show_dir: Folder for pictures: ground truth on the left and detections on the right, or
            true and predicted class.
        work_dir: As in :func:`train`.
        launcher: As in :func:`train`.
        cfg_options: As in :func:`train`.
        device: As in :func:`train`.
        fuse: Test the fast form, see :func:`evit_mm.deploy.fuse`.

    Returns:
        The metrics by name.

    Raises:
        EvitError: The config, the data set or the checkpoint cannot be used.
    """
    cfg = load_config(config, cfg_options, work_dir)
    if out and not out.endswith(('.pkl', '.pickle', '.json')):
        raise ConfigError(f"--out '{out}' must end in .pkl or .json")
    if out and out.endswith('.json'):
        if is_classifier(cfg):
            raise ConfigError(f"--out '{out}': a classifier's predictions go to FILE.pkl")
        if not isinstance(cfg.test_evaluator, Mapping):
            raise ConfigError(f"{config}: --out '{out}' needs one test_evaluator, not a list")
        cfg.test_evaluator.outfile_prefix = f'{out}.partial'
    for flag, folder in (('--out', out and Path(out).parent), ('--show-dir', show_dir)):
        _check_folder(flag, folder or '.')
    if show_dir:
        folder = os.path.abspath(show_dir)
        if is_classifier(cfg):
            hook = {'enable': True, 'interval': 1, 'out_dir': folder}
        else:
            hook = {'draw': True, 'test_out_dir': folder}
        cfg.default_hooks.visualization.update(hook)
    exported = Path(checkpoint).suffix in EXPORTED_SUFFIXES
    if exported:
        if fuse:
            raise ConfigError(f"--fuse: '{checkpoint}' has its form already")
        if launcher != 'none':
            raise ConfigError(f"--launcher {launcher}: '{checkpoint}' runs in one process alone")
        described = _put_exported(cfg, checkpoint)
    _drop_pretrained(cfg)
    drop_trackers(cfg)
    set_device(device)
    if _is_first_process():
        check_config_data(cfg, ('test',))
        check_image_data(cfg, ('test',))
    runner = build_runner(cfg, launcher)
    if fuse:
        runner.register_hook(FuseHook())
    metainfo = runner.test_dataloader.dataset.metainfo
    if exported:
        metadata = unwrap(runner.model).exported.metadata
        _check_classes({'meta': {'dataset_meta': metadata}}, metainfo, checkpoint)
        _check_preparation(metadata, described, checkpoint)
        runner._load_from, runner._resume = None, False
    else:
        runner.content = _read_fitting(checkpoint, unwrap(runner.model), metainfo)
        runner._load_from, runner._resume = str(checkpoint), False
    if out and not out.endswith('.json'):
        if is_classifier(cfg):
            from mmengine.evaluator import DumpResults
        else:
            from mmdet.evaluation import DumpDetResults as DumpResults

        runner.test_evaluator.metrics.append(DumpResults(out_file_path=out))
    with config_faults(cfg), named_faults():
        metrics = runner.test()
    if out and out.endswith('.json') and runner.rank == 0:
        # CocoMetric appends the kind of result to its prefix
        for kind, target in (('bbox', out), ('segm', out.removesuffix('.json') + '.segm.json')):
            with suppress(FileNotFoundError):
                Path(f'{out}.partial.{kind}.json').replace(target)
    return metrics


def load_config(
    config: str | Path,
    cfg_options: Mapping[str, Any] | None = None,
    work_dir: str | None = None,
) -> Config:
    """Read a config, apply overrides and settle its work dir.

    Args:
        config: Config file, or the name of one that comes along: ``retinanet_evit_m4_coco``.
        cfg_options: Overrides, dotted keys.
        work_dir: Overrides the config's.

    Returns:
        The config.

    Raises:
        ConfigError: The file is missing or broken, or a top-level key is misspelt.
    """
    config = find_config(config)
    known = set(inspect.signature(Runner.__init__).parameters) | {'auto_scale_lr'}
    try:  # a config is a program and can fail in any way
        cfg = Config.fromfile(str(config))
        own = set(cfg)
        if cfg_options:
            cfg.merge_from_dict(dict(cfg_options))
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
        raise ConfigError(f"config '{config}' cannot be read ({reason})") from error
    for key in set(cfg) - known:
        # a config may name things of its own; on the command line a new name is a slip
        hint = did_you_mean(key, known, cutoff=0.85 if key in own else 0.5)
        if hint or key not in own:
            raise ConfigError(f"{config}: unknown key '{key}'{hint}")
    for key in ('model', 'test_dataloader'):
        if not isinstance(cfg.get(key), Mapping):
            raise ConfigError(f"{config}: '{key}' is missing")
    check_values(cfg, str(config))
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(config).stem)
    return cfg


def build_runner(cfg: Config, launcher: str = 'none') -> Runner:
    """Build mmengine's runner; several processes without a GPU talk over gloo.

    Raises:
        ConfigError: The model has an argument that does not exist.
    """
    cfg.launcher = launcher
    _check_folder('--work-dir', cfg.work_dir)
    if launcher != 'none' and mmengine.device.utils.get_device() == 'cpu':
        _join_without_gpu(launcher)
        if cfg.pop('sync_bn', None):  # torch has it for GPUs alone
            text = 'sync_bn needs GPUs; here each process keeps BatchNorm statistics of its own'
            print_log(text, logger='current', level=logging.WARNING)
        cfg.setdefault(
            'model_wrapper_cfg',
            {
                'type': 'MMDistributedDataParallel',
                'device_ids': None,
                'broadcast_buffers': False,
                'find_unused_parameters': cfg.get('find_unused_parameters', False),
            },
        )
    with config_faults(cfg):
        runner = CheckedRunner.from_cfg(cfg)
    # here and not only in the configs, whose custom_hooks a user's own list replaces
    runner.register_hook(DropCheckpointConfigHook())
    return runner


def _join_without_gpu(launcher: str) -> None:
    """Join the other processes over gloo; mmengine's own initialisation asks for a GPU."""
    if launcher == 'slurm':
        nodes = os.environ.get('SLURM_NODELIST', 'localhost')
        if 'MASTER_ADDR' not in os.environ:
            shown = subprocess.run(['scontrol', 'show', 'hostname', nodes], capture_output=True)
            os.environ['MASTER_ADDR'] = shown.stdout.decode().split()[0]
        os.environ.setdefault('MASTER_PORT', '29500')
        for name, source in SLURM_NAMES.items():
            os.environ[name] = os.environ[source]
    torch.distributed.init_process_group('gloo')


def load_detector(cfg: Config, checkpoint: str | Path) -> torch.nn.Module:
    """Build the config's detector with a checkpoint's weights, in eval mode on the device.

    Returns:
        The detector; ``dataset_meta`` has the class names.

    Raises:
        EvitError: The config or the checkpoint cannot be used.
    """
    from mmdet.registry import DATASETS, MODELS

    _drop_pretrained(cfg)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    with config_faults(cfg):
        model = MODELS.build(cfg.model)
        dataset = {**cfg.test_dataloader.dataset, 'lazy_init': True}
        model.dataset_meta = DATASETS.build(dataset).metainfo
    content = _read_fitting(checkpoint, model, model.dataset_meta)
    model.load_state_dict(content['state_dict'], strict=False)
    model.cfg = cfg
    return model.to(mmengine.device.utils.get_device()).eval()


def set_device(device: str | None) -> None:
    """Choose the device of this process, as mmengine sees it.

    Raises:
        ConfigError: The device does not exist here.
    """
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
        raise ConfigError(f"--device '{device}' cannot be used here: {reason}") from None
    mmengine.device.utils.DEVICE = chosen.type


def _prepare_resume(cfg: Config, resume: str | None) -> dict[str, Any] | None:
    """Point the config at the checkpoint, take over its seed, and return what it holds."""
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    cfg.resume = False
    if resume is None:
        return None
    found = find_last_good(cfg.work_dir) if resume == 'auto' else (resume, read_checkpoint(resume))
    if found is None:
        return None
    path, content = found
    if not isinstance(content, Mapping) or 'optimizer' not in content:
        raise CheckpointError(
            f"'{path}' has weights but no optimizer state, so it cannot be resumed; start from it "
            f'with --cfg-options load_from={path}'
        )
    cfg.resume, cfg.load_from = True, str(path)
    seed, chosen = (content.get('meta') or {}).get('seed'), cfg.get('randomness', {}).get('seed')
    if None not in (seed, chosen) and seed != chosen:
        raise ConfigError(
            f"'{path}' was trained with seed {seed} and not {chosen}; leave the seed out to go on"
        )
    if seed is not None:
        # mmengine restores the seed only after the sampler has drawn its own
        cfg.randomness = {**cfg.get('randomness', {}), 'seed': seed}
    return {**content, 'state_dict': tensors_of(content, name=str(path))}


def _read_fitting(
    checkpoint: str | Path, model: torch.nn.Module, metainfo: Mapping[str, Any]
) -> dict[str, Any]:
    """Read a checkpoint that fits the model and its class names; weights under ``state_dict``."""
    content = read_checkpoint(checkpoint)
    state = _translated(extract_state_dict(content, prefix='', name=str(checkpoint)), model)
    check_state_dict(state, model, name=str(checkpoint))
    meta = metadata_of(content)
    _check_classes({'meta': meta}, metainfo, checkpoint)
    # the model's own BatchNorm counters complete it: EMA's hook exchanges entry by entry
    read = {'meta': meta, 'state_dict': {**model.state_dict(), **state}}
    plain = plain_weights_of(content)
    if plain:
        weights = {key: value for key, value in plain.items() if key != 'steps'}
        weights = extract_state_dict(weights, prefix='', name=str(checkpoint))
        check_state_dict(weights, model, name=str(checkpoint))
        read['ema_state_dict'] = plain
    return read


def _read_start(path: str, model: torch.nn.Module) -> dict[str, Any]:
    """Read ``load_from``: only a head may differ, as with another number of classes."""
    state = _translated(extract_state_dict(read_checkpoint(path), prefix='', name=path), model)
    body = torch.nn.Module()
    for name in ('backbone', 'neck'):
        if getattr(model, name, None) is not None:
            body.add_module(name, getattr(model, name))
    part = {k: v for k, v in state.items() if k.split('.')[0] in ('backbone', 'neck')}
    check_state_dict(part, body, name=path)
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    left_out = [key for key in (*state, *own) if key not in fitting and not key.endswith(DERIVED)]
    if left_out:
        names = ', '.join(sorted(set(left_out)))
        text = f"'{path}' has another head; these stay as they were initialised: {names}"
        print_log(text, logger='current', level=logging.WARNING)
    whole = {k: v for k, v in {**own, **fitting}.items() if not k.endswith(DERIVED)}
    check_state_dict(whole, model, name=path)
    return {'state_dict': {**own, **fitting}}


def _translated(state: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Let a model that knows other names, such as the authors', give the tensors its own."""
    translate = getattr(model, 'translate_state_dict', None)
    return state if translate is None else translate(state)


def _check_classes(
    content: Mapping[str, Any], metainfo: Mapping[str, Any], checkpoint: str | Path
) -> None:
    """Refuse class names that the checkpoint was not trained with; labels are only numbers."""
    trained = ((content.get('meta') or {}).get('dataset_meta') or {}).get('classes')
    if trained is not None and list(trained) != list(metainfo['classes']):
        raise ConfigError(
            f"'{checkpoint}' was trained with the classes {tuple(trained)}, the config names "
            f'{tuple(metainfo["classes"])}; set metainfo.classes to those of the checkpoint'
        )


def _check_folder(flag: str, folder: str | Path) -> None:
    """Make a folder that results go to, before anything long starts."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{flag}: the folder '{folder}' cannot be made ({error})") from None


def _check_preparation(
    metadata: Mapping[str, Any], described: Mapping[str, Any], file: str | Path
) -> None:
    """Refuse a config that prepares images, or chooses detections, unlike an exported file's."""
    for key in ('mean', 'std', 'channels', 'pad_value', 'score_thr'):
        if key in metadata and metadata[key] != described[key]:
            raise ConfigError(
                f"'{file}' was exported with {key}={metadata[key]}, the config has "
                f'{described[key]}; set it back, or export again'
            )


def _put_exported(cfg: Config, file: str | Path) -> dict[str, Any]:
    """Put an exported file in the model's place; return what the config says of its use."""
    preprocessor = cfg.model.get('data_preprocessor')
    if is_classifier(cfg) or preprocessor is None:
        raise ConfigError(f"'{file}': only a detector's exported file can be evaluated")
    described = describe(cfg, ())
    cfg.model = ConfigDict(type='ExportedDetector', file=str(file), data_preprocessor=preprocessor)
    return described


def _drop_pretrained(cfg: Config) -> None:
    """A checkpoint is about to be loaded; do not fetch ImageNet weights first."""
    for part in (cfg.model, cfg.model.get('backbone')):
        if isinstance(part, ConfigDict):
            part.pop('init_cfg', None)


def is_classifier(cfg: Config) -> bool:
    """Whether a config is mmpretrain's, and so classifies whole images."""
    return cfg.get('default_scope') == 'mmpretrain'


def _is_first_process() -> bool:
    return os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0'


@contextmanager
def config_faults(cfg: Config) -> Iterator[None]:
    """Turn a misspelt argument anywhere in the config into one clear sentence."""
    try:
        yield
    except (TypeError, KeyError, ValueError) as error:
        if isinstance(error, EvitError):
            raise
        text = str(error.args[0] if error.args else error)
        frames = traceback.extract_tb(error.__traceback__)
        if Path(frames[-1].filename).parent == Path(models.__file__).parent:
            raise ConfigError(f'{cfg.filename}: {error.args[0]}') from error
        argument = re.search(
            r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text
        )
        if argument:
            raise ConfigError(
                f"{cfg.filename}: {argument[1]} has no argument '{argument[2]}'"
            ) from error
        if 'is not in the' in text and 'registry' in text:
            raise ConfigError(f'{cfg.filename}: {text.split(". ")[0]}') from error
        if any(Path(frame.filename).name in BUILDERS for frame in frames):
            # raised while mmengine built something from the config
            raise ConfigError(f'{cfg.filename}: {type(error).__name__}: {text}') from error
        raise
