"""Where configs, tools and pinned requirements lie: in the checkout, or inside the wheel.

A wheel carries them under ``evit_mm/.mim``, as OpenMMLab's packages do, where ``mim`` looks too.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from .errors import ConfigError

PACKAGE = Path(__file__).resolve().parent
MIM = PACKAGE / '.mim'


def carried(name: str) -> Path:
    """Return the path of a file or folder of the project's root, such as ``configs``.

    Beside an installed package lie other people's folders, so there only ``.mim`` is asked.
    """
    return (MIM if MIM.is_dir() else PACKAGE.parent) / name


def find_config(config: str | Path) -> Path:
    """Return the config file that is meant: a path, or the name of one that comes along.

    Args:
        config: Path of a file, or a name such as ``retinanet_evit_m4_coco``, with or without
            ``configs/`` and ``.py``.

    Raises:
        ConfigError: There is neither; the nearest names are given.
    """
    if Path(config).is_file():
        return Path(config)
    own = {file.stem: file for file in sorted(carried('configs').glob('*.py'))}
    path = Path(config)
    name = path.name.removesuffix('.py')
    if name in own and str(path.parent) in ('.', 'configs'):
        return own[name]
    close = difflib.get_close_matches(name, own, n=3, cutoff=0.6)
    hint = f', did you mean {" or ".join(close)}?' if close else f"; see '{carried('configs')}'"
    raise ConfigError(f"config '{config}' does not exist{hint}")
