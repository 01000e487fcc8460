"""Find configs, tools and pinned requirements in a checkout or in an installed wheel.

A wheel contains them under ``evit_mm/.mim``, where OpenMMLab's ``mim`` finds them.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError
from .text import did_you_mean

PACKAGE = Path(__file__).resolve().parents[1]
MIM = PACKAGE / '.mim'
LISTED = 5  # maximum number of files in a message


def project_path(name: str) -> Path:
    """Return the path of a file or folder in the root of the project, for example ``configs``.

    An installed package uses only ``.mim``, because its parent folder contains other packages.
    """
    return (MIM if MIM.is_dir() else PACKAGE.parent) / name


def find_config(config: str | Path) -> Path:
    """Return the path of a config, given as a path or as the name of a config of this package.

    The name can start with ``configs/`` and end with ``.py``.
    """
    path = Path(config)
    if path.is_file():
        return path
    own = {file.stem: file for file in sorted(project_path('configs').glob('*.py'))}
    name = path.name.removesuffix('.py')
    if name in own and str(path.parent) in ('.', 'configs'):
        return own[name]
    if path.is_dir():
        files = ', '.join(sorted(file.name for file in path.glob('*.py'))[:LISTED])
        raise ConfigError(
            f"config '{config}' is a folder; give a config file"
            f'{f" in it, for example one of {files}" if files else ""}'
        )
    hint = did_you_mean(name, own, n=3) or f"; the configs are in '{project_path('configs')}'"
    raise ConfigError(f"config '{config}' does not exist{hint}")
