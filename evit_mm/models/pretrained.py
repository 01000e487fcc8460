"""Strict loading for ``init_cfg=dict(type='Pretrained', ...)``: every entry must fit.

The networks do not read files. They build an initializer from mmengine's registry by its name.
:mod:`evit_mm.checkpoint` registers this initializer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from ..errors import ConfigError

INITIALIZER = 'CheckedPretrained'


def split_init_cfg(
    init_cfg: Mapping[str, Any] | Sequence[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Return the entries of type ``Pretrained``, and the other entries."""
    cfgs = [init_cfg] if isinstance(init_cfg, Mapping | str) else list(init_cfg)
    for cfg in cfgs:
        if not isinstance(cfg, Mapping) or 'type' not in cfg:
            raise ConfigError(
                f"init_cfg must be a dict with a 'type', or a list of dicts, got {cfg!r}"
            )
        if cfg['type'] == 'Pretrained' and 'checkpoint' not in cfg:
            raise ConfigError(
                "init_cfg: type 'Pretrained' has no checkpoint; add checkpoint=PATH_OR_URL"
            )
    pretrained = [cfg for cfg in cfgs if cfg['type'] == 'Pretrained']
    return pretrained, [cfg for cfg in cfgs if cfg['type'] != 'Pretrained']


def load_checked(module: nn.Module, checkpoint: str, prefix: str | None = None) -> None:
    """Load weights into a network. See :func:`evit_mm.checkpoint.load_pretrained`."""
    cfg = {'type': INITIALIZER, 'checkpoint': checkpoint, 'prefix': prefix}
    WEIGHT_INITIALIZERS.build(cfg)(module)
