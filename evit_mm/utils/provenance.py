"""Report package versions, the commit and the CPU, and check the PyTorch version."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..errors import EvitError
from .environment import version_numbers

# other distributions of the same modules: mmcv-lite without operators, and the OneDL fork
OTHERS = {
    'mmengine': ('onedl-mmengine',),
    'mmcv': ('mmcv-lite', 'onedl-mmcv'),
    'mmdet': ('onedl-mmdetection',),
    'mmpretrain': ('onedl-mmpretrain',),
}


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the version of each package, with the distribution name if it differs."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    for name in (package, *OTHERS.get(package, ())):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return version if name == package else f'{version} ({name})'
    return 'not installed'


def need_torch(version: str, what: str) -> None:
    """Raise an EvitError if the installed PyTorch is too old for ``what``."""
    installed = importlib.metadata.version('torch')
    if version_numbers(installed) < version_numbers(version):
        raise EvitError(
            f'{what} needs torch {version} or newer, but torch {installed} is installed; '
            f"run: pip install 'torch>={version}' torchvision"
        )


def commit() -> str:
    """Return the commit of the checkout, with ``-dirty`` if it has changes.

    The result is ``unknown`` for an installed package, which may be inside another repository.
    """
    here = Path(__file__).resolve().parents[1]
    if not (here.parent / '.git').exists():
        return 'unknown'
    command = ['git', '-C', str(here), 'describe', '--always', '--dirty']
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def cpu() -> str:
    """Return the name of the CPU."""
    try:
        text = Path('/proc/cpuinfo').read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r'model name\s*:\s*(.+)', text)
    return found[1].strip() if found else platform.machine()
