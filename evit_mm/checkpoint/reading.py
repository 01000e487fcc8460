"""Reading files that a stranger may have made: weights only, bounded, one error type.

Before anything is unpickled, a file is looked at from outside: what it is by its first bytes, and
that it does not unfold to more than it weighs. Then torch's weights-only unpickler reads it, or
before torch 2.6 one by the same rules (:mod:`~evit_mm.checkpoint.unpickling`), with exactly the
types that :mod:`~evit_mm.checkpoint.allowed_types` names.
"""

from __future__ import annotations

import json
import pickle
import re
import stat
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import CheckpointError
from . import unpickling
from .allowed_types import AUTHORS_TYPES, TORCH_HAS_SAFE_TYPES, allow_mmengine_types

METADATA_KEY = 'evit_mm'  # of the JSON that files of ours hold beside their tensors or graph
# what torch's unpickler says of types and operations that it does not know, without its advice
REFUSED = re.compile(
    r"GLOBAL \S+|getattr of \S+|(?<=got )<class '[^']+'>|reduce for .*|Unsupported operand \d+"
)
LEGACY_MAGIC = b'l\xfc\x9cF\xf9 j\xa8P\x19'  # what torch.save began with before it wrote zips
CHECKPOINT_KINDS = ('zip', 'legacy', 'safetensors')
ZIP_MAGIC = b'PK\x03\x04'
FETCH_AGAIN = 'fetch or save it again'


def read_file(path: str | Path) -> Any:
    """Read a file of ``torch.save`` or safetensors, told apart by its content.

    Args:
        path: The file, whatever its suffix.

    Returns:
        What the file holds, tensors on the CPU. A safetensors file that was written here comes as
        ``state_dict`` and ``meta``, another one as its tensors.

    Raises:
        CheckpointError: The file is missing, not a regular file, of another kind, truncated,
            unfolds to more than its size, or holds types other than tensors, plain Python values
            and those of :mod:`~evit_mm.checkpoint.allowed_types`.
    """
    path = Path(path)
    size = _regular_size(path)
    try:
        with path.open('rb') as file:
            kind = kind_of(file, size)
            if kind == 'safetensors':
                return _read_safetensors(path)
            if kind not in CHECKPOINT_KINDS:
                raise CheckpointError(f"'{path}' is {kind}, not a checkpoint; {FETCH_AGAIN}")
            if kind == 'zip':
                _check_archive(path, file, size)
            file.seek(0)
            return _unpickle(path, file)
    except OSError as error:
        raise _unreadable(path, error) from None


def kind_of(file: IO[bytes], size: int) -> str:
    """Say what a file is by its first bytes.

    Args:
        file: The file, at its beginning.
        size: Bytes of the whole file.

    Returns:
        ``'zip'`` or ``'legacy'`` (the two formats of ``torch.save``), ``'safetensors'``, or a
        phrase for people, such as ``'a web page'``.
    """
    head = file.read(512)
    text = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if not head:
        return 'an empty file'
    if head.startswith(ZIP_MAGIC):
        return 'zip'
    if LEGACY_MAGIC in head[:32]:
        return 'legacy'
    if len(head) > 8 and head[8:9] == b'{':
        return 'safetensors'
    if text.startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
        return 'a web page'
    if head[257:262] == b'ustar':
        return 'a tar archive'
    if text.startswith(b'version https://git-lfs'):
        return 'a pointer of Git LFS in place of the file itself'
    if head.startswith(b'\x80'):
        return 'a Python pickle that torch.save has not written'
    if head.startswith((b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'\x28\xb5\x2f\xfd')):
        return 'a compressed file'
    if all(32 <= byte < 127 or byte in b'\t\r\n' for byte in head):
        return 'a text file'
    return f'a file of {size} bytes, truncated or of an unknown kind'


def _regular_size(path: Path) -> int:
    """Return the size of a regular file; to open anything else could wait for ever."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        if path.is_symlink():
            raise CheckpointError(
                f"checkpoint '{path}' is a link to something that does not exist"
            ) from None
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise CheckpointError(
                f"checkpoint '{path}' does not exist; give the path of a .pth or .safetensors file"
            ) from None
        raise CheckpointError(f"checkpoint '{path}' cannot be read: {error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise CheckpointError(f"checkpoint '{path}' is a folder; give a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"checkpoint '{path}' is a pipe or device, not a file")
    return status.st_size


def _check_archive(path: Path, file: IO[bytes], size: int) -> None:
    """Refuse an archive that unfolds to more than it weighs; torch.save never compresses."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise _unreadable(path, error) from None
    names = [member.filename for member in members]
    declared = sum(member.file_size for member in members)
    if len(set(names)) < len(names):
        raise CheckpointError(
            f"'{path}' was refused: it has members of the same name, as no file of torch.save; "
            'save it again'
        )
    if declared > size:
        raise CheckpointError(
            f"'{path}' was refused: its {len(members)} members would unfold from {size} to "
            f'{declared} bytes, as in no file of torch.save; save it again'
        )
    if any(name.endswith('/constants.pkl') for name in names):
        raise CheckpointError(
            f"'{path}' is a TorchScript program, not a checkpoint; save the state dict of its model"
        )
    if not any(name.endswith('/data.pkl') for name in names):
        raise CheckpointError(
            f"'{path}' is a zip archive that torch.save has not written; unpack it and give the "
            'checkpoint in it'
        )


def _unpickle(path: Path, file: IO[bytes]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of other pickle protocols
            return _load(file)
    except pickle.UnpicklingError as error:
        reason = str(error).replace('WeightsUnpickler error: ', '')
        found = REFUSED.search(reason)
        if not found:
            raise _unreadable(path, error) from None
        raise CheckpointError(
            f"checkpoint '{path}' was refused, nothing in it was run: it holds more than weights, "
            f"or is pickled unlike torch.save's own ({found[0][:200]}); save it again with its "
            'state dict alone'
        ) from None
    except Exception as error:  # whatever broken bytes lead the unpickler to
        raise _unreadable(path, error) from None


def _load(file: IO[bytes]) -> Any:
    if not TORCH_HAS_SAFE_TYPES:
        if tarfile.is_tarfile(file):  # torch's oldest format, of which torch 2.6 reads no more
            raise pickle.UnpicklingError('a tar archive')
        file.seek(0)
        # torch's own unpickler is not asked, ours reads weights only
        return torch.load(file, 'cpu', pickle_module=unpickling, weights_only=False)
    allow_mmengine_types()
    # leaving safe_globals forbids what it was given, even what somebody had allowed before
    extra = [t for t in AUTHORS_TYPES if t not in torch.serialization.get_safe_globals()]
    with torch.serialization.safe_globals(extra):
        return torch.load(file, map_location='cpu', weights_only=True)


def _read_safetensors(path: Path) -> dict[str, Any]:
    import safetensors.torch  # late: evit_mm.ops works without it

    try:
        tensors = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, 'pt') as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
        if text is None:
            return tensors
        return {'state_dict': tensors, 'meta': json.loads(text)}
    except Exception as error:  # SafetensorError is one of several
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"'{path}' ({path.stat().st_size} bytes) is not a readable checkpoint, truncated or of "
        f'another kind; {FETCH_AGAIN} ({first_line(error)})'
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else repr(error)[:200]
