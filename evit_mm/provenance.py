"""What a run was made with: versions and the commit."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Sequence
from pathlib import Path


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the installed versions by package."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = 'not installed'
    return found


def commit() -> str:
    """Return the commit of this package's checkout, ``-dirty`` where it was changed."""
    here = Path(__file__).parent
    command = ['git', '-C', str(here), 'describe', '--always', '--dirty']
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
