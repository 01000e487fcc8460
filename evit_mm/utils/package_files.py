"""Where configs, tools and pinned requirements lie: in the checkout, or inside the wheel.

A wheel carries them under ``evit_mm/.mim``, as OpenMMLab's packages do, where ``mim`` looks too.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError
from .text import did_you_mean

PACKAGE = Path(__file__).resolve().parents[1]
MIM = PACKAGE / '.mim'


def project_path(name: str) -> Path:
    """Return the path of a file or folder of the project's root, such as ``configs``.

    Beside an installed package lie other people's folders, so there only ``.mim`` is asked.
    """
    return (MIM if MIM.is_dir() else PACKAGE.parent) / name


def find_config(config: str | Path) -> Path:
    """Return the config file that is meant: a path, or the name of one that comes along.

    A name such as ``retinanet_evit_m4_coco`` may have ``configs/`` before it and ``.py`` after it.
    """
    path = Path(config)
    if path.is_file():
        return path
    own = {file.stem: file for file in sorted(project_path('configs').glob('*.py'))}
    name = path.name.removesuffix('.py')
    if name in own and str(path.parent) in ('.', 'configs'):
        return own[name]
    hint = did_you_mean(name, own, n=3) or f"; the configs are in '{project_path('configs')}'"
    raise ConfigError(f"config '{config}' does not exist{hint}")
