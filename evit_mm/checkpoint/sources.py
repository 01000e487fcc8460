"""Find or download a checkpoint: a path, a URL, or a repository on the Hugging Face hub."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import torch

from ..errors import CheckpointError
from .file_kinds import CHECKPOINT_KINDS, kind_of
from .reading import check_kind, first_line, read_file

HUB_FILES = ('model.safetensors', 'pytorch_model.bin')
RETRIES = 2  # after a failed attempt, with pauses of 1 and 2 seconds
TIMEOUT_SECONDS = 30  # without receiving data
CHUNK_BYTES = 1 << 18
# convention of torch hub: the SHA-256 of name-0123abcd.pth starts with 0123abcd
DIGEST_IN_NAME = re.compile(r'-([0-9a-f]{8,64})\.')
POINT_AT_FILE = (
    ', or pass --cfg-options model.backbone.init_cfg.checkpoint=FILE '
    '(model.backbone.init_cfg=None trains from scratch)'
)


def read_checkpoint(source: str | Path) -> Any:
    """Read a ``.pth``, ``.bin`` or ``.safetensors`` file. Code in the file is never executed.

    Args:
        source: A path, an http(s) URL, or a repository on the Hugging Face hub. A URL is downloaded
            once into the cache of torch hub. A repository is ``timm://NAME`` or ``timm/NAME`` for
            timm's weights, or ``hf-hub:OWNER/NAME``. Both accept ``@REVISION`` at the end. The
            download goes into the cache of the Hugging Face hub.

    Returns:
        The content of the file, with tensors on the CPU. A ``.safetensors`` file of this package
        returns ``state_dict`` and ``meta``. Any other ``.safetensors`` file returns its tensors.

    Raises:
        CheckpointError: The file cannot be found or downloaded, is not a valid checkpoint, or
            contains types other than tensors, plain Python values and the types in
            :mod:`~evit_mm.checkpoint.allowed_types`.
    """
    return read_file(local_path(source))


def check_source(source: str | Path) -> None:
    """Raise a CheckpointError if a source is a local path but not a checkpoint.

    This is for an early error. A source in the network is not checked.
    """
    text = str(source)
    if '://' not in text and not text.startswith(('hf-hub:', 'timm/')):
        check_kind(local_path(text))


def local_path(source: str | Path) -> Path:
    """Return the local path of a source, after downloading it if necessary."""
    text = str(source)
    if text.startswith(('http://', 'https://')):
        return _fetch(text)
    if text.startswith('timm://'):
        return _fetch_from_hub('timm/' + text.removeprefix('timm://'))
    if text.startswith('hf-hub:'):
        return _fetch_from_hub(text.removeprefix('hf-hub:'))
    if text.startswith('timm/') and text.count('/') == 1 and not Path(text).exists():
        return _fetch_from_hub(text)
    return Path(text).expanduser()


def _fetch(url: str) -> Path:
    """Download a checkpoint into the cache of torch hub, unless the cache has it.

    One process downloads the file, and other processes wait for it. The file gets its name only
    after it is complete, its first bytes are those of a checkpoint, and its SHA-256 matches the
    name (if the name contains one).
    """
    name = _file_name(url)
    if not name:
        raise CheckpointError(f"'{url}' contains no file name; give the URL of a checkpoint")
    path = Path(torch.hub.get_dir()) / 'checkpoints' / name
    if path.is_file():
        return path

    import pooch  # here, because reading a local file needs neither pooch nor filelock
    from filelock import FileLock

    cache = pooch.create(
        path.parent, '', registry={name: None}, urls={name: url}, retry_if_failed=RETRIES
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f'{path}.lock'):
            cache.fetch(name, downloader=_download)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f'cannot download {url} ({first_line(error)}). Download it on a machine with network '
            f"access and save it as '{path}'{POINT_AT_FILE}"
        ) from None
    return path


def _file_name(url: str) -> str:
    return Path(unquote(urlparse(url).path)).name


def _download(url: str, partial: str, cache: Any) -> None:
    """Download into a temporary file and check it. pooch then moves it to its final path."""
    import pooch

    pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(), chunk_size=CHUNK_BYTES, timeout=TIMEOUT_SECONDS
    )(url, partial, cache)
    file = Path(partial)
    with file.open('rb') as opened:
        kind = kind_of(opened)
    if kind not in CHECKPOINT_KINDS:
        raise ValueError(f'the server sent {kind} instead of a checkpoint')
    named = DIGEST_IN_NAME.search(_file_name(url))
    if named and not (found := pooch.file_hash(partial, alg='sha256')).startswith(named[1]):
        raise ValueError(f'the download has SHA-256 {found}, but its name requires {named[1]}')
    file.chmod(0o644)  # only the owner can read temporary files, but users may share the cache


def _fetch_from_hub(repository: str) -> Path:
    """Download ``OWNER/NAME[@REVISION]`` into the cache of the Hugging Face hub."""
    import huggingface_hub  # here, because reading a local file does not need it

    name, _, revision = repository.partition('@')
    for file in HUB_FILES:
        try:
            return Path(huggingface_hub.hf_hub_download(name, file, revision=revision or None))
        except Exception as error:  # the HTTP library and its errors depend on the version
            fault = error
    url = f'https://huggingface.co/{name}/resolve/{revision or "main"}/{HUB_FILES[0]}'
    raise CheckpointError(
        f"cannot download '{repository}' from the Hugging Face hub ({first_line(fault)}). Download "
        f'{url} on a machine with network access{POINT_AT_FILE}'
    )


def fetch_folder(repository: str, files: Sequence[str]) -> Path:
    """Download files of one commit of ``OWNER/NAME[@REVISION]`` on the Hugging Face hub.

    Without a network connection, the cache of the hub is used.

    Returns:
        The folder in the cache, with those of the files that the repository has.

    Raises:
        CheckpointError: The repository or the revision cannot be downloaded.
    """
    import huggingface_hub

    name, _, revision = repository.partition('@')
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision or None, allow_patterns=list(files)
            )
        )
    except Exception as error:  # as above
        raise CheckpointError(
            f"cannot download '{repository}' from the Hugging Face hub ({first_line(error)}). On a "
            f'machine with network access, run: hf download {name} --local-dir FOLDER, and give '
            'FOLDER instead'
        ) from error
