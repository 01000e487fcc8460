"""Reading files that a stranger may have made: weights only, bounded, one error type.

Before anything is unpickled, a file is looked at from outside: what it is by its first bytes, and
that it does not unfold to more than it weighs. Then torch's weights-only unpickler reads it, or
before torch 2.6 one by the same rules (:mod:`~evit_mm.checkpoint.unpickling`), with exactly the
types that :mod:`~evit_mm.checkpoint.allowed_types` names.
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

METADATA_KEY = 'evit_mm'  # of the JSON that files of ours hold beside their tensors or graph
CHECKPOINT_KINDS = ('zip', 'legacy', 'safetensors')
# how files begin: the two formats of torch.save, and what people have in their place
BEGINNINGS = {
    b'PK\x03\x04': 'zip',
    b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19': 'legacy',
    b'\x80': 'a Python pickle not written by torch.save',
    b'<': 'a web page',
    b'version https://git-lfs': 'a Git LFS pointer',
    b'\x1f\x8b': 'a compressed file',
}


def read_file(path: str | Path) -> Any:
    """Read a file of ``torch.save`` or safetensors, told apart by its content, onto the CPU.

    A safetensors file that was written here comes as ``state_dict`` and ``meta``, another one as
    its tensors. Whatever is wrong with a file is a CheckpointError.
    """
    path = Path(path)
    if not os.path.isfile(path):  # to open a pipe could wait for ever
        fault = 'is a folder, pipe or device' if os.path.exists(path) else 'does not exist'
        raise CheckpointError(
            f"checkpoint '{path}' {fault}; give a .pth or .safetensors file, an http(s) URL, "
            'timm://NAME or hf-hub:OWNER/NAME'
        )
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
        # torch names the type, but then advises to allow it
        unknown = re.search(r'GLOBAL \S{1,200}', str(error))
        what = f' ({unknown[0]})' if unknown else ''
        raise CheckpointError(
            f"checkpoint '{path}' was refused: it is damaged or contains more than weights{what}. "
            'Nothing in it was run; save it again with only its state dict'
        ) from None
    except Exception as error:  # whatever broken bytes lead a library to
        raise CheckpointError(
            f"'{path}' ({path.stat().st_size} bytes) is truncated or not a checkpoint; download or "
            f'save it again ({first_line(error)})'
        ) from None


def kind_of(file: IO[bytes]) -> str:
    """Return one of :data:`CHECKPOINT_KINDS` by a file's first bytes, else a phrase for people."""
    head = file.read(32)
    if head[8:9] == b'{':  # after the length of the header
        return 'safetensors'
    for beginning, kind in BEGINNINGS.items():
        if head.startswith(beginning):
            return kind
    return 'a truncated or unknown file' if head else 'an empty file'


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else repr(error)[:300]


def _check_archive(path: Path, file: IO[bytes]) -> None:
    """Refuse an archive that unfolds to more than it weighs; torch.save never compresses."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    size, declared = path.stat().st_size, sum(member.file_size for member in members)
    if declared > size:
        raise CheckpointError(
            f"'{path}' was refused: it decompresses from {size} to {declared} bytes; save it again "
            'with torch.save, which does not compress'
        )
    names = {member.filename.rpartition('/')[2] for member in members}
    if 'data.pkl' not in names or 'constants.pkl' in names:  # the latter has programs
        raise CheckpointError(
            f"'{path}' is a TorchScript program or another archive, not a checkpoint; save the "
            "model's state dict, or extract the checkpoint from the archive"
        )


def _unpickle(file: IO[bytes]) -> Any:
    if TORCH_HAS_SAFE_TYPES:
        allow_mmengine_types()
        # leaving safe_globals forbids what it was given, even what somebody had allowed before
        extra = [t for t in AUTHORS_TYPES if t not in torch.serialization.get_safe_globals()]
        with torch.serialization.safe_globals(extra):
            return torch.load(file, map_location='cpu', weights_only=True)
    if tarfile.is_tarfile(file):  # torch's oldest format, of which torch 2.6 reads no more
        raise pickle.UnpicklingError('a tar archive')
    file.seek(0)
    # torch's own unpickler is not asked, ours reads weights only
    return torch.load(file, 'cpu', pickle_module=unpickling, weights_only=False)


def _read_safetensors(path: Path) -> dict[str, Any]:
    import safetensors.torch  # late: evit_mm.ops works without it

    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, 'pt') as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    return tensors if text is None else {'state_dict': tensors, 'meta': json.loads(text)}
