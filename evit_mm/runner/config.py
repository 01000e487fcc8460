"""Load a config, apply the overrides of the command line, and check its keys."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from ..errors import ConfigError
from ..utils.package_files import find_config
from ..utils.text import did_you_mean

# keys that the tools of mmengine and mmdet read in addition to the arguments of the runner
TOOL_KEYS = ('auto_scale_lr', 'runner_type')
# test_cfg keys of mmdet's heads; a head ignores keys that it does not use
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


def load_config(
    config: str | Path,
    cfg_options: Mapping[str, Any] | None = None,
    work_dir: str | None = None,
) -> Config:
    """Load a config, apply overrides and set its work dir.

    Args:
        config: Config file, or the name of a config of this package, such as
            ``retinanet_evit_m4_coco``.
        cfg_options: Overrides with dotted keys.
        work_dir: Work dir. None uses the work dir of the config, by default ``work_dirs/NAME``.

    Raises:
        ConfigError: The file is missing or invalid, or a key is misspelled.
    """
    config = find_config(config)
    try:  # a config is a Python program and can raise any exception
        cfg = Config.fromfile(str(config))
        own = set(cfg)
        if cfg_options:
            cfg.merge_from_dict(dict(cfg_options))
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
        raise ConfigError(f"config '{config}' cannot be read ({reason})") from error
    known = {*inspect.signature(Runner.__init__).parameters, *TOOL_KEYS}
    for key in set(cfg) - known:
        # a config can define additional keys, but a new key on the command line is a mistake
        hint = did_you_mean(key, known, cutoff=0.85 if key in own else 0.5)
        if hint or key not in own:
            fix = hint or '; remove it or correct its name'
            raise ConfigError(f"{config}: unknown key '{key}'{fix}")
    for key in ('model', 'test_dataloader'):
        if not isinstance(cfg.get(key), Mapping):
            raise ConfigError(
                f"{config}: '{key}' is missing or not a dict; define it or inherit it with _base_"
            )
    check_test_keys(cfg.model.get('test_cfg'), str(config))
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(config).stem)
    return cfg


def is_classifier(cfg: Mapping[str, Any]) -> bool:
    """Return whether a config is for a classifier, which uses mmpretrain."""
    return cfg.get('default_scope') == 'mmpretrain'


def check_test_keys(test_cfg: Any, name: str, where: str = 'model.test_cfg') -> None:
    """Reject misspelled keys. Accept other unknown keys, because custom heads can use them."""
    if not isinstance(test_cfg, Mapping):
        return
    for key, value in test_cfg.items():
        hint = did_you_mean(key, TEST_KEYS, cutoff=0.75)
        if key not in TEST_KEYS and hint:
            raise ConfigError(f"{name}: unknown key '{where}.{key}'{hint}")
        if key in ('rpn', 'rcnn'):
            check_test_keys(value, name, f'{where}.{key}')
