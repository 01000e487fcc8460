"""The settings that all runs of a comparison share, and the configs that follow from them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmengine.config import Config, ConfigDict

from .. import __version__
from ..data.layout import CocoSplit, DataFolder, dataset_config, find_data
from ..deploy.export.files import need
from ..errors import ConfigError
from ..models import TIMMNet
from ..runner.config import merge_options
from ..runner.variables import evaluate, read_source
from ..utils.package_files import project_path
from ..utils.text import did_you_mean
from .published_results import TIMM_NAMES
from .recipes import apply_switches, fit_ema, split_name, switches_of

CONFIGS = project_path('configs')
# EfficientViT variants that cover the range of sizes, the baselines of the paper, newer networks
DEFAULT_MODELS = (
    *('evit_m0', 'evit_m2', 'evit_m4'),
    *('mobilenetv2', 'spos', 'spnasnet'),
    *('mobilenetv4_small', 'timm:shvit_s1'),
)
BATCH_SIZE = 8
TIMM = 'timm:'  # prefix of a network of timm
# strides of a timm network: the row whose config has the neck for them
NECKS: dict[tuple[int, ...], str] = {(8, 16, 32): 'mobilenetv2', (16, 32, 64): 'evit_m4'}
HEADS = {
    'full': '_base_/models/retinanet_evit_m4.py',
    'light': '_base_/models/retinanet_evit_m4_light.py',
}


def available_models() -> dict[str, Path]:
    """Return the backbones that can be compared: NAME of ``configs/retinanet_NAME_coco.py``.

    The ``lite`` and ``plus`` configs are left out, because they have the same backbones. A
    comparison sets the head and the recipe itself.
    """
    files = {name_of(file): file for file in sorted(CONFIGS.glob('retinanet_*_coco.py'))}
    return {
        name: file
        for name, file in files.items()
        if not name.startswith('lite_') and not name.endswith('_plus')
    }


def name_of(config: str | Path) -> str:
    """Return NAME of ``retinanet_NAME_coco.py``."""
    return Path(config).stem.removeprefix('retinanet_').removesuffix('_coco')


def timm_backbone(name: str) -> TIMMNet:
    """Return a network of timm as a backbone whose strides a neck is known for.

    Args:
        name: Name of the network in timm, perhaps with the tag of its weights. A network that has a
            config of its own uses the maps of that config.

    Raises:
        ConfigError: timm does not have the network, or it cannot be a backbone here.
        EvitError: timm is not installed.
    """
    timm = need('timm', 'cls')
    network = name.partition('.')[0]
    maps = None
    if network in TIMM_NAMES:
        own = Config.fromfile(available_models()[TIMM_NAMES[network]])
        maps = own.model.backbone.get('out_indices')
    try:
        with torch.random.fork_rng(devices=[]):  # these weights are not used
            backbone = TIMMNet(name, maps)
    except ValueError as error:
        hint = '' if timm.is_model(network) else did_you_mean(network, timm.list_models())
        reason = str(error).removeprefix('model_name: ')
        raise ConfigError(f'--models {TIMM}{name}: {reason}{hint}') from None
    if backbone.strides not in NECKS:
        known = ' or '.join(map(_joined, NECKS))
        raise ConfigError(
            f'--models {TIMM}{name}: the strides are {_joined(backbone.strides)}, but the neck '
            f'needs {known}; choose another network'
        )
    return backbone


def timm_config(name: str) -> Config:
    """Return the COCO config of :func:`timm_backbone`, with the neck for its strides.

    ``backbone.init_cfg`` is None if the Hugging Face hub has no weights of timm.
    """
    import timm

    backbone, weights = timm_backbone(name), timm.get_pretrained_cfg(name)
    assert weights is not None  # each network has pixel statistics
    init_cfg = None
    if weights.hf_hub_id:
        checkpoint = f'hf-hub:{weights.hf_hub_id}'.replace('hf-hub:timm/', 'timm://')
        init_cfg = {'type': 'Pretrained', 'checkpoint': checkpoint}
    cfg = Config.fromfile(available_models()[NECKS[backbone.strides]])
    cfg.model.backbone = ConfigDict(
        type='TIMMNet', model_name=name, out_indices=backbone.out_indices, init_cfg=init_cfg
    )
    cfg.model.neck.in_channels = list(backbone.out_channels)
    for key in ('mean', 'std'):
        values = getattr(weights, key)
        cfg.model.data_preprocessor[key] = [round(255 * value, 4) for value in values]
    return cfg


def padded_size(size: Sequence[int], cfg: Config) -> tuple[int, int]:
    """Return the ``(width, height)`` to which a detector pads an image."""
    divisor = cfg.model.data_preprocessor.get('pad_size_divisor', 1)
    width, height = (-(-side // divisor) * divisor for side in size)
    return width, height


def _joined(strides: Sequence[int]) -> str:
    """Return strides as ``8/16/32``."""
    return '/'.join(map(str, strides))


@dataclass(frozen=True)
class Budget:
    """The settings that all runs of a comparison share.

    Attributes:
        data: Data folder, see :func:`evit_mm.data.layout.find_data`.
        epochs: Number of training epochs.
        scale: Largest ``(width, height)`` of a resized image. The aspect ratio is kept.
        head: ``'full'`` is the published RetinaNet head with a 256-channel neck. ``'light'`` has 64
            channels and 2 convolutions.
        pretrained: Start from the ImageNet weights of each config. Otherwise, train from scratch.
        cfg_options: Overrides for the config of every run, with dotted keys.

    Raises:
        ConfigError: A value is out of range.
        DataError: The data set cannot be used.
    """

    data: str
    epochs: int = 12
    scale: tuple[int, int] = (320, 240)
    head: str = 'light'
    pretrained: bool = False
    cfg_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigError(f'--epochs must be at least 1, got {self.epochs}')
        if len(self.scale) != 2 or min(self.scale) < 32:
            raise ConfigError(f'--scale must be two sides of at least 32 pixels, got {self.scale}')
        if self.head not in HEADS:
            raise ConfigError(f"--head must be one of {', '.join(HEADS)}, got '{self.head}'")

    @cached_property
    def folder(self) -> DataFolder:
        """The content of the data folder, cached because COCO's annotations load slowly."""
        return find_data(self.data)

    @property
    def splits(self) -> tuple[CocoSplit, CocoSplit]:
        """The training and validation splits."""
        return self.folder.train, self.folder.val

    def record(self) -> dict[str, Any]:
        """Return the settings that must stay the same in a comparison, as JSON values."""
        record = {**asdict(self), 'scale': list(self.scale), 'version': __version__}
        record['data'] = str(Path(self.data).resolve())
        for split in self.splits:
            digest = hashlib.sha256(split.ann_file.read_bytes()).hexdigest()
            record[f'sha256 of {split.ann_file.name}'] = digest
        return record

    @property
    def iterations(self) -> int:
        """Number of optimizer steps of one run with the 1x schedule."""
        return -(-self.splits[0].num_images // BATCH_SIZE) * self.epochs

    def config(self, name: str) -> Config:
        """Return the config for the runs of one row.

        Args:
            name: A name from :func:`available_models`, ``timm:NAME`` for a network of timm, or a
                name with a recipe from :func:`~evit_mm.compare.recipes.with_recipes`. A recipe uses
                the authors' schedule.

        Raises:
            ConfigError: The backbone does not exist or cannot be used, or an override is wrong.
        """
        model, recipe = split_name(name)
        coco = self._coco_config(model)
        parts = [
            HEADS[self.head],
            '_base_/datasets/coco_detection.py',
            '_base_/schedules/schedule_scratch.py',
            '_base_/default_runtime.py',
        ]
        merged: dict[str, Any] = {}
        for part in parts:
            merged.update(self._read(part).to_dict())
        cfg = Config(merged, filename=coco.filename)
        # backbone, neck and pixel statistics differ; everything else is shared
        channels = cfg.model.neck.out_channels
        for key in ('backbone', 'neck', 'data_preprocessor'):
            cfg.model[key] = coco.model[key]
        cfg.model.neck.out_channels = channels
        cfg.model.backbone.norm_eval = False
        if not self.pretrained:
            cfg.model.backbone.init_cfg = None
        self._set_data(cfg)
        self._set_schedule(cfg)
        if recipe is not None:
            self._set_authors_recipe(cfg)
        for key in self.cfg_options:
            top = key.split('.')[0]
            if top in ('test_dataloader', 'test_evaluator'):
                raise ConfigError(
                    f'--cfg-options {key}: a comparison evaluates once, on the validation images; '
                    f'use {key.replace("test", "val", 1)}'
                )
            if top not in cfg:
                raise ConfigError(
                    f"--cfg-options: the config has no key '{key}'; see {HEADS[self.head]}"
                )
        merge_options(cfg, self.cfg_options)
        cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
        if {cfg.train_cfg.max_epochs, cfg.max_epochs} != {self.epochs}:
            raise ConfigError('--cfg-options cannot set the number of epochs; use --epochs')
        if recipe is not None:
            apply_switches(cfg, switches_of(recipe, self.pretrained))
            fit_ema(cfg, self.iterations)
            cfg.train_cfg.val_begin = cfg.max_epochs + 1
        return cfg

    def input_size(self) -> tuple[int, int]:
        """Return ``(width, height)`` of the first validation image after resizing and padding."""
        _, val = self.splits
        head = Config.fromfile(CONFIGS / HEADS[self.head])
        return padded_size(mmcv.rescale_size(val.sizes[0], self.scale), head)

    def _coco_config(self, model: str) -> Config:
        """Return the config on COCO with the backbone, neck and pixel statistics of a row."""
        if model.startswith(TIMM):
            cfg = timm_config(model.removeprefix(TIMM))
            if self.pretrained and cfg.model.backbone.init_cfg is None:
                raise ConfigError(
                    f"--pretrained: the Hugging Face hub has no weights of '{model}' from timm; "
                    'choose another network, or train from scratch'
                )
            return cfg
        models = available_models()
        if model not in models:
            short = f'evit_{model.lower()}'  # m4 is evit_m4
            hint = f" (did you mean '{short}'?)" if short in models else ''
            hint = hint or did_you_mean(model.lower(), models, cutoff=0.7)
            raise ConfigError(
                f"unknown backbone '{model}'{hint}; choose from {', '.join(models)}, or a network "
                f'of timm by {TIMM}NAME'
            )
        return Config.fromfile(models[model])

    def _read(self, part: str) -> Config:
        """Read a base config with the variables of the budget."""
        values = {'max_epochs': self.epochs, 'scale': self.scale, 'batch_size': BATCH_SIZE}
        return evaluate(read_source(CONFIGS / part), values)

    def _set_data(self, cfg: Config) -> None:
        train, val = self.splits
        cfg.model.bbox_head.num_classes = len(train.classes)
        for key, split in (('train_dataloader', train), ('val_dataloader', val)):
            loader = cfg[key]
            loader.dataset.update(dataset_config(split, loader.dataset.pipeline))
            loader.batch_size = BATCH_SIZE
        # images without objects are useful as background
        cfg.train_dataloader.dataset.filter_cfg = {'filter_empty_gt': False}
        cfg.val_evaluator.ann_file = str(val.ann_file)
        # already applied, and misleading in the saved config
        unused = {*cfg.variables, 'variables', 'train_pipeline', 'test_pipeline', 'dataset_type'}
        for name in (unused | {'num_classes', 'metainfo'}) - {'max_epochs'}:
            cfg.pop(name, None)

    def _set_schedule(self, cfg: Config) -> None:
        cfg.train_cfg.val_begin = self.epochs + 1  # no validation; one test after the training
        cfg.default_hooks.checkpoint = {
            'type': 'SafeCheckpointHook',
            'interval': 1,
            'max_keep_ckpts': 2,
        }
        cfg.default_hooks.logger.interval = 10

    def _set_authors_recipe(self, cfg: Config) -> None:
        """Apply the authors' recipe, except for the learning rate and the warm-up."""
        authors = self._read('_base_/schedules/schedule_1x.py')
        cfg.param_scheduler[1] = authors.param_scheduler[1]
        cfg.optim_wrapper.paramwise_cfg = authors.optim_wrapper.paramwise_cfg
        cfg.optim_wrapper.pop('clip_grad')
        cfg.model.backbone.norm_eval = True
