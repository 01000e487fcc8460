"""Check a config, its data, its model and a checkpoint.

Imports of evit_mm are absolute because ``tools/doctor.py`` loads this package by path. It imports
this module only after evit_mm has been imported successfully.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from evit_mm.data.check import inspect_config_data
from evit_mm.data.images import NUM_DECODED
from evit_mm.runner.build import config_faults, load_detector, rehearse
from evit_mm.runner.config import read_config
from evit_mm.runner.data_config import config_for_data

from .findings import Finding, from_sentence, guarded, worst


def check_config(config: str, checkpoint: str | None, all_images: bool) -> Iterator[Finding]:
    """Check a config file, its data and its model, and a checkpoint if one is given."""
    cfg, notes = read_config(config)
    yield Finding('green', 'config', f'{config} can be read')
    for note in notes:
        yield from_sentence('yellow', 'config', note)
    found = guarded('data', lambda: check_data(cfg, all_images))
    if checkpoint is None:
        found += guarded('model', lambda: check_model(cfg))
    else:
        found += guarded('checkpoint', lambda: check_checkpoint(cfg, checkpoint))
    yield from found
    if worst(found) != 'red':  # otherwise this fails for the same reason
        yield from guarded('runs', lambda: check_runs(cfg))


def check_folder(data: str, all_images: bool) -> Iterator[Finding]:
    """Recognise the format of a data folder, and check the config that training would write."""
    with tempfile.TemporaryDirectory() as folder:
        file, (recognised, *notes, _) = config_for_data(data, work_dir=folder)
        cfg, _ = read_config(file)
    yield Finding('green', 'data', recognised.removeprefix('data: '))
    for note in notes:
        yield Finding('yellow', 'data', note.removeprefix('note: '))
    yield from guarded('data', lambda: check_data(cfg, all_images))


def check_data(cfg: Config, all_images: bool) -> Iterator[Finding]:
    """Check the data sets of a config and decode some or all of their images."""
    number = None if all_images else NUM_DECODED
    report = inspect_config_data(cfg, ('train', 'val', 'test'), number)
    for fault in report.faults:
        yield from_sentence('red', 'data', fault)
    for note in report.notes:
        yield from_sentence('yellow', 'data', note)
    if not report.faults:
        kinds = 'COCO data sets, ImageNet and CustomDataset on local disks'
        what = f'\n{report.table}' if report.table else f' (the check covers only {kinds})'
        yield Finding('green', 'data', f'no errors found{what}')


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
    for note in rehearse(cfg):
        yield from_sentence('yellow', 'runs', note)
    text = 'data loaders, optimizer, schedules, hooks and evaluators can be built'
    yield Finding('green', 'runs', text)


def check_checkpoint(cfg: Config, checkpoint: str) -> Iterator[Finding]:
    """Build the model of a config and load a checkpoint."""
    load_detector(cfg, checkpoint)
    yield Finding('green', 'checkpoint', f'{checkpoint} matches the model and its classes')
