"""Write the config for a training on a data folder, for the user to keep and edit.

The config sets the variables of a light detector of this package. These follow from the data:

- image size: the median size of the training images, at most 640 pixels, in multiples of 32
- batch size: 4 below 500 training images, otherwise 8
- epochs: about 1500 iterations, at least 12 and at most 100 epochs, with ten evaluations
"""

from __future__ import annotations

import os
import re
import statistics
from contextlib import suppress
from pathlib import Path
from pprint import pformat

from filelock import FileLock

from ..data.layout import CocoSplit, DataFolder, find_data
from ..errors import ConfigError
from ..utils.files import write_atomically
from ..utils.package_files import project_path
from ..utils.text import counted, did_you_mean
from .config import load_config

DEFAULT_MODEL = 'rtmdet_m0'
SUFFIX = '_bccd.py'  # the configs for small data sets, which train from scratch
DIVISOR, SMALLEST, LARGEST = 32, 128, 640  # pixels
FEW_IMAGES, SMALL_BATCH, BATCH = 500, 4, 8  # the bases use both with the same learning rate
ITERATIONS, FEWEST_EPOCHS, MOST_EPOCHS = 1500, 12, 100


def data_models() -> dict[str, Path]:
    """Return the base config of each model name: ``rtmdet_m0`` is ``rtmdet_evit_m0_bccd.py``."""
    files = sorted(project_path('configs').glob(f'*{SUFFIX}'))
    return {file.name.removesuffix(SUFFIX).replace('_evit', ''): file for file in files}


def config_for_data(
    data: str | Path, model: str = DEFAULT_MODEL, work_dir: str | Path | None = None
) -> tuple[Path, list[str]]:
    """Write the config for a data folder to the work dir, unless it is there.

    Args:
        data: Data folder, see :func:`evit_mm.data.layout.find_data`.
        model: Name from :func:`data_models`.
        work_dir: Work dir. None uses ``work_dirs/MODEL_FOLDER``.

    Returns:
        The config file, and sentences for the user. The last one is about the config.

    Raises:
        ConfigError: The model is unknown, or the work dir has a config for other data.
        DataError: The data set cannot be used.
    """
    models = data_models()
    if model not in models:
        hint = did_you_mean(model.lower(), models, cutoff=0.4)
        raise ConfigError(f"unknown --model '{model}'{hint}; choose from {', '.join(models)}")
    name = re.sub(r'\W+', '_', Path(os.path.abspath(data)).name) or 'data'
    name = f'{model}_{name}'
    file = Path(work_dir or Path('work_dirs') / name) / f'{name}.py'
    found = find_data(data)
    text = config_text(data, found, models[model])
    last = f"config: '{file}'; edit it to change the training"
    lock = file.parent / '.config.lock'
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            with FileLock(lock):  # the processes of a distributed training come together
                if not file.exists():
                    write_atomically(file, text.encode())
                    last = f"config: written to '{file}'; edit it to change the training"
            with suppress(OSError):  # nobody writes any more, because the file exists
                lock.unlink()
        is_edited = file.read_bytes() != text.encode()
    except OSError as error:
        cannot = f"the config cannot be written to '{file.parent}' ({error.strerror})"
        raise ConfigError(f'{cannot}; choose another --work-dir') from None
    if is_edited:
        _check_same_data(file, found)
        last = f"config: '{file}' exists and is used as it is; delete it to write it again"
    return file, [*_describe(data, found), last]


def _describe(data: str | Path, found: DataFolder) -> list[str]:
    classes = found.train.classes
    images = counted(found.train.num_images, 'image')
    shown = ', '.join(classes[:5]) + (', ...' if len(classes) > 5 else '')
    return [
        f"data: '{data}' is in {found.format} format: {images} for training, "
        f'{found.val.num_images} for validation, {counted(len(classes), "class")} ({shown})',
        *(f'note: {note}' for note in found.notes),
    ]


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
    short, long = map(statistics.median, zip(*map(sorted, split.sizes), strict=True))
    factor = min(1, LARGEST / long)
    long, short = (max(-(-x * factor // DIVISOR) * DIVISOR, SMALLEST) for x in (long, short))
    return int(long), int(short)


def config_text(data: str | Path, found: DataFolder, base: Path) -> str:
    """Return the source of the config for a data folder."""
    train, val = found.train, found.val
    images = [os.path.relpath(split.img_dir / '_', data)[:-1] for split in (train, val)]
    batch_size = SMALL_BATCH if train.num_images < FEW_IMAGES else BATCH
    epochs = round(ITERATIONS * batch_size / train.num_images)
    numbers = f'{counted(train.num_images, "image")}, {counted(len(train.classes), "class")}'
    return f'''"""{base.stem} on your data ({found.format} format, {numbers}), from scratch.

tools/train.py --data wrote this file. It is yours: edit it. The same command uses it as it is.
"""

_base_ = {_literal(str(base))}

data_root = {_literal(os.path.join(os.path.abspath(data), ''))}
train_ann_file = {_literal(os.path.relpath(train.ann_file, data))}
val_ann_file = {_literal(os.path.relpath(val.ann_file, data))}
train_images = {_literal(images[0])}
val_images = {_literal(images[1])}
# in the order of the annotation files
classes = {_literal(train.classes)}
# longer and shorter side of an image in pixels; the aspect ratio is kept
scale = {image_scale(train)}
batch_size = {batch_size}
# about {ITERATIONS} iterations, with ten evaluations
max_epochs = {min(max(epochs, FEWEST_EPOCHS), MOST_EPOCHS)}
train_cfg = dict(val_interval=max(max_epochs // 10, 1))

# images without objects are background, and small images are used, too
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False, min_size=0)))
# --auto-scale-lr scales the learning rate from this batch size
auto_scale_lr = dict(base_batch_size={batch_size})
'''


def _literal(value: object) -> str:
    text = pformat(value, width=80, compact=True)
    return text.replace('{{', '{\\x7b')  # mmengine replaces {{ name }}
