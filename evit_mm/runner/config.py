"""Load a config, apply the overrides of the command line, and check its keys."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mmengine.registry
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import Registry
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..errors import ConfigError
from ..utils.package_files import find_config, project_path
from ..utils.text import did_you_mean
from .variables import ABSENT, Source, leaves, read_source, set_variables, unread

RUNNER_KEYS = tuple(inspect.signature(Runner.__init__).parameters)
# keys that the tools of mmengine and mmdet read in addition to the arguments of the runner
TOOL_KEYS = ('auto_scale_lr', 'custom_imports', 'runner_type')
# keys that they read, too, and that are not worth a suggestion
OTHER_KEYS = (
    'compile',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
    'variables',
)
# test_cfg keys of mmdet's heads; a head ignores keys that it does not use
TEST_KEYS = (
    'nms_pre',
    'nms_post',
    'min_bbox_size',
    'score_thr',
    'conf_thr',
    'nms',
    'max_per_img',
    'mask_thr_binary',
    'mask_thr',
    'multi_label',
    'rpn',
    'rcnn',
)

KINDS = ('.py', '.json', '.yaml', '.yml')
# smallest value and type of fields that are often set on the command line
NUMBERS = {
    **dict.fromkeys(('train_cfg.max_epochs', 'train_cfg.max_iters', 'train_cfg.val_interval'), 1),
    **dict.fromkeys([f'{split}_dataloader.batch_size' for split in ('train', 'val', 'test')], 1),
    **dict.fromkeys([f'{split}_dataloader.num_workers' for split in ('train', 'val', 'test')], 0),
    'optim_wrapper.accumulative_counts': 1,
    **dict.fromkeys(('optim_wrapper.optimizer.lr', 'optim_wrapper.optimizer.weight_decay'), 0.0),
}


def load_config(
    config: str | Path,
    cfg_options: Mapping[str, Any] | None = None,
    work_dir: str | None = None,
) -> Config:
    """Load a config, apply overrides and set its work dir. Log the notes of :func:`read_config`.

    Args:
        config: Config file, or the name of a config of this package, such as
            ``retinanet_evit_m4_coco``.
        cfg_options: Overrides with dotted keys.
        work_dir: Work dir. None uses the work dir of the config, by default ``work_dirs/NAME``.

    Raises:
        ConfigError: The file is missing or invalid, a key is misspelled, or an override has no
            effect.
    """
    cfg, notes = read_config(config, cfg_options, work_dir)
    for note in notes:
        print_log(note, 'current', logging.WARNING)
    return cfg


def read_config(
    config: str | Path,
    cfg_options: Mapping[str, Any] | None = None,
    work_dir: str | None = None,
) -> tuple[Config, list[str]]:
    """Return what :func:`load_config` returns, and notes on settings without an effect."""
    config, options = find_config(config), dict(cfg_options or {})
    if config.suffix not in KINDS:
        raise ConfigError(
            f"'{config}' is not a config; the name of a config ends in {', '.join(KINDS)}"
        )
    try:  # a config is a Python program and can raise any exception
        cfg = Config.fromfile(str(config))
        source = read_source(Path(config))
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
        raise ConfigError(f"config '{config}' cannot be read ({reason})") from error
    read = {name for file in source.chain() for name in (*file.read, *file.read_of_bases)}
    variables = {*(cfg.get('variables') or ())} & read
    known = {*RUNNER_KEYS, *TOOL_KEYS, *OTHER_KEYS, *variables}
    notes = list(_check_names(cfg, source, known))
    _check_options(cfg, options, known, read)
    chosen = {name: value for name, value in options.items() if name in variables}
    cfg, idle = set_variables(cfg, source, chosen, known)
    for name in idle:
        text = f"nothing in {config} depends on '{name}'; {_fix(cfg, name, 'remove it')}"
        if name in chosen:
            raise ConfigError(f'--cfg-options {name}: {text}')
        notes.append(text)
    merge_options(cfg, {k: v for k, v in options.items() if k not in chosen}, f' to {config}')
    for key in ('model', 'test_dataloader'):
        if not isinstance(cfg.get(key), Mapping):
            raise ConfigError(
                f"{config}: '{key}' is missing or not a dict; define it or inherit it with _base_"
            )
    check_test_keys(cfg.model.get('test_cfg'), str(config))
    check_numbers(cfg, str(config))
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(config).stem)
    return cfg, notes


def merge_options(cfg: Config, options: Mapping[str, Any], where: str = '') -> None:
    """Apply overrides with dotted keys in-place.

    Raises:
        ConfigError: An override does not fit the config, which the error names by ``where``.
    """
    try:
        cfg.merge_from_dict(dict(options))
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
        raise ConfigError(f'--cfg-options cannot be applied{where} ({reason})') from error


def config_name(cfg: Mapping[str, Any]) -> str:
    """Return the file of a config, or ``'the config'`` if it has none."""
    return str(getattr(cfg, 'filename', None) or 'the config')


def _check_names(cfg: Config, source: Source, known: set[str]) -> Iterator[str]:
    """Reject misspelled top-level names, and yield a note for each other name without a reader.

    A config can use further names for its own expressions.
    """
    assigned = {name for file in source.chain() for name, _ in file.assigned}
    names = [(source, key) for key in cfg if key not in assigned and key not in known]
    for file, key in [*names, *unread(source, known)]:
        # in a config without a base, such as that of a work dir, a variable can be a result
        words = known - {*OTHER_KEYS} if file.bases else {*RUNNER_KEYS, *TOOL_KEYS}
        if hint := did_you_mean(key, words, cutoff=0.85):
            raise ConfigError(f"{cfg.filename}: unknown key '{key}'{hint}")
        if not file.bases or file.file.is_relative_to(project_path('configs')):
            continue
        value, *below = file.literals(key)
        if value is ABSENT or value not in below:
            hint = did_you_mean(key, words, cutoff=0.75 if below else 0.6)
            fix = _fix(cfg, key) if below else 'remove it or use it'
            yield f"{file.file}: nothing reads '{key}'{hint}; {fix}"


def _check_options(
    cfg: Config, options: Mapping[str, Any], known: set[str], read: set[str]
) -> None:
    """Reject overrides of unknown keys, and of names that the config has read before."""
    for option in options:
        key = option.split('.')[0]
        if key in (cfg.get('variables') or ()) and key not in {*cfg} & read:
            fix = _fix(cfg, key, 'remove it')
            raise ConfigError(
                f"--cfg-options {option}: nothing in {cfg.filename} depends on '{key}'; {fix}"
            )
        hint = did_you_mean(key, known - {key, *OTHER_KEYS})
        if key in known:
            continue
        if key not in cfg:
            fix = hint or '; remove it or correct its name'
            raise ConfigError(f"{cfg.filename}: unknown key '{key}'{fix}")
        if key in read:
            raise ConfigError(
                f"--cfg-options {option}: {cfg.filename} uses '{key}' before the options are "
                f'applied{hint}; {_fix(cfg, key)}'
            )


def _fix(cfg: Config, name: str, otherwise: str = 'set the keys that use it') -> str:
    """Return a hint with keys that have the name, or the value, of a top-level variable."""
    uses = [
        '.'.join(map(str, path))
        for path, value in leaves(cfg.to_dict())
        if path[0] in RUNNER_KEYS and len(path) > 1 and isinstance(path[-1], str)
        if path[-1] == name
        or (
            value == cfg.get(name, ABSENT)
            and (name.endswith(f'_{path[-1]}') or path[-1].endswith(f'_{name}'))
        )
    ]
    return f'set the keys that use it, such as {" and ".join(uses[:2])}' if uses else otherwise


def is_classifier(cfg: Mapping[str, Any]) -> bool:
    """Return whether a config is for a classifier, which uses mmpretrain."""
    return cfg.get('default_scope') == 'mmpretrain'


def check_test_keys(test_cfg: Any, name: str, where: str = 'model.test_cfg') -> None:
    """Reject misspelled keys. Accept other unknown keys, because custom heads can use them."""
    if not isinstance(test_cfg, Mapping):
        return
    for key, value in test_cfg.items():
        hint = did_you_mean(key, TEST_KEYS, cutoff=0.75)
        if key not in TEST_KEYS and hint:
            raise ConfigError(f"{name}: unknown key '{where}.{key}'{hint}")
        if key in ('rpn', 'rcnn'):
            check_test_keys(value, name, f'{where}.{key}')


def check_numbers(cfg: Config, name: str) -> None:
    """Reject values that are not numbers or too small, before anything is built from them."""
    for key, least in NUMBERS.items():
        value: Any = cfg.to_dict()
        for part in key.split('.'):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            continue
        kinds, what = (
            ((int, float), 'a number') if isinstance(least, float) else (int, 'an integer')
        )
        if not isinstance(value, kinds) or isinstance(value, bool) or not value >= least:
            raise ConfigError(f'{name}: {key} must be {what} of at least {least:g}, got {value!r}')


def checkpoints_of(cfg: Mapping[str, Any]) -> Iterator[str]:
    """Yield the checkpoints that a run reads: ``load_from`` and those of the model."""
    if cfg.get('load_from'):
        yield str(cfg['load_from'])
    for _, node in _nodes(cfg['model'], 'model'):
        if node.get('type') == 'Pretrained' and isinstance(node.get('checkpoint'), str):
            yield node['checkpoint']


def name_fault(cfg: Mapping[str, Any], text: str) -> str | None:
    """Return the message of a failed build with the key that it is about and a suggestion.

    Args:
        cfg: The config.
        text: Message of mmengine about an unknown type, or of Python about an unknown argument.

    Returns:
        The message, or None for other errors.
    """
    known = _registered()
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        fault = _loader_fault(loader, text) if isinstance(loader, Mapping) else None
        if fault is not None:
            return fault.format(f'{split}_dataloader')
    for path, node in _nodes(cfg.to_dict() if isinstance(cfg, Config) else cfg, ''):
        kind = node.get('type', '')
        # mmengine has no message of its own for an unknown optimizer
        lost = path == 'optim_wrapper.optimizer' and 'None is not a callable' in text
        if isinstance(kind, str) and (lost or text.startswith(f'{kind} is not in the ')):
            hint = did_you_mean(kind.split('.')[-1], known)
            first = f'{kind} is not in the registry' if lost else text.partition('. ')[0]
            return f'{path}.type: {first}{hint}; correct the name, or import its module'
        built = known.get(kind.split('.')[-1]) if isinstance(kind, str) else kind
        if path.endswith('_dataloader'):
            built = DataLoader
        classes = built.__mro__ if inspect.isclass(built) else ()
        for key in node:
            unexpected = f".__init__() got an unexpected keyword argument '{key}'"
            if any(f'{part.__name__}{unexpected}' in text for part in classes):
                own = [vars(part)['__init__'] for part in classes if '__init__' in vars(part)]
                arguments = [name for init in own for name in inspect.signature(init).parameters]
                hint = did_you_mean(key, {*arguments} - {'self', 'args', 'kwargs'})
                fix = hint or '; remove it or correct its name'
                return f"{path}.{key}: {classes[0].__name__} has no argument '{key}'{fix}"
    return None


def _loader_fault(loader: Mapping[str, Any], text: str) -> str | None:
    """Return a template with the fix if torch refuses settings of a loader that exclude others."""
    for key, off in (('persistent_workers', False), ('prefetch_factor', None)):
        if loader.get(key) and not loader.get('num_workers') and text.startswith(f'{key} option'):
            return f'{{0}}.{key} needs num_workers above 0; set {{0}}.{key}={off}'
    if loader.get('batch_sampler') and loader.get('drop_last') and 'mutually exclusive' in text:
        return (
            '{0}.drop_last=True has no effect beside {0}.batch_sampler; set {0}.drop_last=False '
            'and {0}.batch_sampler.drop_last=True'
        )
    return None


def _nodes(value: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the path and the content of each dict in a config."""
    items: Any = ()
    if isinstance(value, Mapping):
        yield path, value
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, item in items:
        yield from _nodes(item, f'{path}.{key}' if path else str(key))


def _registered() -> dict[str, Any]:
    """Return all registered classes by name."""
    roots = [found for found in vars(mmengine.registry).values() if isinstance(found, Registry)]
    registries = [*roots, *(child for root in roots for child in root.children.values())]
    return {name: found for registry in registries for name, found in registry.module_dict.items()}
