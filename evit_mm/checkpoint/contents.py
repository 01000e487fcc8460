"""Extract the tensors, the class names and the config from a checkpoint.

A checkpoint is untrusted input, so every value is validated here before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import CheckpointError
from .names import BACKBONE, BIAS_INDICES, family_of, from_timm

T = TypeVar('T')
# Entries that depend only on the architecture. The model creates them again.
DERIVED = (BIAS_INDICES, 'num_batches_tracked')


def tensors_of(checkpoint: Any, name: str = 'checkpoint') -> dict[str, Tensor]:
    """Return all weights of a checkpoint by name.

    The state dict is at the top level, under ``model`` or under ``state_dict``. The prefixes
    ``module.`` and ``_orig_mod.`` are removed. If the training used EMA, ``state_dict`` contains
    the averaged weights.

    Args:
        checkpoint: The result of :func:`~evit_mm.checkpoint.read_checkpoint`.
        name: File name for error messages.

    Returns:
        Dense tensors by name.

    Raises:
        CheckpointError: There are no tensors, or a name or a tensor is not valid in a state dict.
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
        tensor = Tensor.detach(value)  # the tensor may have attributes that hide methods
        if not _is_plain(tensor):
            raise CheckpointError(
                f"'{name}': '{key[:200]}' is not a plain tensor; save it as a dense, contiguous "
                'CPU tensor'
            )
        # prefixes of DataParallel and torch.compile
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
    """Return the tensors of the backbone with the names of this package.

    The checkpoint can be a backbone, a classifier, a whole detector (its ``backbone.`` part is
    used) or timm's EfficientViT.

    Args:
        checkpoint: The result of :func:`~evit_mm.checkpoint.read_checkpoint`.
        prefix: Use only the entries with this prefix, and remove it from their names. With
            None, the prefix is ``backbone.`` if the checkpoint has entries with it.
        name: File name for error messages.

    Returns:
        Tensors by name, without the entries in :data:`DERIVED`.

    Raises:
        CheckpointError: There are no tensors, or no tensor has the prefix.
    """
    state = tensors_of(checkpoint, name)
    if prefix is None:
        prefix = BACKBONE if any(key.startswith(BACKBONE) for key in state) else ''
    dotted = prefix.rstrip('.') + '.' if prefix else ''
    found = {key[len(dotted) :]: v for key, v in state.items() if key.startswith(dotted)}
    if not found:
        raise CheckpointError(
            f"'{name}' has no entry with the prefix '{dotted}'; its first entry is "
            f"'{next(iter(state))}'; correct or remove 'prefix' in init_cfg"
        )
    found = own_names(found, name)
    return {key: v for key, v in found.items() if not key.endswith(DERIVED)}


def own_names(state: Mapping[str, T], name: str = 'checkpoint') -> dict[str, T]:
    """Rename the entries of a backbone to the names of this package, if they have timm's names."""
    if family_of(state) != 'timm':
        return dict(state)
    try:
        return {from_timm(key): value for key, value in state.items()}
    except ValueError as error:  # a number or a part that timm's EfficientViT does not have
        raise CheckpointError(f"'{name}' has an entry with an unknown timm name: {error}") from None


def plain_weights_of(checkpoint: Any) -> dict[str, Any] | None:
    """Return the non-averaged weights that mmengine's EMA hook stores.

    Args:
        checkpoint: The result of :func:`~evit_mm.checkpoint.read_checkpoint`.

    Returns:
        The weights, with the prefix ``module.``, and the counter ``steps`` of the hook. None if the
        training did not use EMA.
    """
    return _entries(_entries(checkpoint).get('ema_state_dict')) or None


def metadata_of(checkpoint: Any) -> dict[str, Any]:
    """Return the class names and the config of a checkpoint under mmengine's keys.

    Args:
        checkpoint: The result of :func:`~evit_mm.checkpoint.read_checkpoint`, from mmdet 2 or 3.

    Returns:
        ``dataset_meta`` with ``classes``, and ``cfg`` with the text of the config, if the
        checkpoint has them. The key is not ``config``, because mmengine executes the text under
        ``config`` when it resumes.
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
    """Return the entries of a dict, or an empty dict for any other value.

    A file can override methods of an OrderedDict, for example ``get`` and ``items``.
    """
    return dict(dict.items(value)) if isinstance(value, dict) else {}


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is dense, on the CPU, and has storage for every element."""
    if type(tensor) is not Tensor or tensor.layout != torch.strided:
        return False
    if tensor.device.type != 'cpu' or tensor.is_quantized or tensor.is_nested:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
