"""What a checkpoint holds: its tensors out of whatever wraps them, its class names, its config.

Nothing that a file says about itself is believed before it is looked at here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import CheckpointError
from .names import BACKBONE, BIAS_INDICES, family_of, from_timm

T = TypeVar('T')
# Entries that follow from the architecture and are made anew when it is built.
DERIVED = (BIAS_INDICES, 'num_batches_tracked')


def tensors_of(checkpoint: Any, name: str = 'checkpoint') -> dict[str, Tensor]:
    """Return all weights of a checkpoint by name.

    Takes files with ``model`` or ``state_dict`` and bare ones; what wrappers put before every name
    is cut off. Of a training with EMA, ``state_dict`` has the averaged weights.

    Args:
        checkpoint: What :func:`~evit_mm.checkpoint.read_checkpoint` returned.
        name: The file's name, for messages.

    Returns:
        Dense tensors by name, otherwise as they are in the file.

    Raises:
        CheckpointError: There are no tensors, or a name or tensor is none of a state dict.
    """
    content = _entries(checkpoint)
    for key in ('model', 'state_dict'):
        content = _entries(content.get(key)) or content
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(value, Tensor):
            continue
        if not isinstance(key, str) or not key.isprintable():
            raise CheckpointError(f"'{name}': {ascii(key)[:200]} is not a valid weight name")
        tensor = Tensor.detach(value)  # without attributes that a file may have put over methods
        if not _is_plain(tensor):
            raise CheckpointError(
                f"'{name}': '{key[:200]}' is not a plain tensor; save it as a dense, contiguous "
                'CPU tensor'
            )
        # what DataParallel and torch.compile put before every name
        state[key.removeprefix('module.').removeprefix('_orig_mod.')] = tensor
    if not state:
        raise CheckpointError(
            f"'{name}' contains no weights; expected a state dict at the top level or under "
            "'model' or 'state_dict'"
        )
    return state


def extract_state_dict(
    checkpoint: Any, prefix: str | None = None, name: str = 'checkpoint'
) -> dict[str, Tensor]:
    """Return the backbone's tensors, by own names, out of whatever wraps them.

    Takes what :func:`tensors_of` takes, whole detectors, from which the ``backbone.`` part is
    taken, and the names of timm's EfficientViT.

    Args:
        checkpoint: What :func:`~evit_mm.checkpoint.read_checkpoint` returned.
        prefix: Take only names with this prefix and cut it off, instead of looking for
            ``backbone.``.
        name: The file's name, for messages.

    Returns:
        Tensors by name, without the entries in :data:`DERIVED`.

    Raises:
        CheckpointError: There are no tensors, or none with the prefix.
    """
    state = tensors_of(checkpoint, name)
    if prefix is None:
        prefix = BACKBONE if any(key.startswith(BACKBONE) for key in state) else ''
    dotted = prefix.rstrip('.') + '.' if prefix else ''
    found = {key[len(dotted) :]: v for key, v in state.items() if key.startswith(dotted)}
    if not found:
        raise CheckpointError(
            f"'{name}' has no entry with the prefix '{dotted}'; its first entry is "
            f"'{next(iter(state))}'"
        )
    found = own_names(found, name)
    return {key: v for key, v in found.items() if not key.endswith(DERIVED)}


def own_names(state: Mapping[str, T], name: str = 'checkpoint') -> dict[str, T]:
    """Give a backbone's entries own names, if they have timm's."""
    if family_of(state) != 'timm':
        return dict(state)
    try:
        return {from_timm(key): value for key, value in state.items()}
    except ValueError as error:  # a number or part that timm does not have
        raise CheckpointError(f"'{name}' has an entry with an unknown timm name: {error}") from None


def plain_weights_of(checkpoint: Any) -> dict[str, Any] | None:
    """Return what mmengine's EMA hook keeps beside the averaged weights, None without EMA.

    Args:
        checkpoint: What :func:`~evit_mm.checkpoint.read_checkpoint` returned.

    Returns:
        The weights as they were trained, names after ``module.``, and the hook's counter ``steps``.
    """
    return _entries(_entries(checkpoint).get('ema_state_dict')) or None


def metadata_of(checkpoint: Any) -> dict[str, Any]:
    """Return what a checkpoint says beside its weights, under mmengine's keys.

    Args:
        checkpoint: What :func:`~evit_mm.checkpoint.read_checkpoint` returned, from mmdet 2 or 3.

    Returns:
        ``dataset_meta`` with ``classes`` and ``cfg``, the config's text, where there are any. The
        text does not stand under ``config``, which mmengine runs on resuming.
    """
    meta = _entries(_entries(checkpoint).get('meta'))
    dataset = _entries(meta.get('dataset_meta'))
    classes = dataset.get('classes', meta.get('CLASSES'))
    text = meta.get('cfg', meta.get('config'))
    found: dict[str, Any] = {}
    if isinstance(classes, list | tuple) and all(isinstance(n, str) for n in classes):
        found['dataset_meta'] = {'classes': tuple(classes)}
    if isinstance(text, str):
        found['cfg'] = text
    return found


def _entries(value: Any) -> dict[Any, Any]:
    """Return a dict's entries, none of anything else.

    A file may give an OrderedDict attributes such as ``get`` and ``items`` of its own.
    """
    return dict(dict.items(value)) if isinstance(value, dict) else {}


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is what it seems: dense, on the CPU, with a number stored per element."""
    if type(tensor) is not Tensor or tensor.layout != torch.strided:
        return False
    if tensor.device.type != 'cpu' or tensor.is_quantized or tensor.is_nested:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
