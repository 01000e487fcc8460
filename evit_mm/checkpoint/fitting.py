"""Fit tensors to a model by name and shape, and report all differences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.logging import print_log
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

from ..errors import CheckpointError
from ..models.attention import fit_windows
from ..models.pretrained import INITIALIZER
from ..utils.text import counted
from .contents import DERIVED, extract_state_dict
from .sources import read_checkpoint

# types that convert to float32 without loss
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def fit_state_dict(
    state: Mapping[str, Tensor], model: nn.Module, name: str = 'checkpoint'
) -> dict[str, Tensor]:
    """Fit tensors to a model by name and shape.

    Two differences are allowed. The classifier and the stages that ``model`` does not build are
    dropped. Attention biases of another window size are resized.

    Args:
        state: The result of :func:`~evit_mm.checkpoint.extract_state_dict`.
        model: The module to load into. Its attribute ``unused``, if it exists, lists the parts
            that only the checkpoint may have.
        name: File name for error messages.

    Returns:
        The entries of ``model.state_dict()``, without the BatchNorm counters.

    Raises:
        CheckpointError: An entry is missing, unexpected, of another shape, not finite, or of a type
            that cannot be converted without loss. The message lists these entries.
    """
    wanted = model.state_dict()
    parts = tuple(f'{part}.' for part in getattr(model, 'unused', ()))
    absent = tuple(part for part in parts if not any(key.startswith(part) for key in wanted))
    fitted = {key: value for key, value in state.items() if not key.startswith(absent)}
    fitted = fit_windows(fitted, wanted)
    check_entries(fitted, wanted, type(model).__name__, name)
    return fitted


def check_state_dict(
    state: Mapping[str, Tensor], model: nn.Module, name: str = 'checkpoint'
) -> None:
    """Check that a checkpoint contains exactly the entries of a model.

    Args:
        state: The result of :func:`~evit_mm.checkpoint.extract_state_dict`.
        model: The module, which may be wrapped for distributed training.
        name: File name for error messages.

    Raises:
        CheckpointError: There is a difference. Unlike :func:`fit_state_dict`, no difference is
            allowed.
    """
    wanted = {k.removeprefix('module.'): v for k, v in model.state_dict().items()}
    check_entries(state, wanted, type(model).__name__, name)


def load_pretrained(model: nn.Module, source: str | Path, prefix: str | None = None) -> None:
    """Load ImageNet weights, or the backbone of a detector, into a network.

    Args:
        model: The network. It is modified in-place, and only if every entry fits. Its method
            ``translate_state_dict``, if it exists, first renames the tensors.
        source: See :func:`~evit_mm.checkpoint.read_checkpoint`.
        prefix: See :func:`~evit_mm.checkpoint.extract_state_dict`.

    Raises:
        CheckpointError: The file cannot be read or does not fit.
    """
    state = extract_state_dict(read_checkpoint(source), prefix, name=str(source))
    state = translate_names(state, model)
    fitted = fit_state_dict(state, model, str(source))
    resized = [k for k, v in fitted.items() if v.shape != state[k].shape]
    model.load_state_dict(fitted, strict=False)  # fit_state_dict has checked the names
    note = f', resized {counted(len(resized), "attention bias")}' if resized else ''
    print_log(f'loaded {counted(len(fitted), "entry")} from {source}{note}', logger='current')


def translate_names(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename tensors with the method ``translate_state_dict`` of the model, if it exists.

    The classifier defines it for the names in the authors' ImageNet files.
    """
    translate = getattr(model, 'translate_state_dict', None)
    return state if translate is None else translate(state)


@WEIGHT_INITIALIZERS.register_module(name=INITIALIZER)
class CheckedPretrained:
    """Initializer like mmengine's ``Pretrained`` that requires every entry to fit.

    mmengine's ``Pretrained`` skips entries that do not match and only warns. The networks of
    :mod:`evit_mm.models` use this class for ``init_cfg=dict(type='Pretrained', ...)``. Other
    modules can use it as ``init_cfg=dict(type='CheckedPretrained', ...)``.

    Args:
        checkpoint: See :func:`~evit_mm.checkpoint.read_checkpoint`.
        prefix: See :func:`~evit_mm.checkpoint.extract_state_dict`.
    """

    def __init__(self, checkpoint: str, prefix: str | None = None) -> None:
        self.checkpoint, self.prefix = checkpoint, prefix

    def __call__(self, module: nn.Module) -> None:
        """Load the weights into a module in-place.

        Raises:
            evit_mm.errors.CheckpointError: The file cannot be read or does not fit.
        """
        load_pretrained(module, self.checkpoint, self.prefix)


def check_entries(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], network: str, name: str
) -> None:
    """Raise a CheckpointError that lists the differences, except the entries in ``DERIVED``."""
    found = {key: tensor for key, tensor in found.items() if not key.endswith(DERIVED)}
    wanted = {key: tensor for key, tensor in wanted.items() if not key.endswith(DERIVED)}
    faults = [f'unexpected: {key}' for key in found if key not in wanted]
    for key, tensor in wanted.items():
        value = found.get(key)
        dtypes = (tensor.dtype, *FLOATS) if tensor.is_floating_point() else (tensor.dtype,)
        if value is None:
            faults.append(f'missing: {key}')
        elif value.shape != tensor.shape:
            shapes = f'{tuple(value.shape)} in the file, {tuple(tensor.shape)} in the model'
            faults.append(f'shape: {key} is {shapes}')
        elif value.dtype not in dtypes:
            faults.append(f'type: {key} is {value.dtype} in the file, {tensor.dtype} in the model')
        elif not torch.isfinite(value).all():
            faults.append(f'not finite: {key}')
    if faults:
        shown = '\n  '.join(faults[:20])
        more = f'\n  ... and {len(faults) - 20} more' if len(faults) > 20 else ''
        raise CheckpointError(
            f"'{name}' does not fit {network}; use a checkpoint of the same config and arch\n"
            f'  {shown}{more}'
        )
