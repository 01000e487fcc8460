"""Evaluation of what is deployed: a checkpoint in its fast form, or an exported file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from ...errors import ConfigError
from ...runner.config import is_classifier, load_config
from ...runner.test import test
from ...runner.weights import check_classes
from .. import fusion
from .files import describe
from .formats import BY_SUFFIX


@HOOKS.register_module()
class FuseHook(Hook):
    """Put the model into its fast form before it is tested.

    A detector by :func:`evit_mm.deploy.fuse_detector`, a classifier by
    :func:`evit_mm.deploy.fuse`.
    """

    priority = 'VERY_LOW'  # after EMA has put its weights in

    def before_test_epoch(self, runner: Any) -> None:
        """Exchange the model."""
        print_log('testing the fused model', logger='current')
        fuse = fusion.fuse if is_classifier(runner.cfg) else fusion.fuse_detector
        if is_model_wrapper(runner.model):
            runner.model.module = fuse(runner.model.module.eval())
        else:
            runner.model = fuse(runner.model.eval())


class ExportedFileHook(Hook):
    """Refuse a config that differs, as ``described``, from the one a file was exported with."""

    def __init__(self, file: str, described: Mapping[str, Any]) -> None:
        self.file, self.described = file, described

    def before_test(self, runner: Any) -> None:
        """Compare classes, preparation of images and choice of detections."""
        metadata = runner.model.exported.metadata
        check_classes(metadata, runner.test_dataloader.dataset.metainfo, self.file)
        for key in ('mean', 'std', 'channels', 'pad_value', 'score_thr'):
            if metadata[key] != self.described[key]:
                raise ConfigError(
                    f"'{self.file}' was exported with {key}={metadata[key]}, but the config has "
                    f'{self.described[key]}; restore the config, or export the model again'
                )


def evaluate(
    config: str | Path,
    checkpoint: str | Path,
    fuse: bool = False,
    work_dir: str | None = None,
    launcher: str = 'none',
    cfg_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, float]:
    """Evaluate a checkpoint, also in its fast form, or an exported file.

    Args:
        config: Config file.
        checkpoint: As in :func:`evit_mm.runner.test.test`, or what
            :func:`evit_mm.deploy.export.export` wrote.
        fuse: Test the fast form, see :class:`FuseHook`.
        work_dir: As there.
        launcher: As there; an exported file runs in one process.
        cfg_options: As there.
        **options: Further ones of that function.

    Returns:
        The metrics by name.

    Raises:
        EvitError: The config, the data set or the file cannot be used.
    """
    cfg = load_config(config, cfg_options, work_dir)
    if Path(checkpoint).suffix not in BY_SUFFIX:
        hooks = [FuseHook()] if fuse else []
        return test(cfg, checkpoint, launcher=launcher, hooks=hooks, **options)
    file = str(checkpoint)
    if fuse:
        raise ConfigError(f"--fuse cannot be used with the exported file '{file}'; remove it")
    if launcher != 'none':
        raise ConfigError(
            f"--launcher {launcher} cannot be used: the exported file '{file}' runs in one process"
        )
    hook = ExportedFileHook(file, describe(cfg, ()))
    preprocessor = cfg.model.data_preprocessor
    cfg.model = ConfigDict(type='ExportedDetector', file=file, data_preprocessor=preprocessor)
    return test(cfg, None, hooks=[hook], **options)
