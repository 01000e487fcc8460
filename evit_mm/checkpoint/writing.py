"""Writing checkpoints: whole or not at all, never over what is still needed."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..utils.files import write_atomically
from .reading import METADATA_KEY

SUFFIXES = ('.pth', '.pt', '.bin', '.safetensors')


def check_target(path: str | Path) -> None:
    """Raise a CheckpointError for a file whose suffix names no form."""
    if Path(path).suffix not in SUFFIXES:
        raise CheckpointError(f"'{path}' must end in one of {', '.join(SUFFIXES)}")


def write_checkpoint(
    state: Mapping[str, Tensor],
    path: str | Path,
    meta: Mapping[str, Any] | None = None,
    key: str = 'state_dict',
) -> None:
    """Write weights, with metadata, as ``.safetensors`` or as ``torch.save`` does.

    The file is written beside its place and moved there when it is whole and on the disk.

    Args:
        state: Tensors by name.
        path: File to write, in place of one that may be there.
        meta: Plain values; in a ``.safetensors`` file they stand as JSON under ``evit_mm``.
        key: Where ``torch.save``'s file has the tensors; beside them ``meta``.

    Raises:
        CheckpointError: The file cannot be written; what was there before still is.
    """
    path = Path(path)
    check_target(path)
    meta = dict(meta or {})
    # tensors of one storage each, so that no file holds more than the weights it names
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    try:
        if path.suffix == '.safetensors':
            import safetensors.torch  # late: evit_mm.ops works without it

            text = {'format': 'pt', METADATA_KEY: json.dumps(meta)}
            content = safetensors.torch.save(state, text)
        else:
            buffer = io.BytesIO()
            torch.save({key: state, 'meta': meta}, buffer)
            content = buffer.getvalue()
        write_atomically(path, content)
    except Exception as error:  # SafetensorError is a kind of its own
        raise CheckpointError(f"'{path}' cannot be written: {error}") from None
