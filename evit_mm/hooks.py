"""Hooks for mmengine's runner."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
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
