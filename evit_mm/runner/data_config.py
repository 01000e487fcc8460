"""Write the config for a training on a data folder, for the user to keep and edit.

The config inherits a light detector of this package and sets what follows from the data:

- classes and their number
- image size: the median size of the training images, at most 640 pixels, in multiples of 32
- batch size: 4 below 500 training images, otherwise 8. The blood-cell configs use these two batch
  sizes with the same learning rate.
- epochs: about 1500 iterations, at least 12 and at most 100 epochs
- evaluations: ten in the whole training
"""

from __future__ import annotations

import copy
import json
import os
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from mmengine.config import Config

from ..data.layout import CocoSplit, DataFolder, find_data
from ..errors import ConfigError
from ..utils.files import write_atomically
from ..utils.package_files import project_path
from ..utils.text import counted, did_you_mean
from .config import load_config

DEFAULT_MODEL = 'rtmdet_m0'
SUFFIX = '_bccd.py'  # the configs for small data sets, which train from scratch
DIVISOR, SMALLEST, LARGEST = 32, 128, 640  # pixels
FEW_IMAGES, SMALL_BATCH, BATCH = 500, 4, 8
ITERATIONS, FEWEST_EPOCHS, MOST_EPOCHS = 1500, 12, 100
EVALUATIONS = 10
WIDTH = 100  # columns of the written file


class Code(str):
    """Python source in a rendered value, for example the name of a variable."""

    __slots__ = ()


def data_models() -> dict[str, Path]:
    """Return the base config of each model name: ``rtmdet_m0`` is ``rtmdet_evit_m0_bccd.py``."""
    files = sorted(project_path('configs').glob(f'*{SUFFIX}'))
    return {file.name.removesuffix(SUFFIX).replace('_evit', ''): file for file in files}


def config_for_data(
    data: str | Path,
    model: str = DEFAULT_MODEL,
    work_dir: str | Path | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> tuple[Path, list[str]]:
    """Write the config for a data folder to the work dir, unless it is there.

    Args:
        data: Data folder, see :func:`evit_mm.data.layout.find_data`.
        model: Name from :func:`data_models`.
        work_dir: Work dir. None uses ``work_dirs/MODEL_FOLDER``.
        cfg_options: Overrides with dotted keys, which become part of a new config.

    Returns:
        The config file, and sentences on the data and the config for the user.

    Raises:
        ConfigError: The model is unknown, an override is wrong, or the work dir has a config for
            other data.
        DataError: The data set cannot be used.
    """
    base = _base_of(model)
    name = re.sub(r'\W+', '_', Path(os.path.abspath(data)).name) or 'data'
    stem = f'{model}_{name}'
    file = Path(work_dir or Path('work_dirs') / stem) / f'{stem}.py'
    found = find_data(data)
    lines = describe(data, found)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # the processes of a distributed training come together
        with FileLock(file.parent / '.config.lock'):
            lines += _keep_or_write(file, data, found, base, cfg_options)
    except OSError as error:
        raise ConfigError(
            f"the config cannot be written to '{file.parent}' ({error.strerror}); choose another "
            '--work-dir'
        ) from None
    return file, lines


def _keep_or_write(
    file: Path,
    data: str | Path,
    found: DataFolder,
    base: Path,
    cfg_options: Mapping[str, Any] | None,
) -> list[str]:
    if file.exists():
        _check_same_data(file, found)
        lines = [f"config: '{file}' exists and is used as it is; delete it to write it again"]
        if cfg_options:
            lines.append('config: --cfg-options apply to this run only and are not written there')
        return lines
    write_atomically(file, config_text(data, found, base).encode())
    try:
        load_config(file, cfg_options)
        write_atomically(file, config_text(data, found, base, cfg_options).encode())
    except ConfigError:  # a wrong override must not come back in the next run
        file.unlink()
        raise
    return [f"config: written to '{file}'; edit it to change the training"]


def describe(data: str | Path, found: DataFolder) -> list[str]:
    """Return sentences on what a data folder contains and what was left out."""
    classes = found.train.classes
    images = counted(found.train.num_images, 'image')
    numbers = f'{images} for training, {found.val.num_images} for validation'
    shown = ', '.join(classes[:5]) + (', ...' if len(classes) > 5 else '')
    names = f'{counted(len(classes), "class")} ({shown})'
    return [
        f"data: '{data}' is in {found.format} format: {numbers}, {names}",
        *(f'note: {note}' for note in found.notes),
    ]


def _base_of(model: str) -> Path:
    models = data_models()
    if model not in models:
        hint = did_you_mean(model.lower(), models, cutoff=0.4)
        raise ConfigError(f"unknown --model '{model}'{hint}; choose from {', '.join(models)}")
    return models[model]


def _check_same_data(file: Path, found: DataFolder) -> None:
    dataset = load_config(file).get('train_dataloader', {}).get('dataset', {})
    ann_file = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    if dataset and os.path.abspath(ann_file) != os.path.abspath(found.train.ann_file):
        raise ConfigError(
            f"'{file}' trains on '{ann_file}', not on '{found.train.ann_file}'; choose another "
            '--work-dir, or delete the config'
        )


def image_scale(split: CocoSplit) -> tuple[int, int]:
    """Return the longer and the shorter side to which images are resized, in pixels."""
    coco = json.loads(split.ann_file.read_text(encoding='utf-8'))
    sizes = [sorted((image['width'], image['height'])) for image in coco['images']]
    short, long = (statistics.median(sides) for sides in zip(*sizes, strict=True))
    factor = min(1, LARGEST / long)
    sides = [max(-(-side * factor // DIVISOR) * DIVISOR, SMALLEST) for side in (long, short)]
    return int(sides[0]), int(sides[1])


def config_text(
    data: str | Path,
    found: DataFolder,
    base: Path,
    cfg_options: Mapping[str, Any] | None = None,
) -> str:
    """Return the source of the config for a data folder."""
    options = dict(cfg_options or {})
    values = _values(data, found, Config.fromfile(str(base)))
    # first the variables, because other values use them
    values.update({k: v for k, v in options.items() if k in values and not isinstance(v, Mapping)})
    head = _head(data, found, base, options)
    if options:
        try:
            merged = Config.fromstring(_render(head, base, values), '.py')
            merged.merge_from_dict(options)
        except Exception as error:  # mmengine raises any exception for a wrong key
            raise ConfigError(f'--cfg-options cannot be applied ({error})') from error
        for key in options:
            _merge(values, merged, key.split('.'))
    return _render(head, base, values)


def _values(data: str | Path, found: DataFolder, base: Config) -> dict[str, Any]:
    """Return the variables of the config in order."""
    root = os.path.abspath(data)
    num_images = found.train.num_images
    batch_size = SMALL_BATCH if num_images < FEW_IMAGES else BATCH
    epochs = round(ITERATIONS * batch_size / num_images)
    epochs = min(max(epochs, FEWEST_EPOCHS), MOST_EPOCHS)
    schedule = [dict(step) for step in base.param_scheduler]
    schedule[-1]['T_max'] = Code('max_epochs')

    def dataset(split: CocoSplit, old: Mapping[str, Any]) -> dict[str, Any]:
        pipeline = [dict(step) for step in old['pipeline']]
        for step in pipeline:
            if step['type'] == 'Resize':
                step['scale'] = Code('scale')
        return {
            'data_root': Code('data_root'),
            'ann_file': os.path.relpath(os.path.abspath(split.ann_file), root),
            'data_prefix': {'img': _folder(split.img_dir, root)},
            'metainfo': {'classes': Code('classes')},
            'pipeline': pipeline,
        }

    train = dataset(found.train, base.train_dataloader.dataset)
    train['filter_cfg'] = {'filter_empty_gt': False, 'min_size': 0}
    val = dataset(found.val, base.val_dataloader.dataset)
    return {
        'data_root': os.path.join(root, ''),
        'classes': found.train.classes,
        'model': {'bbox_head': {'num_classes': Code('len(classes)')}},
        'scale': image_scale(found.train),
        'train_dataloader': {'batch_size': batch_size, 'dataset': train},
        'val_dataloader': {'dataset': val},
        'test_dataloader': Code('val_dataloader'),
        'val_evaluator': {'ann_file': Code(f'data_root + {val["ann_file"]!r}')},
        'test_evaluator': Code('val_evaluator'),
        'max_epochs': epochs,
        'train_cfg': {
            'max_epochs': Code('max_epochs'),
            'val_interval': max(epochs // EVALUATIONS, 1),
        },
        'param_scheduler': schedule,
        'auto_scale_lr': {'base_batch_size': batch_size},
    }


COMMENTS = {
    'classes': 'in the order of the annotation files',
    'scale': 'longer and shorter side of an image in pixels; the aspect ratio is kept',
    'train_dataloader': 'images without objects are background, and small images are used, too',
    'max_epochs': f'about {ITERATIONS} iterations',
    'auto_scale_lr': '--auto-scale-lr scales the learning rate from this batch size',
}


def _folder(path: Path, root: str) -> str:
    inner = os.path.relpath(os.path.abspath(path), root)
    return '' if inner == '.' else f'{inner}/'


def _merge(values: dict[str, Any], merged: Config, key: list[str]) -> None:
    """Copy an override from the merged config. Lists are copied as a whole, as configs need it."""
    source: Any = merged
    for depth, part in enumerate(key):
        source = source[part]
        node = values.get(part)
        if isinstance(node, Code) and node in values and depth < len(key) - 1:
            node = values[part] = copy.deepcopy(values[node])  # test_dataloader = val_dataloader
        if depth == len(key) - 1 or not isinstance(source, Mapping):
            values[part] = source
            return
        if not isinstance(node, dict):
            node = values[part] = {}
        values = node


def _head(data: str | Path, found: DataFolder, base: Path, options: Mapping[str, Any]) -> list[str]:
    images = counted(found.train.num_images, 'image')
    numbers = f'{images}, {counted(len(found.train.classes), "class")}'
    head = [
        f'{base.stem} on your data ({found.format} format, {numbers}), from scratch.',
        '',
        f'tools/train.py wrote this file for --data {os.path.abspath(data)}.',
        'It is yours: edit it. The same command finds it here and uses it as it is.',
    ]
    if options:
        head += ['It contains the --cfg-options of the first run:', '']
        head += [f'    {key}={value}' for key, value in options.items()]
    return head


def _render(head: list[str], base: Path, values: Mapping[str, Any]) -> str:
    text = '\n'.join(head).replace('\\', '\\\\').replace('"', "'").replace('{{', '{ {')
    lines = [f'"""{text}\n"""', '', f'_base_ = {source(str(base))}', '']
    for name, value in values.items():
        if name in COMMENTS:
            lines.append(f'# {COMMENTS[name]}')
        lines.append(f'{name} = {source(value, len(name) + 3)}')
    return '\n'.join(lines) + '\n'


def source(value: Any, used: int = 0, indent: int = 0) -> str:
    """Return the Python source of a config value, in lines of at most 100 columns if possible.

    Args:
        value: Numbers, text and :class:`Code`, in dicts, lists and tuples.
        used: Columns before the value.
        indent: Columns before the line of the value.
    """
    if isinstance(value, Code):
        return str(value)
    if isinstance(value, Mapping):
        parts = [(f'{key}=', item) for key, item in value.items()]
        left, right = 'dict(', ')'
        if not all(isinstance(key, str) and key.isidentifier() for key in value):
            parts = [(f'{key!r}: ', item) for key, item in value.items()]
            left, right = '{', '}'
    elif isinstance(value, (list, tuple)):
        parts = [('', item) for item in value]
        left, right = '[]' if isinstance(value, list) else '()'
    elif isinstance(value, str):
        text = repr(value)
        return text.replace('{{', f'{{{text[0]} {text[0]}{{')  # mmengine replaces {{ name }}
    else:
        return repr(value)
    one_line = ', '.join(name + source(item) for name, item in parts)
    comma = ',' if isinstance(value, tuple) and len(value) == 1 else ''
    if indent + used + len(one_line) + 7 <= WIDTH and '\n' not in one_line:
        return f'{left}{one_line}{comma}{right}'
    inner = indent + 4
    lines = [f'{" " * inner}{n}{source(item, len(n) + 1, inner)},' for n, item in parts]
    return '\n'.join([left, *lines, ' ' * indent + right])
