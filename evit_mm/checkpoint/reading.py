"""Read untrusted checkpoint files: weights only, bounded in size, with one error type.

First, :mod:`~evit_mm.checkpoint.file_kinds` recognises the kind of the file, and compressed
archives are refused. Then torch's weights-only unpickler reads the file. Before torch 2.6, the
unpickler in
:mod:`~evit_mm.checkpoint.unpickling` applies the same rules. Both allow only the types in
:mod:`~evit_mm.checkpoint.allowed_types`.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import tarfile
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import CheckpointError
from . import unpickling
from .allowed_types import AUTHORS_TYPES, TORCH_HAS_SAFE_TYPES, allow_mmengine_types
from .file_kinds import CHECKPOINT_KINDS, kind_of, kind_of_archive, refusal, refusal_of_missing

METADATA_KEY = 'evit_mm'  # key of this package's JSON metadata in checkpoints and exported models


def check_kind(path: Path) -> str:
    """Return the kind of a checkpoint, or raise a CheckpointError if a path is not one."""
    if not os.path.isfile(path):  # opening a pipe could block forever
        raise CheckpointError(refusal_of_missing(path))
    try:
        with path.open('rb') as file:
            kind = kind_of(file)
    except OSError as error:
        raise CheckpointError(f"checkpoint '{path}' cannot be read: {error}") from None
    if kind not in CHECKPOINT_KINDS:
        raise CheckpointError(refusal(path, kind))
    return kind


def read_file(path: str | Path) -> Any:
    """Read a ``torch.save`` or safetensors file onto the CPU.

    The content determines the format. A safetensors file of this package returns ``state_dict`` and
    ``meta``. Any other safetensors file returns its tensors. Every problem with the file raises a
    CheckpointError.
    """
    path = Path(path)
    kind = check_kind(path)
    try:
        if kind == 'safetensors':
            return _read_safetensors(path)
        with path.open('rb') as file:
            if kind == 'zip':
                _check_archive(path, file)
            file.seek(0)
            return _unpickle(file)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        # keep the type from torch's message, but not its advice to allow it
        unknown = re.search(r'GLOBAL \S{1,200}', str(error))
        what = f' ({unknown[0]})' if unknown else ''
        raise CheckpointError(
            f"checkpoint '{path}' was refused: it is damaged or contains more than weights{what}. "
            'No code from it was run; save it again with only its state dict'
        ) from None
    except Exception as error:  # corrupt data can raise any error in the libraries
        raise CheckpointError(
            f"'{path}' ({path.stat().st_size} bytes) is truncated or not a checkpoint; download or "
            f'save it again ({first_line(error)})'
        ) from None


def first_line(error: BaseException) -> str:
    """Return the first line of the error message, or the type if the message is empty."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else repr(error)[:300]


def _check_archive(path: Path, file: IO[bytes]) -> None:
    """Refuse compressed archives and TorchScript programs. torch.save never compresses."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    size, declared = path.stat().st_size, sum(member.file_size for member in members)
    if declared > size:
        raise CheckpointError(
            f"'{path}' was refused: it decompresses from {size} to {declared} bytes; save it again "
            'with torch.save, which does not compress'
        )
    kind = kind_of_archive(member.filename for member in members)
    if kind not in CHECKPOINT_KINDS:
        raise CheckpointError(refusal(path, kind))


def _unpickle(file: IO[bytes]) -> Any:
    if TORCH_HAS_SAFE_TYPES:
        allow_mmengine_types()
        # safe_globals removes its types on exit, so do not pass types that the user has allowed
        extra = [t for t in AUTHORS_TYPES if t not in torch.serialization.get_safe_globals()]
        with torch.serialization.safe_globals(extra):
            return torch.load(file, map_location='cpu', weights_only=True)  # noqa: TID251
    if tarfile.is_tarfile(file):  # torch's oldest format, which torch 2.6 refuses too
        raise pickle.UnpicklingError('a tar archive')
    file.seek(0)
    # with this option, torch uses pickle_module, which reads only weights
    return torch.load(file, 'cpu', pickle_module=unpickling, weights_only=False)  # noqa: TID251


def _read_safetensors(path: Path) -> dict[str, Any]:
    import safetensors.torch  # here, because evit_mm.ops works without it

    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, 'pt') as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    return tensors if text is None else {'state_dict': tensors, 'meta': json.loads(text)}
