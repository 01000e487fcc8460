"""Write a trained detector as a folder for the Hugging Face hub."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.hooks import Hook

from ...checkpoint import write_checkpoint
from ...data.dataset_configs import coco_datasets
from ...errors import ConfigError, DataError
from ...runner.build import load_detector, make_folder, set_device
from ...runner.config import is_classifier, load_config
from ...runner.test import evaluators_of, test
from ...utils.files import write_atomically
from ...utils.provenance import versions
from .card import UNKNOWN_LICENSE, Figures, write_card
from .config_json import to_json
from .reading import CARD, CONFIG, WEIGHTS, load_published

PACKAGES = ('evit_mm', 'torch', 'mmdet')


class Published(NamedTuple):
    """The result of :func:`publish`.

    Attributes:
        folder: The written folder.
        figures: Measured figures, or None.
        reason: Why there are no figures; otherwise empty.
    """

    folder: Path
    figures: Figures | None
    reason: str


def publish(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    license_id: str = UNKNOWN_LICENSE,
    cfg_options: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> Published:
    """Write ``model.safetensors``, ``config.json`` and a model card. Nothing is uploaded.

    The weights are those that :func:`evit_mm.runner.test.test` evaluates, so with EMA the averaged
    ones. The figures of the card are measured: the written files are evaluated on the test set of
    the config. If the data set is not there, or the evaluator only writes its predictions, the card
    says "not measured".

    Args:
        config: Config file of a detector.
        checkpoint: Checkpoint written by :func:`evit_mm.runner.train.train`.
        out: Folder to write. Its name is the name of the model. It must be new or empty, because an
            upload takes all files in it.
        license_id: Licence of the weights, an identifier of the hub such as ``'apache-2.0'``.
        cfg_options: See :func:`evit_mm.runner.train.train`.
        device: See :func:`evit_mm.runner.train.train`.

    Raises:
        EvitError: The config or the checkpoint cannot be used, a published config cannot have a
            part of the detector, or the folder contains files. The folder is then not changed.
    """
    if not re.fullmatch('[a-z0-9][a-z0-9.+-]*', license_id):
        raise ConfigError(
            f"--license must be an identifier of the hub such as 'apache-2.0', got {license_id!r}"
        )
    folder = Path(out).absolute()
    if folder.is_dir() and (present := sorted(file.name for file in folder.iterdir())):
        raise ConfigError(
            f"-o '{out}' contains '{present[0]}'; give a new or empty folder, because an upload "
            'would take all files in it'
        )
    cfg = load_config(config, cfg_options)
    if is_classifier(cfg):
        raise ConfigError(f"config '{config}' is a classifier; only detectors can be published")
    is_new = not folder.exists()
    set_device(device)
    make_folder('-o', folder)
    try:
        with TemporaryDirectory(prefix=f'{folder.name}.', dir=folder.parent) as partial:
            made = Path(partial)
            figures, reason = _write(cfg, checkpoint, made, folder.name, license_id, device)
            for name in (WEIGHTS, CARD, CONFIG):  # without a config, nothing reads the folder
                os.replace(made / name, folder / name)
    except BaseException:
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise
    return Published(Path(out), figures, reason)


def _write(
    cfg: Config,
    checkpoint: str | Path,
    folder: Path,
    name: str,
    license_id: str,
    device: str | None,
) -> tuple[Figures | None, str]:
    """Write the files into a folder, and return the figures, or why there are none."""
    # copies, because mmdet adds fields to the configs that it builds
    model = load_detector(copy.deepcopy(cfg), checkpoint)
    found = versions(PACKAGES)
    metainfo: Any = model.dataset_meta
    text = to_json(cfg, metainfo, found['evit_mm'])
    classes = tuple(metainfo['classes'])
    write_atomically(folder / CONFIG, text.encode())
    meta = {'dataset_meta': {'classes': classes}}
    write_checkpoint(model.state_dict(), folder / WEIGHTS, meta)
    published, weights = load_published(folder)  # what cannot be read is not published
    load_detector(copy.deepcopy(published), weights)
    figures, reason = _measure(cfg, published, weights, device)
    what = _describe(model, cfg, len(classes))
    tags = ['evit_mm', 'mmdet', type(model).__name__.lower(), 'object-detection']
    card = write_card(name, what, classes, figures, license_id, tags, found)
    write_atomically(folder / CARD, card.encode())
    return figures, reason


class _ImageCount(Hook):
    """Record the number of images of an evaluation."""

    images = 0

    def after_test(self, runner: Any) -> None:
        """Count the images."""
        self.images = len(runner.test_dataloader.dataset)


def _measure(
    cfg: Config, published: Config, weights: Path, device: str | None
) -> tuple[Figures | None, str]:
    """Evaluate published weights and their network on the test set of the original config."""
    evaluators = evaluators_of(cfg)
    if not evaluators:
        return None, 'the config has no test_evaluator'
    if any(metric.get('format_only') for metric in evaluators):
        return None, 'test_evaluator.format_only=True only writes the predictions'
    evaluated, count = copy.deepcopy(cfg), _ImageCount()
    evaluated.model = copy.deepcopy(published.model)
    try:
        metrics = test(evaluated, weights, device=device, hooks=[count])
    except (DataError, FileNotFoundError) as error:  # with and without our checks of the data
        return None, str(error)
    return Figures(metrics, *_names_of_data(cfg), count.images), ''


def _names_of_data(cfg: Config) -> tuple[str, str]:
    """Return the names of the data set and of its annotation file, without the path to them."""
    dataset = next(coco_datasets(cfg, 'test'), None)
    if dataset is None:
        return str(cfg.test_dataloader.dataset.get('type')), ''
    file = Path(dataset.get('ann_file') or '')
    return Path(dataset.get('data_root') or file.parent).name or 'COCO format', file.name


def _describe(model: torch.nn.Module, cfg: Config, num_classes: int) -> str:
    """Return what a detector is, without a full stop."""
    backbone = cfg.model.backbone
    arch = backbone.get('arch')
    size = f'-{arch.upper()}' if isinstance(arch, str) else ''
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return (
        f'{type(model).__name__} with the backbone {type(model.backbone).__name__}{size}, '
        f'{millions:.2f} M parameters, for {num_classes} classes'
    )
