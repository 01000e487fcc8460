"""Evaluation: from a config and a checkpoint to metrics."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook

from ..errors import ConfigError
from .build import build_runner, make_folder, set_device
from .config import is_classifier, load_config
from .tracking import drop_trackers


def test(
    config: str | Path | Config,
    checkpoint: str | Path | None,
    out: str | None = None,
    show_dir: str | None = None,
    work_dir: str | None = None,
    launcher: str = 'none',
    cfg_options: Mapping[str, Any] | None = None,
    device: str | None = None,
    hooks: Sequence[Hook] = (),
) -> dict[str, float]:
    """Evaluate a checkpoint on the config's test set.

    Args:
        config: Config file, or what :func:`~evit_mm.runner.config.load_config` made of it.
        checkpoint: What :func:`~evit_mm.runner.train.train` saved; for a classifier also the
            authors' ImageNet file; None leaves the model as the config builds it.
        out: ``FILE.pkl`` takes the library's dump of all predictions, ``FILE.json`` COCO-style
            results of a detector; those of masks, which may have scores of their own, go to
            ``FILE.segm.json`` beside it.
        show_dir: Folder for pictures: ground truth on the left and detections on the right, or
            true and predicted class.
        work_dir: As in :func:`~evit_mm.runner.train.train`.
        launcher: As in :func:`~evit_mm.runner.train.train`.
        cfg_options: As in :func:`~evit_mm.runner.train.train`.
        device: As in :func:`~evit_mm.runner.train.train`.
        hooks: Further hooks of the caller's own.

    Returns:
        The metrics by name.

    Raises:
        EvitError: The config, the data set or the checkpoint cannot be used.
    """
    cfg = config if isinstance(config, Config) else load_config(config, cfg_options, work_dir)
    cfg.resume, cfg.load_from = False, checkpoint and str(checkpoint)
    if out:
        _write_predictions(cfg, out)
        make_folder('--out', Path(out).parent)
    if show_dir:
        _draw_predictions(cfg, show_dir)
        make_folder('--show-dir', show_dir)
    drop_trackers(cfg)
    set_device(device)
    runner = build_runner(cfg, launcher)
    for hook in hooks:
        runner.register_hook(hook)
    metrics = runner.test()
    if out and out.endswith('.json') and runner.rank == 0:
        # CocoMetric appends the kind of result to its prefix
        for kind, target in (('bbox', out), ('segm', out.removesuffix('.json') + '.segm.json')):
            with suppress(FileNotFoundError):
                Path(f'{out}.partial.{kind}.json').replace(target)
    return metrics


def _write_predictions(cfg: Config, out: str) -> None:
    """Let the evaluation write predictions to a file."""
    evaluator = cfg.test_evaluator
    if out.endswith('.json'):
        if is_classifier(cfg):
            raise ConfigError(f"--out '{out}' must end in .pkl for a classifier")
        if not isinstance(evaluator, Mapping):
            raise ConfigError(
                f"{cfg.filename}: --out '{out}' needs a single test_evaluator, not a list; use "
                'FILE.pkl or set one evaluator'
            )
        cfg.test_evaluator.outfile_prefix = f'{out}.partial'
    elif out.endswith(('.pkl', '.pickle')):
        evaluators = [evaluator] if isinstance(evaluator, Mapping) else list(evaluator)
        kind = 'DumpResults' if is_classifier(cfg) else 'DumpDetResults'
        cfg.test_evaluator = [*evaluators, {'type': kind, 'out_file_path': out}]
    else:
        raise ConfigError(f"--out '{out}' must end in .pkl or .json")


def _draw_predictions(cfg: Config, show_dir: str) -> None:
    """Let the config's visualization hook draw pictures into a folder."""
    folder = os.path.abspath(show_dir)
    if is_classifier(cfg):
        cfg.default_hooks.visualization.update(enable=True, interval=1, out_dir=folder)
    else:
        cfg.default_hooks.visualization.update(draw=True, test_out_dir=folder)
