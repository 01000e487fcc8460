"""The check of a config's data sets, as a hook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..data.check import check_config_data


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Check the data sets that a run is about to read, see :mod:`evit_mm.data`.

    With a :class:`~evit_mm.runner.build.CheckedRunner` they are checked before they are built;
    with mmengine's runner, before the first iteration.

    Raises:
        DataError: Something would fail or silently go wrong.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.checked: tuple[str, ...] = ()

    def before_build(self, runner: Any, splits: Sequence[str]) -> None:
        """Check what some of the config's dataloaders read; only the first process does."""
        if is_main_process() and tuple(splits) != self.checked:
            check_config_data(runner.cfg, splits)
        self.checked = tuple(splits)

    def before_train(self, runner: Any) -> None:
        """Check the data of the training, unless that has been done."""
        self.before_build(runner, ('train', 'val'))

    def before_test(self, runner: Any) -> None:
        """Check the data of the test, unless that has been done."""
        self.before_build(runner, ('test',))
