"""Evaluate a checkpoint with a config."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook

from ..checkpoint import check_source
from ..errors import ConfigError
from .build import build_runner, make_folder, set_device
from .config import is_classifier, load_config
from .evaluators import predicts_masks
from .tracking import drop_trackers
from .tta import use_tta


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
    tta: Sequence[float] | None = None,
) -> dict[str, float]:
    """Evaluate a checkpoint on the test set of a config.

    Args:
        config: Config file, or the result of :func:`~evit_mm.runner.config.load_config`.
        checkpoint: Checkpoint of :func:`~evit_mm.runner.train.train`. For a classifier, the
            ImageNet checkpoint of the authors is also accepted. None evaluates the model as the
            config builds it.
        out: File for the predictions. ``FILE.pkl`` contains all predictions. ``FILE.json`` contains
            the boxes of a detector as COCO results, and ``FILE.segm.json`` contains the masks.
        show_dir: Folder for pictures. They show ground truth (left) and detections (right), or the
            true and the predicted class.
        work_dir: As in :func:`~evit_mm.runner.train.train`.
        launcher: As in :func:`~evit_mm.runner.train.train`.
        cfg_options: As in :func:`~evit_mm.runner.train.train`.
        device: As in :func:`~evit_mm.runner.train.train`.
        hooks: Additional hooks.
        tta: Scales of test-time augmentation, see :func:`~evit_mm.runner.tta.use_tta`. None
            evaluates each image once.

    Returns:
        The metrics by name.

    Raises:
        EvitError: The config, the data set or the checkpoint cannot be used.
    """
    cfg = config if isinstance(config, Config) else load_config(config, cfg_options, work_dir)
    if checkpoint is not None:
        check_source(checkpoint)
    cfg.resume, cfg.load_from = False, checkpoint and str(checkpoint)
    if out:
        _write_predictions(cfg, out)
        make_folder('--out', Path(out).parent)
    for metric in evaluators_of(cfg):
        if metric.get('format_only') and not metric.get('outfile_prefix'):
            raise ConfigError(
                f'{cfg.filename}: test_evaluator.format_only=True only writes the predictions, '
                'but no file is given; add --out FILE.json'
            )
    if show_dir:
        if tta is not None and is_classifier(cfg):
            raise ConfigError(
                '--show-dir cannot draw the views of --tta for a classifier; remove one of them'
            )
        _draw_predictions(cfg, show_dir)
        make_folder('--show-dir', show_dir)
    drop_trackers(cfg)
    set_device(device)
    if tta is not None:
        use_tta(cfg, tta)
    runner = build_runner(cfg, launcher)
    if tta is not None and predicts_masks(runner.model):
        raise ConfigError(
            f'{cfg.filename}: --tta cannot merge masks, and the model predicts masks; remove --tta'
        )
    for hook in hooks:
        runner.register_hook(hook)
    metrics = runner.test()
    if out and out.endswith('.json') and runner.rank == 0:
        # CocoMetric appends the result type to its prefix
        for kind, target in (('bbox', out), ('segm', out.removesuffix('.json') + '.segm.json')):
            with suppress(FileNotFoundError):
                Path(f'{out}.partial.{kind}.json').replace(target)
    return metrics


def evaluators_of(cfg: Config) -> list[Any]:
    """Return the configs in ``test_evaluator``, which can be one or a list, or an empty list."""
    found = cfg.get('test_evaluator') or []
    return [found] if isinstance(found, Mapping) else list(found)


def _write_predictions(cfg: Config, out: str) -> None:
    """Configure the evaluation to write the predictions to a file."""
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
        kind = 'DumpResults' if is_classifier(cfg) else 'DumpDetResults'
        cfg.test_evaluator = [*evaluators_of(cfg), {'type': kind, 'out_file_path': out}]
    else:
        raise ConfigError(f"--out '{out}' must end in .pkl or .json")


def _draw_predictions(cfg: Config, show_dir: str) -> None:
    """Configure the visualization hook to save pictures in a folder."""
    folder = os.path.abspath(show_dir)
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if not hook:
        kind = 'ClsVisualizationHook' if is_classifier(cfg) else 'DetVisualizationHook'
        raise ConfigError(
            f'{cfg.filename}: --show-dir needs default_hooks.visualization, which draws the '
            f"pictures; set it to dict(type='{kind}')"
        )
    if is_classifier(cfg):
        hook.update(enable=True, interval=1, out_dir=folder)
    else:
        hook.update(draw=True, test_out_dir=folder)
