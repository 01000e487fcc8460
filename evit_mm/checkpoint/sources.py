"""Where a checkpoint comes from: a path, a URL, timm's or another repository on the HF hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .download import POINT_AT_FILE, check_digest, fetch
from .reading import first_line, read_file

HUB_PREFIX = 'hf-hub:'
TIMM_PREFIX = 'timm://'
TIMM_OWNER = 'timm/'
HUB_FILES = ('model.safetensors', 'pytorch_model.bin')
SHA256 = re.compile('[0-9a-f]{64}')


def read_checkpoint(source: str | Path) -> Any:
    """Read a ``.pth``, ``.bin`` or ``.safetensors`` file without ever running code in it.

    Args:
        source: A path; an http(s) URL, downloaded once into torch hub's cache, see
            :func:`~evit_mm.checkpoint.download.fetch`; or weights on the Hugging Face hub, fetched
            into the hub's own cache: ``timm://NAME`` or ``timm/NAME`` of timm's,
            ``hf-hub:OWNER/NAME`` of anybody, each with ``@REVISION`` if wanted.

    Returns:
        What the file holds, see :func:`~evit_mm.checkpoint.reading.read_file`.

    Raises:
        CheckpointError: The file is missing, cannot be fetched, or is refused.
    """
    return read_file(local_path(source))


def local_path(source: str | Path) -> Path:
    """Return where a source lies on this machine, fetching it if it must be.

    Raises:
        CheckpointError: It cannot be fetched, or is not what was fetched before.
    """
    text = str(source)
    if text.startswith(('http://', 'https://')):
        return fetch(text)
    repository = hub_repository(text)
    if repository is None and '://' in text:
        raise CheckpointError(
            f"'{text}' is not read here; give a path, http(s)://, timm:// or hf-hub:OWNER/NAME"
        )
    return _fetch_from_hub(repository) if repository else Path(text).expanduser()


def hub_repository(source: str) -> str | None:
    """Return ``OWNER/NAME[@REVISION]`` if the source is on the Hugging Face hub, else None.

    ``timm/NAME`` is a file of this machine where there is one.
    """
    if source.startswith(TIMM_PREFIX):
        return TIMM_OWNER + source.removeprefix(TIMM_PREFIX)
    if source.startswith(HUB_PREFIX):
        return source.removeprefix(HUB_PREFIX)
    is_name = source.startswith(TIMM_OWNER) and source.count('/') == 1
    return source if is_name and not Path(source).exists() else None


def _fetch_from_hub(repository: str) -> Path:
    """Download weights into the hub's cache, which locks, goes on and is atomic by itself."""
    import huggingface_hub  # late: a file on this machine does not need it
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    name, _, revision = repository.partition('@')
    for file in HUB_FILES:
        try:
            path = Path(huggingface_hub.hf_hub_download(name, file, revision=revision or None))
        except LocalEntryNotFoundError as error:  # not in the cache, and the network is away
            fault: Exception = error
            break
        except EntryNotFoundError as error:
            fault = error
            continue
        except (OSError, HfHubHTTPError, HFValidationError) as error:
            fault = error
            break
        blob = path.resolve().name  # the hub names a large file after its SHA-256
        if SHA256.fullmatch(blob):
            check_digest(path, blob)
        return path
    url = f'https://huggingface.co/{name}/resolve/{revision or "main"}/{HUB_FILES[0]}'
    raise CheckpointError(
        f"cannot download '{repository}' from the Hugging Face hub ({first_line(fault)}). Fetch "
        f'{url} on a machine with network{POINT_AT_FILE}'
    )
