"""Hook that checks the data sets of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..data.check import check_config_data
from ..data.images import is_cut_short
from ..errors import DataError


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Check the data sets of a run before they are used. See :mod:`evit_mm.data`.

    With :class:`~evit_mm.runner.build.CheckedRunner`, the check runs before the data sets are
    built. With mmengine's runner, it runs before the first iteration. Of a large data set, it opens
    only the first images, so an evaluation also checks that no image is truncated.
    :class:`~evit_mm.runner.ExactTrainLoop` checks this in a training.

    Raises:
        DataError: A data set has errors, or an image is truncated.
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

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Check that no image of the batch is truncated."""
        samples = data_batch.get('data_samples') if isinstance(data_batch, Mapping) else None
        samples = samples if isinstance(samples, Sequence) else ()
        if samples and isinstance(samples[0], Sequence):
            samples = samples[0]  # the first view of each image, in test-time augmentation
        for sample in samples:
            path = getattr(sample, 'img_path', None)
            if isinstance(path, str) and is_cut_short(path):
                raise DataError(
                    f"image '{path}' is truncated; replace it or remove it from the data set"
                )

    before_test_iter = before_val_iter
