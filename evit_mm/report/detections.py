"""Detections of a run's best checkpoint on its validation set, made once and kept beside it."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from ..data.dataset_configs import coco_datasets, dataset_paths
from ..errors import DataError, EvitError
from ..evaluation.boxes import Found, Truth, read_found, read_truth
from ..runner.test import test
from ..runner.work_dir import find_checkpoint
from ..utils.files import read_json_dict, write_atomically
from .runs import Run

CACHE = 'detections.json'
# what decides which detections a checkpoint gives
DECISIVE = ('model', 'val_dataloader', 'val_evaluator')


@dataclass
class Detections:
    """What a run's checkpoint finds on its validation set.

    Attributes:
        checkpoint: Name of the file in the work dir.
        truth: What there is.
        found: What it finds.
        truth_key: Equal for runs that were evaluated on the same objects.
    """

    checkpoint: str
    truth: Truth
    found: Found
    truth_key: str


def detect(
    run: Run, device: str | None = None, cfg_options: Mapping[str, Any] | None = None
) -> Detections:
    """Return the detections of a run's best checkpoint, or of its last where there is no best.

    They are evaluated as ``tools/test.py`` does, in a folder of its own, and kept in the work dir
    as ``detections.json``, whole or not at all; it is used again for as long as checkpoint,
    annotations and the parts of the config that matter are the same. Detections that cannot count
    become a note of the run.

    Args:
        run: The training, which may be running.
        device: As in :func:`evit_mm.deploy.export.evaluation.evaluate`.
        cfg_options: Overrides of its config, such as where the data lie now.

    Raises:
        EvitError: There is no checkpoint, the data have moved, or the model cannot be evaluated.
    """
    cfg = validation_config(run.config, cfg_options)
    try:
        dataset = next(coco_datasets(cfg, 'val'), None)
    except (TypeError, AttributeError, KeyError) as error:
        raise DataError(f'its val_dataloader is not one of mmdet ({error})') from None
    if dataset is None:
        raise DataError('its config validates on no CocoDataset, so there are no boxes to look at')
    paths = dataset_paths(dataset)
    annotations = _read(paths['ann_file'], 'val_dataloader.dataset')
    try:
        content = json.loads(annotations)
    except ValueError as error:
        raise DataError(f"'{paths['ann_file']}' is not valid JSON ({error})") from None
    truth = read_truth(
        content, paths['ann_file'], paths['img_dir'], paths['classes'], dataset.get('indices')
    )
    checkpoint, weights = _weights(run.folder)
    decisive = repr([cfg.get(name) for name in DECISIVE])
    key = '-'.join(_digest(part) for part in (weights, annotations, decisive.encode()))
    kept = read_json_dict(run.folder / CACHE)
    results = kept.get('results') if kept.get('key') == key else None
    if results is None:
        num_images = len(truth.image_ids)
        print_log(f"{run.name}: '{checkpoint.name}' detects on {num_images} images", 'current')
        results = _evaluate(cfg, checkpoint.name, weights, device)
        _keep(run.folder / CACHE, {'checkpoint': checkpoint.name, 'key': key, 'results': results})
    found = read_found(results, truth, run.folder / CACHE)
    for why, number in found.left_out.items():
        run.notes.append(f'{number} detections {why} are left out.')
    truth_key = _digest(annotations) + repr((truth.classes, truth.image_ids))
    return Detections(checkpoint.name, truth, found, truth_key)


def validation_config(config: Config, cfg_options: Mapping[str, Any] | None) -> Config:
    """Return a config that tests on what it validates on.

    Raises:
        DataError: It has no validation, or an override does not fit it.
    """
    cfg = Config(config.to_dict(), filename=config.filename)
    try:
        cfg.merge_from_dict(dict(cfg_options or {}))
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(f'--cfg-options do not fit its config ({error})') from None
    if cfg.get('val_dataloader') is None or cfg.get('val_evaluator') is None:
        raise DataError('its config has no val_dataloader and val_evaluator to evaluate it with')
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    cfg.test_cfg = dict(type='TestLoop')
    cfg.load_from, cfg.resume = None, False
    return cfg


def _evaluate(cfg: Config, name: str, weights: bytes, device: str | None) -> list[dict[str, Any]]:
    # a folder of its own: the run's may be in use, and its checkpoint may go at any moment
    with tempfile.TemporaryDirectory(prefix='evit_mm_report_') as folder:
        checkpoint, out = Path(folder, name), Path(folder, 'results.json')
        config = Path(folder, Path(cfg.filename or 'config.py').name)
        checkpoint.write_bytes(weights)
        cfg.dump(str(config))
        try:
            test(config, checkpoint, out=str(out), work_dir=folder, device=device)
        except EvitError as error:  # which names files in this folder; it is gone when that is read
            raise DataError(' '.join(str(error).replace(f'{folder}/', '').split())) from None
        return json.loads(out.read_text()) if out.exists() else []


def _weights(folder: Path) -> tuple[Path, bytes]:
    for _ in range(3):  # a running training may replace the file between finding and reading it
        checkpoint = find_checkpoint(folder)
        if checkpoint is None:
            raise DataError(
                'it has no checkpoint yet (best_*.pth, epoch_*.pth, iter_*.pth or weights.pth)'
            )
        with suppress(FileNotFoundError):
            return checkpoint, checkpoint.read_bytes()
    raise DataError('its checkpoints go faster than they can be read; try again')


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        raise DataError(
            f"the annotations '{path}' are not there; run where the training ran, or say where "
            f'they are with --cfg-options {field}.data_root=DIR and val_evaluator.ann_file=FILE'
        ) from None


def _keep(path: Path, content: Mapping[str, Any]) -> None:
    try:
        write_atomically(path, json.dumps(content).encode())
    except OSError as error:  # the page can be made all the same
        text = f"the detections were not kept for the next time: '{path}': {error}"
        print_log(text, 'current', level=logging.WARNING)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
