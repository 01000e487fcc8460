"""Read untrusted checkpoint files: weights only, bounded in size, with one error type.

First, the file type is determined from the first bytes, and compressed archives are refused. Then
torch's weights-only unpickler reads the file. Before torch 2.6, the unpickler in
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

METADATA_KEY = 'evit_mm'  # key of this package's JSON metadata in checkpoints and exported models
CHECKPOINT_KINDS = ('zip', 'legacy', 'safetensors')
# first bytes of the two formats of torch.save, and of files that users often give by mistake
BEGINNINGS = {
    b'PK\x03\x04': 'zip',
    b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19': 'legacy',
    b'\x80': 'a Python pickle not written by torch.save',
    b'<': 'a web page',
    b'version https://git-lfs': 'a Git LFS pointer',
    b'\x1f\x8b': 'a compressed file',
}


def check_is_file(path: Path) -> None:
    """Raise a CheckpointError if a path is not a file."""
    if not os.path.isfile(path):  # opening a pipe could block forever
        fault = 'is a folder, pipe or device' if os.path.exists(path) else 'does not exist'
        raise CheckpointError(
            f"checkpoint '{path}' {fault}; give a .pth or .safetensors file, an http(s) URL, "
            'timm://NAME or hf-hub:OWNER/NAME'
        )


def read_file(path: str | Path) -> Any:
    """Read a ``torch.save`` or safetensors file onto the CPU.

    The content determines the format. A safetensors file of this package returns ``state_dict`` and
    ``meta``. Any other safetensors file returns its tensors. Every problem with the file raises a
    CheckpointError.
    """
    path = Path(path)
    check_is_file(path)
    try:
        with path.open('rb') as file:
            kind = kind_of(file)
            if kind not in CHECKPOINT_KINDS:
                raise CheckpointError(
                    f"'{path}' is {kind}, not a checkpoint; download or save it again"
                )
            if kind == 'safetensors':
                return _read_safetensors(path)
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


def kind_of(file: IO[bytes]) -> str:
    """Return one of :data:`CHECKPOINT_KINDS` from the first bytes, or a phrase for messages."""
    head = file.read(32)
    if head[8:9] == b'{':  # the JSON header follows the header length
        return 'safetensors'
    for beginning, kind in BEGINNINGS.items():
        if head.startswith(beginning):
            return kind
    return 'a truncated or unknown file' if head else 'an empty file'


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
    names = {member.filename.rpartition('/')[2] for member in members}
    if 'data.pkl' not in names or 'constants.pkl' in names:  # TorchScript
        raise CheckpointError(
            f"'{path}' is a TorchScript program or another archive, not a checkpoint; save the "
            "model's state dict, or extract the checkpoint from the archive"
        )


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
