"""Evaluation of fused models and exported files."""

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
from ...runner.tta import add_tta
from ...runner.weights import check_classes, unwrap
from .. import fusion
from .classification import describe_classifier
from .files import describe, preprocessor_config
from .formats import BY_SUFFIX

# keys of a detector's metadata that the config must agree with; of a classifier's, all must
COMPARED = ('reader', 'mean', 'std', 'channels', 'pad_to', 'pad_pixel', 'pad_value', 'score_thr')


@HOOKS.register_module()
class FuseHook(Hook):
    """Fuse the model before a test.

    Detectors use :func:`evit_mm.deploy.fuse_detector`, classifiers use
    :func:`evit_mm.deploy.fuse`.
    """

    priority = 'VERY_LOW'  # runs after the EMA hook has swapped in its weights

    def before_test_epoch(self, runner: Any) -> None:
        """Replace the model by its fused copy."""
        print_log('testing the fused model', logger='current')
        fuse = fusion.fuse if is_classifier(runner.cfg) else fusion.fuse_detector
        if is_model_wrapper(runner.model):
            runner.model.module = fuse(runner.model.module.eval())
        else:
            runner.model = fuse(runner.model.eval())


class ExportedFileHook(Hook):
    """Check that the config, summarised in ``described``, matches an exported file."""

    def __init__(self, file: str, described: Mapping[str, Any]) -> None:
        self.file, self.described = file, described

    def before_test(self, runner: Any) -> None:
        """Compare the classes, the reader, the preprocessing and the score threshold."""
        metainfo = runner.test_dataloader.dataset.metainfo
        model: Any = unwrap(runner.model)
        check_metadata(self.file, model.exported.metadata, self.described, metainfo)


def check_metadata(
    file: str, metadata: Mapping[str, Any], described: Mapping[str, Any], metainfo: Mapping
) -> None:
    """Check that a config, summarised in ``described``, matches the metadata of a file."""
    check_classes(metadata, metainfo, file)
    # files of older versions do not name the reader
    compared = COMPARED if 'score_thr' in described else {*described} - {'classes'}
    for key in compared:
        if key in metadata and metadata[key] != described[key]:
            raise ConfigError(
                f"'{file}' was exported with {key}={metadata[key]}, but the config has "
                f'{described[key]}; restore the config, or export the model again'
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
    """Evaluate a checkpoint, optionally fused, or an exported file.

    Args:
        config: Config file.
        checkpoint: Checkpoint, see :func:`evit_mm.runner.test.test`, or a file written by
            :func:`evit_mm.deploy.export.export`.
        fuse: Test the fused model, see :class:`FuseHook`.
        work_dir: See :func:`evit_mm.runner.test.test`.
        launcher: See :func:`evit_mm.runner.test.test`. An exported file runs in one process.
        cfg_options: See :func:`evit_mm.runner.test.test`.
        **options: Other arguments of :func:`evit_mm.runner.test.test`.

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
        raise ConfigError(f"--fuse cannot be used with the exported file '{file}'; remove --fuse")
    if launcher != 'none':
        raise ConfigError(
            f"--launcher {launcher} cannot be used with the exported file '{file}', which runs in "
            'one process; remove --launcher'
        )
    classifies = is_classifier(cfg)
    hook = ExportedFileHook(file, (describe_classifier if classifies else describe)(cfg, ()))
    if options.get('tta') is not None:
        add_tta(cfg, options['tta'])  # reads test_cfg of the model, which is replaced below
        options['tta'] = ()
    kind = 'ExportedClassifier' if classifies else 'ExportedDetector'
    cfg.model = ConfigDict(type=kind, file=file, data_preprocessor=preprocessor_config(cfg))
    return test(cfg, None, hooks=[hook], **options)
