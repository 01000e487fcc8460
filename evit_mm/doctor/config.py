"""Check a config, its data, its model and a checkpoint.

Imports of evit_mm are absolute because ``tools/doctor.py`` loads this package by path. It imports
this module only after evit_mm has been imported successfully.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from evit_mm.data.check import config_data_faults
from evit_mm.data.images import NUM_DECODED
from evit_mm.runner.build import config_faults, load_detector, rehearse
from evit_mm.runner.config import load_config

from .findings import Finding, from_sentence, guarded, worst


def check_config(config: str, checkpoint: str | None, all_images: bool) -> Iterator[Finding]:
    """Check a config file, its data and its model, and a checkpoint if one is given."""
    cfg = load_config(config)
    yield Finding('green', 'config', f'{config} can be read')
    found = guarded('data', lambda: check_data(cfg, all_images))
    if checkpoint is None:
        found += guarded('model', lambda: check_model(cfg))
    else:
        found += guarded('checkpoint', lambda: check_checkpoint(cfg, checkpoint))
    yield from found
    if worst(found) != 'red':  # otherwise this fails for the same reason
        yield from guarded('runs', lambda: check_runs(cfg))


def check_data(cfg: Config, all_images: bool) -> Iterator[Finding]:
    """Check the data sets of a config and decode some or all of their images."""
    number = None if all_images else NUM_DECODED
    faults, notes = config_data_faults(cfg, ('train', 'val', 'test'), number)
    for fault in faults:
        yield from_sentence('red', 'data', fault)
    for note in notes:
        yield from_sentence('yellow', 'data', note)
    if not faults:
        kinds = 'CocoDataset, ImageNet and CustomDataset on local disks'
        yield Finding('green', 'data', f'no errors found (the check covers only {kinds})')


def check_model(cfg: Config) -> Iterator[Finding]:
    """Build the model of a config without weights."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    with config_faults(cfg):
        model = MODELS.build(cfg.model)
    number = sum(parameter.numel() for parameter in model.parameters())
    text = f'{cfg.model.type} can be built: {number / 1e6:.2f} M parameters'
    yield Finding('green', 'model', text)


def check_runs(cfg: Config) -> Iterator[Finding]:
    """Build what a training and a test build, from the data sets to the evaluators."""
    rehearse(cfg)
    text = 'data loaders, optimizer, schedules, hooks and evaluators can be built'
    yield Finding('green', 'runs', text)


def check_checkpoint(cfg: Config, checkpoint: str) -> Iterator[Finding]:
    """Build the model of a config and load a checkpoint."""
    load_detector(cfg, checkpoint)
    yield Finding('green', 'checkpoint', f'{checkpoint} matches the model and its classes')
