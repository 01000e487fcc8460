"""Downloads that are whole or absent: locked, resumed, verified, then put in place at once."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlparse

import torch
from filelock import FileLock, Timeout
from mmengine.logging import print_log
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from ..errors import CheckpointError
from .reading import CHECKPOINT_KINDS, HEAD_BYTES, first_line, kind_of

ATTEMPTS = 4
SILENCE_SECONDS = 30  # without a byte, after which an attempt is given up
PAUSE_SECONDS = 1  # before the second attempt; twice as long before each further one
CHUNK_BYTES = 1 << 18
DIGEST_SUFFIX = '.sha256'
# torch hub's convention: name-0123abcd.pth begins its SHA-256 so
DIGEST_IN_NAME = re.compile(r'-([0-9a-f]{8,64})\.')
POINT_AT_FILE = (
    ', or point the config at the file: --cfg-options model.backbone.init_cfg.checkpoint=FILE '
    '(model.backbone.init_cfg=None trains from scratch)'
)


class _BrokenError(Exception):
    """What came is not what was promised."""


def fetch(url: str) -> Path:
    """Download a checkpoint into torch hub's cache, once for all processes of a node.

    The first process downloads while the others wait. The file appears under its name only when it
    is whole: as many bytes as the server promised, and by its first bytes a checkpoint. Its SHA-256
    is written beside it then, and compared whenever the file is used again.

    Args:
        url: http(s) address.

    Returns:
        The file's path.

    Raises:
        CheckpointError: The file cannot be fetched, or is not the one that was fetched first.
    """
    name = Path(unquote(urlparse(url).path)).name
    if not name:
        raise CheckpointError(f"'{url}' names no file; give the address of a checkpoint")
    path = Path(torch.hub.get_dir()) / 'checkpoints' / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _claimed(path):
            if not path.is_file():
                _download(url, path)
            check_digest(path, None)
    except (OSError, _BrokenError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f'cannot download {url} ({first_line(error)}). Fetch it on a machine with network and '
            f"save it as '{path}'{POINT_AT_FILE}"
        ) from None
    return path


def check_digest(path: Path, expected: str | None) -> None:
    """Compare a cached file with its SHA-256.

    Args:
        path: The file.
        expected: The digest in hexadecimal where it is known; None takes the one that was written
            beside the file on first use, or writes it.

    Raises:
        CheckpointError: The file is another one.
    """
    found = _digest(path)
    beside = path.with_name(path.name + DIGEST_SUFFIX)
    if expected is None and beside.is_file():
        expected = beside.read_text(encoding='ascii', errors='replace').split(' ')[0].strip()
    if expected not in (None, found):
        raise CheckpointError(
            f"'{path}' has the SHA-256 {found}, but {expected!r:.66} was expected: it is damaged "
            f"or was exchanged; to fetch it again, delete it and, if it lies there, '{beside.name}'"
        )
    if expected is None:
        partial = path.with_name(f'{beside.name}.partial')
        partial.write_text(f'{found}  {path.name}\n', encoding='ascii')  # sha256sum -c reads it
        partial.replace(beside)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _download(url: str, path: Path) -> None:
    """Fetch in several attempts, each going on where the last one broke off."""
    partial = path.with_name(f'{path.name}.partial')  # a killed process's is begun anew
    try:
        with partial.open('wb') as file:
            transfer = _Transfer(url, file)
            print_log(f"downloading {url} to '{path}'", logger='current')
            for attempt in range(ATTEMPTS):
                try:
                    transfer.attempt()
                    break
                except (_BrokenError, OSError, http.client.HTTPException) as error:
                    if attempt == ATTEMPTS - 1 or _is_final(error):
                        raise
                    print_log(f'{url}: {first_line(error)}; trying again', logger='current')
                    time.sleep(PAUSE_SECONDS * 2**attempt)
            file.flush()
            os.fsync(file.fileno())
        _check_download(partial, DIGEST_IN_NAME.search(path.name))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class _Transfer:
    """A file on its way, over as many connections as it takes."""

    def __init__(self, url: str, file: IO[bytes]) -> None:
        self.url, self.file = url, file
        self.validator: str | None = None  # says that what follows is of the same file

    def attempt(self) -> None:
        """Connect once and write what comes.

        Raises:
            _BrokenError: Fewer bytes came than were promised, or others than were asked for.
            OSError: The server or the disk refuses, or nothing comes for a while.
        """
        headers = {'User-Agent': 'evit_mm', 'Accept-Encoding': 'identity'}
        start = self.file.tell() if self.validator else 0
        if start:
            headers |= {'Range': f'bytes={start}-', 'If-Range': self.validator or ''}
        request = urllib.request.Request(self.url, headers=headers)
        with urllib.request.urlopen(request, timeout=SILENCE_SECONDS) as answer:
            if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                start = 0  # the whole file comes again, or another one
            elif not answer.headers.get('Content-Range', '').startswith(f'bytes {start}-'):
                self.validator = None
                raise _BrokenError('the server sent another part than was asked for')
            self.file.seek(start)
            self.file.truncate()
            tag = answer.headers.get('ETag', 'W/')
            self.validator = None if tag.startswith('W/') else tag
            length = answer.headers.get('Content-Length')
            total = start + int(length) if length else None
            self._write(answer, total)
        if total is not None and self.file.tell() != total:
            raise _BrokenError(f'only {self.file.tell()} of {total} bytes came')

    def _write(self, answer: http.client.HTTPResponse, total: int | None) -> None:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
        console = Console(stderr=True)
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task('', total=total, completed=self.file.tell())
            while chunk := answer.read1(CHUNK_BYTES):
                self.file.write(chunk)
                bar.advance(task, len(chunk))


def _is_final(error: Exception) -> bool:
    """Whether another attempt would end the same way."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code not in (408, 429)  # too slow, too many
    if isinstance(error, urllib.error.URLError):
        return not isinstance(error.reason, TimeoutError)  # no such server, no network
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _check_download(file: Path, named: re.Match[str] | None) -> None:
    with file.open('rb') as opened:
        kind = kind_of(opened.read(HEAD_BYTES), file.stat().st_size)
    if kind not in CHECKPOINT_KINDS:
        raise _BrokenError(f'the server sent {kind} in place of a checkpoint')
    if named and not (found := _digest(file)).startswith(named[1]):
        raise _BrokenError(f'what came has the SHA-256 {found}, not that in its name')


@contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """Hold a cached file's lock, which the system gives back when its holder dies."""
    lock = FileLock(f'{path}.lock')
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print_log(f"waiting for another process that fetches '{path}'", logger='current')
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
