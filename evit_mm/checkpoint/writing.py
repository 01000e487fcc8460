"""Write checkpoints atomically."""

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
    """Raise a CheckpointError if the suffix of the file is not supported."""
    if Path(path).suffix not in SUFFIXES:
        raise CheckpointError(f"'{path}' must end in one of {', '.join(SUFFIXES)}")


def write_checkpoint(
    state: Mapping[str, Tensor],
    path: str | Path,
    meta: Mapping[str, Any] | None = None,
    key: str = 'state_dict',
) -> None:
    """Write weights and metadata to a ``.safetensors`` file or with ``torch.save``.

    The content is written to a temporary file, which then replaces ``path`` (an atomic write).

    Args:
        state: Tensors by name.
        path: File to write. An existing file is replaced.
        meta: Plain values. A ``.safetensors`` file stores them as JSON under ``evit_mm``, and
            ``torch.save`` stores them under ``meta``.
        key: Key of the tensors in a ``torch.save`` file.

    Raises:
        CheckpointError: The file cannot be written. An existing file is not changed.
    """
    path = Path(path)
    check_target(path)
    meta = dict(meta or {})
    # each tensor gets its own storage, because torch.save writes the whole storage of a view
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    try:
        if path.suffix == '.safetensors':
            import safetensors.torch  # here, because evit_mm.ops works without it

            text = {'format': 'pt', METADATA_KEY: json.dumps(meta)}
            content = safetensors.torch.save(state, text)
        else:
            buffer = io.BytesIO()
            torch.save({key: state, 'meta': meta}, buffer)
            content = buffer.getvalue()
        write_atomically(path, content)
    except Exception as error:  # SafetensorError is not an OSError
        raise CheckpointError(f"'{path}' cannot be written: {error}") from None
