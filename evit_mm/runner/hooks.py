"""Hooks for mmengine's runner."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS


@HOOKS.register_module()
class DropCheckpointConfigHook(Hook):
    """Forget the config text inside a checkpoint as soon as it is loaded.

    On resume, mmengine runs that text as Python, so a checkpoint from a stranger could run
    anything although its pickle is read weights-only. The text is of use to people, not to the
    run, whose config is the file that it was started with.
    """

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:  # noqa: ARG002
        """Drop ``meta.config``."""
        (checkpoint.get('meta') or {}).pop('config', None)


@HOOKS.register_module()
class FuseHook(Hook):
    """Put the model into its fast form before it is tested, see :func:`evit_mm.deploy.fuse`."""

    priority = 'VERY_LOW'  # after EMA has put its weights in

    def before_test_epoch(self, runner: Any) -> None:
        """Exchange the model."""
        from ..deploy import fuse

        if is_model_wrapper(runner.model):
            runner.model.module = fuse(runner.model.module.eval())
        else:
            runner.model = fuse(runner.model.eval())
