"""Hook that checks the data sets of a config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..data.check import check_config_data


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Check the data sets of a run before they are used. See :mod:`evit_mm.data`.

    With :class:`~evit_mm.runner.build.CheckedRunner`, the check runs before the data sets are
    built. With mmengine's runner, it runs before the first iteration.

    Raises:
        DataError: A data set has errors.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.checked: tuple[str, ...] = ()

    def before_build(self, runner: Any, splits: Sequence[str]) -> None:
        """Check the data sets of the given splits, in the first process only."""
        if is_main_process() and tuple(splits) != self.checked:
            check_config_data(runner.cfg, splits)
        self.checked = tuple(splits)

    def before_train(self, runner: Any) -> None:
        """Check the data sets for training, unless this has been done."""
        self.before_build(runner, ('train', 'val'))

    def before_test(self, runner: Any) -> None:
        """Check the data sets for testing, unless this has been done."""
        self.before_build(runner, ('test',))
