"""Where a checkpoint comes from: a path, a URL, timm's or another repository on the HF hub."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import torch

from ..errors import CheckpointError
from .reading import CHECKPOINT_KINDS, first_line, kind_of, read_file

HUB_FILES = ('model.safetensors', 'pytorch_model.bin')
RETRIES = 2  # after an attempt that failed, a second and two seconds later
TIMEOUT_SECONDS = 30  # without a byte
CHUNK_BYTES = 1 << 18
# torch hub's convention: the SHA-256 of name-0123abcd.pth begins with 0123abcd
DIGEST_IN_NAME = re.compile(r'-([0-9a-f]{8,64})\.')
POINT_AT_FILE = (
    ', or set --cfg-options model.backbone.init_cfg.checkpoint=FILE '
    '(model.backbone.init_cfg=None trains from scratch)'
)


def read_checkpoint(source: str | Path) -> Any:
    """Read a ``.pth``, ``.bin`` or ``.safetensors`` file without ever running code in it.

    Args:
        source: A path; an http(s) URL, downloaded once into torch hub's cache; or weights on the
            Hugging Face hub, fetched into the hub's own cache: ``timm://NAME`` or ``timm/NAME`` of
            timm's, ``hf-hub:OWNER/NAME`` of anybody, each with ``@REVISION`` if wanted.

    Returns:
        What the file holds, tensors on the CPU. A ``.safetensors`` file that was written here comes
        as ``state_dict`` and ``meta``, another one as its tensors.

    Raises:
        CheckpointError: The file is missing, not a regular file, cannot be fetched, is of another
            kind, truncated, unfolds to more than its size, or holds types other than tensors, plain
            Python values and those of :mod:`~evit_mm.checkpoint.allowed_types`.
    """
    return read_file(local_path(source))


def local_path(source: str | Path) -> Path:
    """Return where a source lies on this machine, fetching it if it must be."""
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
    """Download a checkpoint into torch hub's cache, unless it is there.

    Of several processes one downloads, and the others wait. The file appears under its name when
    it is complete, begins as a checkpoint does, and has the SHA-256 that its name may tell.
    """
    name = _file_name(url)
    if not name:
        raise CheckpointError(f"'{url}' contains no file name; give the URL of a checkpoint")
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
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f'cannot download {url} ({first_line(error)}). Download it on a machine with network '
            f"access and save it as '{path}'{POINT_AT_FILE}"
        ) from None
    return path


def _file_name(url: str) -> str:
    return Path(unquote(urlparse(url).path)).name


def _download(url: str, partial: str, cache: Any) -> None:
    """Fill a temporary file, which pooch moves to its place if nothing is raised here."""
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
        raise ValueError(f'the SHA-256 of the download is {found}, its name requires {named[1]}')
    file.chmod(0o644)  # temporary files are their owner's only, and the cache may be shared


def _fetch_from_hub(repository: str) -> Path:
    """Download ``OWNER/NAME[@REVISION]`` into the hub's cache, which locks and is atomic itself."""
    import huggingface_hub  # late: a file on this machine does not need it

    name, _, revision = repository.partition('@')
    for file in HUB_FILES:
        try:
            return Path(huggingface_hub.hf_hub_download(name, file, revision=revision or None))
        except (OSError, ValueError) as error:
            fault = error
    url = f'https://huggingface.co/{name}/resolve/{revision or "main"}/{HUB_FILES[0]}'
    raise CheckpointError(
        f"cannot download '{repository}' from the Hugging Face hub ({first_line(fault)}). Download "
        f'{url} on a machine with network access{POINT_AT_FILE}'
    )
