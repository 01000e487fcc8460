"""The stack: versions against the tested ones, operators, disk and shared memory.

Standard library alone, since anything else may be what is broken.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .findings import Finding, split_mend

PACKAGE = Path(__file__).resolve().parents[1]
# evit_mm.utils.package_files, which cannot be imported where the stack is broken
MIM = PACKAGE / '.mim'
CONSTRAINTS = (MIM if MIM.is_dir() else PACKAGE.parent) / 'requirements' / 'constraints.txt'
# without these nothing trains
NEEDED = (
    'torch',
    'torchvision',
    'numpy',
    'mmengine',
    'mmcv-lite',
    'mmdet',
    'opencv-python',
    'pycocotools',
    'rich',
    'setuptools',
)
# without one of these some tool or test does not work
USEFUL = (
    'mmpretrain',
    'timm',
    'hotcoco',
    'onnx',
    'onnxscript',
    'onnxruntime',
    'openvino',
    'nncf',
    'jinja2',
    'gradio',
    'tensorboard',
    'safetensors',
    'huggingface-hub',
    'pytest',
    'hypothesis',
    'ruff',
    'mypy',
    'playwright',
    'sphinx',
)
# distributions that bring the same module; those of the fork have version numbers of their own
SAME_MODULE = {
    'opencv-python': ('opencv-python-headless', 'opencv-contrib-python-headless'),
    'mmcv-lite': ('mmcv', 'onedl-mmcv'),
    'mmengine': ('onedl-mmengine',),
    'mmdet': ('onedl-mmdetection',),
    'mmpretrain': ('onedl-mmpretrain',),
}
ENVIRONMENT = PACKAGE / 'utils' / 'environment.py'
PROBE = Path(__file__).with_name('probe.py')
PROBE_SECONDS = 300
OPTIONAL_IMPORTS = ('mmpretrain',)
GIB = 2**30
LOW_DISK, LITTLE_DISK = 1 * GIB, 5 * GIB
# what Docker gives a container that asks for nothing; two workers' batches do not fit
SMALL_SHARED_MEMORY = 64 * 2**20


def tested_versions() -> dict[str, str]:
    """Return the pinned version of each package for this Python.

    Returns:
        Versions by package name; empty where the file was not installed along.
    """
    if not CONSTRAINTS.is_file():
        return {}
    lines = CONSTRAINTS.read_text(encoding='utf-8').splitlines()
    pins = [requirement(line) for line in lines if line and not line.startswith('#')]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    return {pin.name: next(iter(pin.specifier)).version for pin in here}


def requirement(line: str) -> Any:
    """Return what a line of a constraints file says, as the class of packaging."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # pip has its own copy
        from pip._vendor.packaging.requirements import (  # type: ignore[assignment]
            Requirement,
        )
    return Requirement(line)


def installed_version(package: str) -> str | None:
    """Return the version of a package without ``+...``, or that of one with the same module."""
    for name in (package, *SAME_MODULE.get(package, ())):
        try:
            return metadata.version(name).split('+')[0]
        except metadata.PackageNotFoundError:
            continue
    return None


def check_versions() -> Iterator[Finding]:
    """Compare what is installed with what was tested."""
    pins = tested_versions()
    if not pins:
        yield Finding(
            'yellow', 'versions', f"no pinned versions in '{CONSTRAINTS}'", 'run from a checkout'
        )
        return
    equal = {}
    for package in (*NEEDED, *USEFUL):
        version = installed_version(package)
        if version == pins[package]:
            equal[package] = version
        else:
            yield _version_finding(package, version, pins[package])
    number = len(NEEDED) + len(USEFUL)
    text = f'{len(equal)} of {number} packages are in the pinned version'
    yield Finding('green', 'versions', text, details=equal)


def _version_finding(package: str, version: str | None, pin: str) -> Finding:
    mend = f'pip install {package}=={pin}'
    details = {'package': package, 'installed': version, 'tested': pin}
    if version is None:
        level = 'red' if package in NEEDED else 'yellow'
        return Finding(level, 'versions', f'{package} is not installed', mend, details)
    if package == 'setuptools' and int(version.split('.')[0]) >= 82:
        text = f'setuptools {version} has no pkg_resources, which configs with mmdet:: bases need'
        return Finding('red', 'versions', text, "pip install 'setuptools<82'", details)
    text = f'{package} is {version}, the pinned version is {pin}'
    return Finding('yellow', 'versions', text, 'nothing, unless something fails', details)


def check_environment(
    command: Sequence[str] = (sys.executable, str(ENVIRONMENT)),
) -> Iterator[Finding]:
    """Ask :mod:`evit_mm.utils.environment` in another process whether the packages fit each other.

    Args:
        command: What prints a line for each fault.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
    for line in done.stdout.splitlines():
        yield Finding('red', 'environment', *split_mend(line))
    if done.returncode and not done.stdout:
        text = f'importing the libraries ended python ({done.returncode})'
        yield Finding('red', 'environment', text, 'install into a new environment')
    elif not done.returncode:
        yield Finding('green', 'environment', 'torch, torchvision, OpenCV and mmcv fit each other')


def check_operators(command: Sequence[str] = (sys.executable, str(PROBE))) -> Iterator[Finding]:
    """Import everything and compare operators with oracles, in a process of its own.

    Args:
        command: What prints the lines of :mod:`evit_mm.doctor.probe`.
    """
    path = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get('PYTHONPATH'))))
    env = {**os.environ, 'PYTHONPATH': path}
    try:
        done = subprocess.run(command, env=env, capture_output=True, timeout=PROBE_SECONDS)
        output, end = done.stdout, f'ended python ({done.returncode})'
        whole = done.returncode == 0
    except subprocess.TimeoutExpired as error:
        output, end, whole = error.stdout or b'', f'took over {PROBE_SECONDS} s', False
    steps: dict[str, dict[str, str]] = {}
    for line in output.decode(errors='replace').splitlines():
        if line.startswith('{'):
            record = json.loads(line)
            steps[record['step']] = {'error': end, **record}  # until its second line comes
    failed = {name: step['error'] for name, step in steps.items() if step['error']}
    if not whole and not failed:
        failed = {'the probe': end}
    broken_import = next(iter(failed), '').startswith('import')
    for name, reason in failed.items():
        kind, _, module = name.partition(' ')
        mend = 'make env in a checkout, or pip install it again'
        if broken_import and name.startswith('mmcv'):
            mend = 'mend the first import that fails'
        level = 'yellow' if module in OPTIONAL_IMPORTS else 'red'
        topic = 'imports' if kind == 'import' else 'operators'
        yield Finding(level, topic, f'{name}: {reason}', mend)
    passed = [name for name in steps if name not in failed and name != 'gpu']
    imports = [name.removeprefix('import ') for name in passed if name.startswith('import ')]
    if imports:
        yield Finding('green', 'imports', f'{", ".join(imports)}: load')
    operators = [name for name in passed if not name.startswith('import ')]
    if operators:
        text = f'{", ".join(operators)}: results as expected'
        yield Finding('green', 'operators', text, details={'operators': operators})
    if 'gpu' in steps and 'gpu' not in failed:
        yield _gpu_finding(steps['gpu']['note'])


def _gpu_finding(gpu: str) -> Finding:
    if gpu:
        return Finding('green', 'gpu', gpu)
    if Path('/dev/nvidia0').exists():
        text = 'there is an NVIDIA GPU, but torch cannot use it'
        mend = 'install its driver, and a torch that was built for the CUDA of that driver'
        return Finding('yellow', 'gpu', text, mend)
    return Finding('green', 'gpu', 'none here; operators were tried on the CPU alone')


def import_package() -> object:
    """Import evit_mm."""
    return importlib.import_module('evit_mm')


def check_package(import_it: Callable[[], object] = import_package) -> Iterator[Finding]:
    """Import evit_mm itself.

    Args:
        import_it: Imports it, or raises.
    """
    try:
        import_it()
    except Exception as error:  # noqa: BLE001 - whatever a broken stack raises
        reason = ' '.join(str(error).split())[:300]
        text = f'evit_mm cannot be imported: {type(error).__name__}: {reason}'
        yield Finding('red', 'imports', text, 'mend what is red above; then make env')
    else:
        yield Finding('green', 'imports', 'evit_mm: loads')


def check_disk(folder: str | Path, needed: int | None = None) -> Iterator[Finding]:
    """Look at the free space where a run would write.

    Args:
        folder: The run's folder; need not exist yet.
        needed: Bytes that the run will write, None if that is not known.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        yield Finding('red', 'disk', f"'{place}' cannot be written to", 'choose another --work-dir')
        return
    free = shutil.disk_usage(place).free
    red, yellow = (LOW_DISK, LITTLE_DISK) if needed is None else (needed, 2 * needed)
    level = 'red' if free < red else 'yellow' if free < yellow else 'green'
    text = f"{readable(free)} free where '{folder}' lies"
    if needed is not None:
        text += f'; the checkpoints of this run take {readable(needed)}'
    mend = '' if level == 'green' else 'free some, or choose another --work-dir'
    yield Finding(level, 'disk', text, mend, {'free': free, 'needed': needed})


def check_shared_memory(
    needed: int | None = None, folder: str | Path = '/dev/shm'
) -> Iterator[Finding]:
    """Look at the shared memory, through which dataloader workers hand over their batches.

    Args:
        needed: Bytes of the batches under way, None if that is not known.
        folder: Where it is mounted.
    """
    if not Path(folder).is_dir():
        yield Finding('green', 'shared memory', f'no {folder} on this system; not checked')
        return
    free = shutil.disk_usage(folder).free
    bound = SMALL_SHARED_MEMORY if needed is None else needed
    level = 'yellow' if free <= bound else 'green'
    text = f'{readable(free)} free in {folder}'
    if needed is not None:
        text += f"; the workers' batches take up to {readable(needed)}"
    mend = ''
    if level != 'green':
        mend = (
            'docker run --shm-size=8g (or --ipc=host), or --cfg-options '
            'train_dataloader.num_workers=0 train_dataloader.persistent_workers=False'
        )
    yield Finding(level, 'shared memory', text, mend, {'free': free, 'needed': needed})


def readable(size: float) -> str:
    """Return a number of bytes for people."""
    return f'{size / 2**20:.0f} MiB' if size < GIB else f'{size / GIB:.1f} GiB'
