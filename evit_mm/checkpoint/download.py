"""Downloads into torch hub's cache: one per machine, and a whole checkpoint or no file."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import torch

from ..errors import CheckpointError
from .reading import CHECKPOINT_KINDS, first_line, kind_of

RETRIES = 2  # after an attempt that failed, a second and two seconds later
TIMEOUT_SECONDS = 30  # without a byte
CHUNK_BYTES = 1 << 18
# torch hub's convention: the SHA-256 of name-0123abcd.pth begins with 0123abcd
DIGEST_IN_NAME = re.compile(r'-([0-9a-f]{8,64})\.')
POINT_AT_FILE = (
    ', or point the config at the file: --cfg-options model.backbone.init_cfg.checkpoint=FILE '
    '(model.backbone.init_cfg=None trains from scratch)'
)


class _WrongFileError(Exception):
    """What came is not the checkpoint that was asked for; asking again would not help."""


def fetch(url: str) -> Path:
    """Download a checkpoint into torch hub's cache, unless it is there.

    Of several processes one downloads, and the others wait. The file appears under its name when
    it is complete, begins as a checkpoint does, and has the SHA-256 that its name may tell.

    Args:
        url: http(s) address.

    Returns:
        The file's path.

    Raises:
        CheckpointError: The file cannot be fetched.
    """
    name = _file_name(url)
    if not name:
        raise CheckpointError(f"'{url}' names no file; give the address of a checkpoint")
    path = Path(torch.hub.get_dir()) / 'checkpoints' / name
    if path.is_file():
        return path

    import pooch  # late, both: reading a file does not need them
    from filelock import FileLock

    cache = pooch.create(
        path.parent, '', registry={name: None}, urls={name: url}, retry_if_failed=RETRIES
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f'{path}.lock'):
            cache.fetch(name, downloader=_download)
    except (OSError, ValueError, _WrongFileError) as error:
        # urllib3 keeps the reason apart from the story of its attempts
        reason = getattr(error.args[0], 'reason', error) if error.args else error
        raise CheckpointError(
            f'cannot download {url} ({first_line(reason)}). Fetch it on a machine with network and '
            f"save it as '{path}'{POINT_AT_FILE}"
        ) from None
    return path


def check_digest(path: Path, expected: str) -> None:
    """Compare a cached file with its SHA-256 in hexadecimal.

    Raises:
        CheckpointError: The file is another one.
    """
    found = _digest(path)
    if found != expected:
        raise CheckpointError(
            f"'{path}' has the SHA-256 {found}, but {expected} was expected: it is damaged or was "
            'exchanged; delete it to fetch it again'
        )


def _file_name(url: str) -> str:
    return Path(unquote(urlparse(url).path)).name


def _digest(path: Path) -> str:
    import pooch

    return pooch.file_hash(str(path), alg='sha256')


def _download(url: str, partial: str, cache: Any) -> None:
    """Fill a temporary file, which pooch moves to its place if nothing is raised here."""
    import pooch

    pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(), chunk_size=CHUNK_BYTES, timeout=TIMEOUT_SECONDS
    )(url, partial, cache)
    file = Path(partial)
    with file.open('rb') as opened:
        kind = kind_of(opened, file.stat().st_size)
    if kind not in CHECKPOINT_KINDS:
        raise _WrongFileError(f'the server sent {kind} in place of a checkpoint')
    named = DIGEST_IN_NAME.search(_file_name(url))
    if named and not (found := _digest(file)).startswith(named[1]):
        raise _WrongFileError(f'what came has the SHA-256 {found}, not that in its name')
    file.chmod(0o644)  # temporary files are their owner's only, and the cache may be shared
