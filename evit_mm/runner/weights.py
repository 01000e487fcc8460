"""Read weights for a model: translate the names and check them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

from ..checkpoint import (
    DERIVED,
    check_state_dict,
    extract_state_dict,
    metadata_of,
    plain_weights_of,
    read_checkpoint,
    translate_names,
)
from ..errors import ConfigError

BODY = ('backbone', 'neck')


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers for several processes and for test-time augmentation."""
    inner: Any = model
    while is_model_wrapper(inner) or isinstance(inner, BaseTTAModel):
        inner = inner.module
    return inner


def read_fitting(
    checkpoint: str | Path, model: nn.Module, metainfo: Mapping[str, Any]
) -> dict[str, Any]:
    """Read a checkpoint that matches a model and its class names exactly.

    Returns:
        A dict with the complete ``state_dict`` and ``meta``. It also has ``ema_state_dict`` if the
        file contains both plain and averaged weights.
    """
    name = str(checkpoint)
    content = read_checkpoint(checkpoint)
    state = translate_names(extract_state_dict(content, prefix='', name=name), model)
    check_state_dict(state, model, name=name)
    meta = metadata_of(content)
    check_classes(meta.get('dataset_meta'), metainfo, checkpoint)
    # add missing BatchNorm counters from the model, because the EMA hook swaps every entry
    read = {'meta': meta, 'state_dict': {**model.state_dict(), **state}}
    plain = plain_weights_of(content)
    if plain:
        weights = {key: value for key, value in plain.items() if key != 'steps'}
        check_state_dict(extract_state_dict(weights, prefix='', name=name), model, name=name)
        read['ema_state_dict'] = plain
    return read


def evaluated_weights(cfg: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights of :func:`read_fitting` that a test of the config evaluates.

    These are the averaged weights, unless mmpretrain's ``EMAHook`` has ``evaluate_on_ema=False``.
    """
    state = content['state_dict']
    hooks = cfg.get('custom_hooks') or ()
    if all(hook.get('evaluate_on_ema', True) for hook in hooks if isinstance(hook, Mapping)):
        return state
    prefix, plain = 'module.', content.get('ema_state_dict') or {}
    names = (key for key in plain if key.startswith(prefix))
    return {**state, **{key.removeprefix(prefix): plain[key] for key in names}}


def read_start(checkpoint: str | Path, model: nn.Module) -> dict[str, Any]:
    """Read initial weights for training. Only the head may differ.

    Returns:
        A dict with a complete ``state_dict``. Entries that do not match keep the values of the
        model, and a warning lists them.
    """
    name = str(checkpoint)
    state = translate_names(extract_state_dict(read_checkpoint(name), prefix='', name=name), model)
    body = nn.ModuleDict({part: x for part, x in model.named_children() if part in BODY})
    of_body = {key: x for key, x in state.items() if key.split('.')[0] in BODY}
    check_state_dict(of_body, body, name=name)
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    left_out = [key for key in (*state, *own) if key not in fitting and not key.endswith(DERIVED)]
    if left_out:
        names = ', '.join(sorted(set(left_out)))
        text = f"'{name}' has a different head; these entries are not loaded: {names}"
        print_log(text, logger='current', level=logging.WARNING)
    whole = {k: v for k, v in {**own, **fitting}.items() if not k.endswith(DERIVED)}
    check_state_dict(whole, model, name=name)
    return {'state_dict': {**own, **fitting}}


def check_classes(trained: Mapping[str, Any] | None, metainfo: Any, checkpoint: str | Path) -> None:
    """Raise a ConfigError if the class names of a checkpoint differ from the config."""
    classes = (trained or {}).get('classes')
    # several data sets have classes of their own; a folder is not read before it is needed
    if not isinstance(metainfo, Mapping) or metainfo.get('classes') is None:
        return
    if classes is not None and list(classes) != list(metainfo['classes']):
        raise ConfigError(
            f"checkpoint '{checkpoint}' was trained with the classes {tuple(classes)}, but the "
            f'config has {tuple(metainfo["classes"])}; set metainfo.classes to the classes of the '
            'checkpoint'
        )
