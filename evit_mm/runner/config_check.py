"""Values of a config that no library looks at before they do harm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..utils.text import did_you_mean

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# what mmdet's heads read; a head reads only its own of them, and passes over every other key
TEST_KEYS = (
    'nms_pre',
    'nms_post',
    'min_bbox_size',
    'score_thr',
    'conf_thr',
    'nms',
    'max_per_img',
    'mask_thr_binary',
    'mask_thr',
    'multi_label',
    'rpn',
    'rcnn',
)


def check_values(cfg: Mapping[str, Any], name: str) -> None:
    """Refuse a batch size that is none, and keys of ``model.test_cfg`` that nothing would read.

    Args:
        cfg: Config.
        name: Its file, for the message.

    Raises:
        ConfigError: One of these.
    """
    for loader in LOADERS:
        size = (cfg.get(loader) or {}).get('batch_size', 1)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError(
                f'{name}: {loader}.batch_size must be a whole number from 1 up, got {size!r}'
            )
    _check_test_keys(cfg['model'].get('test_cfg'), 'model.test_cfg', name)


def _check_test_keys(test_cfg: Any, where: str, name: str) -> None:
    """Refuse what is nearly a known key; a head of the user's own may read any other."""
    if not isinstance(test_cfg, Mapping):
        return
    for key, value in test_cfg.items():
        hint = did_you_mean(key, TEST_KEYS, cutoff=0.75)
        if key not in TEST_KEYS and hint:
            raise ConfigError(f"{name}: unknown key '{where}.{key}'{hint}")
        if key in ('rpn', 'rcnn'):
            _check_test_keys(value, f'{where}.{key}', name)
