"""Do torch, torchvision, OpenCV, mmengine and mmcv fit each other?

What is broken is named in one sentence with its fix, and not by a traceback from deep inside a
library. Importing evit_mm asks what is installed, importing :mod:`evit_mm.runner` and
``tools/doctor.py`` also what loads. Standard library only, also as a program: ``python
evit_mm/utils/environment.py`` prints what is wrong and exits with 1 if there is anything.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from importlib import metadata

# modules that nothing works without, and what installs each of them
NEEDED = {
    'torch': 'torch',
    'torchvision': 'torchvision',
    'cv2': 'opencv-python-headless',
    'mmengine': 'mmengine',
    'mmcv': "'mmcv-lite>=2.0.0,<2.2.0'",
}
# distributions that contain the module mmcv; the last one is that of the OneDL fork
MMCV = ('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv')
MANY = 2  # missing modules, beyond which they are named together
OLDEST_TORCH = (2, 0)
# which operators mmcv is given: the values of an environment variable, see evit_mm.ops
OPERATORS_SWITCH = 'EVIT_MM_OPS'
OPERATORS = ('auto', 'torchvision', 'compiled')
# mmdet 3.3 refuses any other
MMCV_RANGE = ((2, 0), (2, 2))


class EnvironmentFault(ImportError):  # noqa: N818 - the fault is not in the program
    """The installed packages do not fit each other; the message says what to install."""


def check_installed() -> None:
    """Look for packages that are missing or do not fit each other; importing evit_mm calls this.

    Raises:
        EnvironmentFault: There is one; the first is named.
    """
    for fault in installed_faults():
        raise EnvironmentFault(fault)


def check_environment() -> None:
    """Look also for packages that do not load; importing :mod:`evit_mm.runner` calls this.

    Raises:
        EnvironmentFault: There is one; the first is named.
    """
    for fault in environment_faults():
        raise EnvironmentFault(fault)


def environment_faults() -> Iterator[str]:
    """Yield a sentence, what is wrong and after a semicolon its fix, for each fault.

    torchvision, OpenCV and a compiled mmcv are imported to see whether they load. What depends on
    something that has been named already is not looked at.
    """
    yield from installed_faults()
    missing = _missing()
    if len(missing) > MANY:
        return
    if 'cv2' not in missing:
        yield from _opencv_faults()
    if 'torch' in missing or any(_torch_faults()):
        return
    torchvision_faults = [] if 'torchvision' in missing else list(_torchvision_faults())
    yield from torchvision_faults
    if not torchvision_faults and 'mmcv' not in missing and not any(_mmcv_version_faults()):
        yield from _mmcv_build_faults()


def installed_faults() -> Iterator[str]:
    """Yield a sentence for each fault that shows without importing more than torch."""
    choice = os.environ.get(OPERATORS_SWITCH)
    if choice and choice not in OPERATORS:
        yield (
            f"{OPERATORS_SWITCH}='{choice}' is not one of {', '.join(OPERATORS)}; "
            f'unset {OPERATORS_SWITCH}'
        )
    missing = _missing()
    if len(missing) > MANY:
        yield f"{', '.join(missing)} are not installed; pip install 'evit_mm[all]'"
        return
    for name in missing:
        release = f'torch=={_version("torch")} ' if name == 'torchvision' else ''
        yield f'{name} is not installed; pip install {release}{NEEDED[name]}'
    if 'mmcv' not in missing:
        yield from _mmcv_version_faults()
    if 'torch' not in missing:
        yield from _torch_faults()


def _mmcv_version_faults() -> Iterator[str]:
    present = {name: version for name in MMCV if (version := _version(name))}
    if len(present) > 1:
        both = ' and '.join(f'{name} {version}' for name, version in present.items())
        keep = 'onedl-mmcv' if 'onedl-mmcv' in present else 'mmcv-lite==2.1.0'
        yield (
            f'{both} are installed over each other; keep one: '
            f'pip uninstall -y {" ".join(present)}, then pip install {keep}'
        )
        return
    for name, version in present.items():
        low, high = MMCV_RANGE
        if name == 'onedl-mmcv' or (low <= version_numbers(version) < high):
            continue
        if version_numbers(version) >= high and not _version('mmdet'):
            continue  # mmpretrain takes it
        yield (
            f'{name} {version} is installed, but mmdet 3.3 takes mmcv >= 2.0.0, < 2.2.0 only; '
            f'pip uninstall -y {name}, then pip install mmcv-lite==2.1.0'
        )


def _opencv_faults() -> Iterator[str]:
    error = _import_error('cv2')
    if error is None:
        return
    names = ('opencv-python', 'opencv-contrib-python')
    installed = next(filter(None, map(_version, names)), '')
    package = 'opencv-python-headless' + (f'=={installed}' if installed else '')
    yield (
        f'OpenCV does not load ({error}); its build without windows needs no such library: '
        f'pip install --force-reinstall --no-deps {package}'
    )


def _torch_faults() -> Iterator[str]:
    torch, vision = _version('torch'), _version('torchvision')
    if torch and version_numbers(torch) < OLDEST_TORCH:
        yield f'torch {torch} is too old; pip install "torch>=2.0" torchvision'
        return
    error = _import_error('torch')
    if error is not None:
        yield f'torch {torch} does not load ({error}); pip install --force-reinstall torch=={torch}'
        return
    wanted = _torch_of_torchvision()
    if torch and wanted and torch.partition('+')[0] != wanted:
        yield (
            f'torchvision {vision} is for torch {wanted}, but torch {torch} is installed; '
            f'pip install torch=={torch.partition("+")[0]} torchvision'
        )


def _torchvision_faults() -> Iterator[str]:
    error = _import_error('torchvision')
    if error is None and not hasattr(sys.modules['torch'].ops.torchvision, 'nms'):
        error = 'its operators are missing'
    if error is not None:
        yield (
            f'torchvision {_version("torchvision")} is of another build than torch '
            f'{_version("torch")} ({error}); '
            'pip uninstall -y torch torchvision, then pip install both from one index'
        )


def _mmcv_build_faults() -> Iterator[str]:
    if os.environ.get(OPERATORS_SWITCH) == 'torchvision':
        return  # evit_mm.ops takes the place of the compiled operators
    spec = importlib.util.find_spec('mmcv')
    folders = spec.submodule_search_locations if spec else None
    if importlib.machinery.PathFinder.find_spec('mmcv._ext', folders) is None:
        return
    error = _import_error('mmcv._ext')
    if error is None:
        return
    name = next(filter(_version, MMCV), 'mmcv')
    fork = name == 'onedl-mmcv'
    where = 'beside' if name == 'mmcv-lite' else 'of'
    yield (
        f'the compiled operators {where} {name} {_version(name)} do not load with '
        f'torch {_version("torch")} ({error}); '
        + (
            f'compile it again: pip install --force-reinstall --no-deps --no-cache-dir {name}'
            if fork
            else f'pip uninstall -y {name}, then pip install mmcv-lite==2.1.0, or compile it again'
        )
    )


def _missing() -> list[str]:
    return [name for name in NEEDED if not _is_importable(name)]


def _is_importable(module: str) -> bool:
    try:
        return module in sys.modules or importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _import_error(module: str) -> str | None:
    """Import a module; return what it raised in one line, None if it loads."""
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - a broken library raises whatever it likes
        text = ' '.join(str(error).split())
        return f'{type(error).__name__}: {text[:200]}'
    return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: ``2.1.0rc4`` is ``(2, 1, 0)``."""
    found = re.match(r'\d+(?:\.\d+)*', version)
    return tuple(int(part) for part in found[0].split('.')) if found else ()


def _torch_of_torchvision() -> str | None:
    """Return the version of torch that torchvision was built for, where its metadata says so."""
    try:
        needs = metadata.requires('torchvision') or []
    except metadata.PackageNotFoundError:
        return None
    found = (re.match(r'torch\s*\(?\s*==\s*([\d.]+)', need) for need in needs)
    return next((match[1] for match in found if match), None)


if __name__ == '__main__':
    del sys.path[0]  # this folder's modules are not top-level ones
    wrong = list(environment_faults())
    sys.stdout.write(''.join(f'{fault}\n' for fault in wrong))
    sys.exit(bool(wrong))
