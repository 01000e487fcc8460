"""Detections of a run on its validation set, cached in its work dir."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope

from ..data.dataset_configs import coco_datasets, coco_evaluators, dataset_paths
from ..data.pipeline import ImageReader
from ..errors import DataError
from ..evaluation.boxes import Found, Truth, evaluated_truth, read_found
from ..runner.build import config_faults
from ..runner.config import load_config
from ..runner.test import test
from ..runner.work_dir import find_checkpoint
from ..utils.files import read_json_dict, write_json
from ..utils.text import counted
from .runs import Run

CACHE = 'detections.json'
# parts of the config that determine the detections
DECISIVE = ('model', 'val_dataloader', 'val_evaluator')


class Detections(NamedTuple):
    """Detections of a checkpoint on the validation set."""

    checkpoint: str
    truth: Truth
    found: Found
    read: ImageReader  # reads the images as the validation does


def detect(
    run: Run, device: str | None = None, cfg_options: Mapping[str, Any] | None = None
) -> Detections:
    """Return the detections of the best checkpoint of a run, or of its last checkpoint.

    The checkpoint is evaluated as by ``tools/test.py``. The result is cached in the file
    ``detections.json`` of the work dir, which is written atomically. The cache is valid while the
    checkpoint, the annotations and the relevant parts of the config are unchanged.

    Raises:
        EvitError: There is no checkpoint, the data set does not exist, or the evaluation fails.
    """
    cfg = load_config(run.config.filename, cfg_options)
    dataset = next(coco_datasets(cfg, 'val'), None)
    if dataset is None or cfg.get('val_evaluator') is None:
        raise DataError(
            'the config needs a CocoDataset and an evaluator for validation; set val_dataloader '
            'and val_evaluator'
        )
    checkpoint = find_checkpoint(run.folder)
    if checkpoint is None:
        raise DataError(
            'the work dir has no checkpoint yet (best_*.pth, epoch_*.pth, iter_*.pth, weights.pth)'
        )
    annotations = _read(dataset_paths(dataset)['ann_file'])
    truth = evaluated_truth(dataset, coco_evaluators(cfg, 'val'))
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    with config_faults(cfg):
        read = ImageReader(dataset.get('pipeline') or ())
    decisive = repr([cfg.get(name) for name in DECISIVE])
    parts = (checkpoint.read_bytes(), annotations, decisive.encode())
    key = '-'.join(hashlib.sha256(part).hexdigest()[:32] for part in parts)
    kept = read_json_dict(run.folder / CACHE)
    results = kept.get('results') if kept.get('key') == key else None
    if results is None:
        print_log(
            f"{run.name}: evaluating '{checkpoint.name}' on {counted(len(truth.images), 'image')}",
            'current',
        )
        results = _evaluate(cfg, checkpoint, device)
        content = {'checkpoint': checkpoint.name, 'key': key, 'results': results}
        try:
            write_json(run.folder / CACHE, content)
        except OSError as error:  # the page does not need the cache
            text = f"the detections cannot be cached in '{run.folder / CACHE}': {error}"
            print_log(text, 'current', level=logging.WARNING)
    return Detections(checkpoint.name, truth, read_found(results, truth), read)


def _evaluate(cfg: Config, checkpoint: Path, device: str | None) -> list[dict[str, Any]]:
    """Return the detections of a checkpoint on the validation set of its config."""
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    cfg.test_cfg = dict(type='TestLoop')
    # a temporary folder, because the training may use the work dir
    with tempfile.TemporaryDirectory(prefix='evit_mm_report_') as folder:
        cfg.work_dir = folder
        out = Path(folder, 'results.json')
        test(cfg, checkpoint, out=str(out), device=device)
        return json.loads(out.read_text()) if out.exists() else []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        raise DataError(
            f"annotation file '{path}' does not exist; run the command where the training ran, or "
            'add --cfg-options val_dataloader.dataset.data_root=DIR val_evaluator.ann_file=FILE'
        ) from None
