"""Write files atomically."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

PARTIAL = '.partial'


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file atomically, and flush it to the disk.

    Raises:
        OSError: The file cannot be written. An existing file is not changed.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def write_json(path: str | Path, content: Any, indent: int | None = None) -> None:
    """Write a JSON file with ``write_atomically``."""
    write_atomically(path, json.dumps(content, indent=indent).encode())


def read_json_dict(path: str | Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty dict if it cannot be read."""
    with suppress(OSError, ValueError):
        content = json.loads(Path(path).read_text(encoding='utf-8'))
        if isinstance(content, dict):
            return content
    return {}


def _sync_folder(folder: Path) -> None:
    if hasattr(os, 'O_DIRECTORY'):  # other systems cannot open folders
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
