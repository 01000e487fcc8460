"""Check that torch, torchvision, OpenCV, mmengine and mmcv are installed and compatible.

A problem is reported as one message with its fix instead of a traceback from inside a library.
Importing evit_mm checks which versions are installed. Importing :mod:`evit_mm.runner` and running
``tools/doctor.py`` also check that the packages can be imported.

This module needs only the standard library. ``python evit_mm/utils/environment.py`` prints the
first problem and exits with status 1 if there is one.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
from importlib import metadata

# required modules, and the package that installs each of them
NEEDED = {
    'torch': 'torch',
    'torchvision': 'torchvision',
    'cv2': 'opencv-python-headless',
    'mmengine': 'mmengine',
    'mmcv': "'mmcv-lite>=2.0.0,<2.2.0'",
}
# distributions that contain the module mmcv; the last one is the OneDL fork
MMCV = ('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv')
MMCV_RANGE = ((2, 0), (2, 2))  # mmdet 3.3 accepts only these versions
OLDEST_TORCH = (2, 0)
# environment variable that selects mmcv's operators, and its values; see evit_mm.ops
OPERATORS_SWITCH = 'EVIT_MM_OPS'
OPERATORS = ('auto', 'torchvision', 'compiled')


class EnvironmentFault(ImportError):  # noqa: N818 - it is not an error of the program
    """A package is missing, broken or incompatible. The message states what to install."""


def check_installed() -> None:
    """Check that all required packages are installed and compatible. ``import evit_mm`` calls this.

    Raises:
        EnvironmentFault: There is a problem. The message states the first problem, a semicolon
            and the fix.
    """
    choice = os.environ.get(OPERATORS_SWITCH)
    if choice and choice not in OPERATORS:
        raise EnvironmentFault(
            f"{OPERATORS_SWITCH}='{choice}' is not one of {', '.join(OPERATORS)}; "
            f'unset {OPERATORS_SWITCH}'
        )
    missing = [module for module in NEEDED if importlib.util.find_spec(module) is None]
    if missing:
        wanted = [NEEDED[module] for module in missing]
        if 'torch' not in missing:  # otherwise pip would replace torch with the newest version
            wanted.insert(0, f'torch=={_version("torch")}')
        if len(missing) > 2:
            wanted = ["'evit_mm[all]'"]
        verb = 'are' if len(missing) > 1 else 'is'
        raise EnvironmentFault(
            f'{", ".join(missing)} {verb} not installed; pip install {" ".join(wanted)}'
        )
    _check_mmcv_version()
    _check_torch_version()


def check_environment() -> None:
    """Also check that the packages can be imported. Importing :mod:`evit_mm.runner` calls this.

    Raises:
        EnvironmentFault: There is a problem. The message states the first problem, a semicolon
            and the fix.
    """
    check_installed()
    names = ('opencv-python', 'opencv-contrib-python')
    version = next(filter(None, map(_version, names)), None)
    package = 'opencv-python-headless' + (f'=={version}' if version else '')
    _load(
        'cv2',
        'OpenCV cannot be imported ({}); install the build that needs no display libraries: '
        f'pip install --force-reinstall --no-deps {package}',
    )
    _check_torchvision_build()
    _check_mmcv_build()


def _check_mmcv_version() -> None:
    present = {name: version for name in MMCV if (version := _version(name))}
    if len(present) > 1:
        both = ' and '.join(f'{name} {version}' for name, version in present.items())
        keep = 'onedl-mmcv' if 'onedl-mmcv' in present else 'mmcv-lite==2.1.0'
        raise EnvironmentFault(
            f'{both} are both installed and overwrite each other; reinstall one: '
            f'pip uninstall -y {" ".join(present)}, then pip install {keep}'
        )
    low, high = MMCV_RANGE
    for name, version in present.items():
        numbers = version_numbers(version)
        for_mmpretrain = numbers >= high and not _version('mmdet')  # mmpretrain accepts mmcv 2.2
        if name != 'onedl-mmcv' and not low <= numbers < high and not for_mmpretrain:
            raise EnvironmentFault(
                f'{name} {version} is installed, but mmdet 3.3 requires mmcv >= 2.0.0, < 2.2.0; '
                f'pip uninstall -y {name}, then pip install mmcv-lite==2.1.0'
            )


def _check_torch_version() -> None:
    torch, vision = _version('torch'), _version('torchvision')
    if torch and version_numbers(torch) < OLDEST_TORCH:
        raise EnvironmentFault(f'torch {torch} is too old; pip install "torch>=2.0" torchvision')
    _load(
        'torch',
        f'torch {torch} cannot be imported ({{}}); pip install --force-reinstall torch=={torch}',
    )
    needs = metadata.requires('torchvision') if vision else None
    pins = [re.match(r'torch\s*\(?\s*==\s*([\d.]+)', need) for need in needs or []]
    wanted = next((pin[1] for pin in pins if pin), None)
    if torch and wanted and torch.partition('+')[0] != wanted:
        raise EnvironmentFault(
            f'torchvision {vision} requires torch {wanted}, but torch {torch} is installed; '
            f'pip install torch=={torch.partition("+")[0]} torchvision'
        )


def _check_torchvision_build() -> None:
    fault = (
        f'torchvision {_version("torchvision")} and torch {_version("torch")} come from different '
        'builds ({}); '
        'pip uninstall -y torch torchvision, then pip install both from the same index'
    )
    _load('torchvision', fault)
    if not hasattr(sys.modules['torch'].ops.torchvision, 'nms'):
        raise EnvironmentFault(fault.format('its operators are missing'))


def _check_mmcv_build() -> None:
    if os.environ.get(OPERATORS_SWITCH) == 'torchvision':
        return  # evit_mm.ops replaces the compiled operators
    spec = importlib.util.find_spec('mmcv')
    folders = spec.submodule_search_locations if spec else None
    if importlib.machinery.PathFinder.find_spec('mmcv._ext', folders) is None:
        return
    name = next(filter(_version, MMCV), 'mmcv')
    _load(
        'mmcv._ext',
        f'the compiled operators of {name} {_version(name)} cannot be loaded with torch '
        f'{_version("torch")} ({{}}); set {OPERATORS_SWITCH}=torchvision to replace them, '
        f'or recompile {name}',
    )


def _load(module: str, fault: str) -> None:
    """Import a module. If that fails, raise ``fault`` with the error inserted at ``{}``."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken library can raise any error
        text = ' '.join(str(error).split())
        raise EnvironmentFault(fault.format(f'{type(error).__name__}: {text[:200]}')) from error


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: ``2.1.0rc4`` returns ``(2, 1, 0)``."""
    found = re.match(r'\d+(?:\.\d+)*', version)
    return tuple(int(part) for part in found[0].split('.')) if found else ()


if __name__ == '__main__':
    del sys.path[0]  # the modules in this folder are not top-level modules
    try:
        check_environment()
    except EnvironmentFault as found:
        sys.stdout.write(f'{found}\n')
        sys.exit(1)
