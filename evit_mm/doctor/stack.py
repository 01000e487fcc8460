"""The stack: versions against the tested ones, operators, disk and shared memory.

Standard library alone, since anything else may be what is broken.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from .findings import Finding

PACKAGE = Path(__file__).resolve().parents[1]
# evit_mm.carried, which cannot be imported where the stack is broken
MIM = PACKAGE / '.mim'
REQUIREMENTS = (MIM if MIM.is_dir() else PACKAGE.parent) / 'requirements'
# Which distribution brings mmcv tells the stacks apart; both use the same import names.
STACKS = {'openmmlab': 'mmcv', 'onedl': 'onedl-mmcv'}
# Without these nothing trains; the rest of the pinned packages is for single tools or tests.
NEEDED = re.compile(
    r'torch|torchvision|numpy|rich|setuptools|pycocotools|opencv-python|'
    r'mmcv|mmengine|mmdet|onedl-mmcv|onedl-mmengine|onedl-mmdetection'
)
SAME_MODULE = {'opencv-python': ('opencv-python-headless', 'opencv-contrib-python')}
PROBE = Path(__file__).with_name('probe.py')
PROBE_SECONDS = 300
OPTIONAL_IMPORTS = ('mmpretrain',)
GIB = 2**30
LOW_DISK, LITTLE_DISK = 1 * GIB, 5 * GIB
# what Docker gives a container that asks for nothing; two workers' batches do not fit
SMALL_SHARED_MEMORY = 64 * 2**20


def tested_versions(stack: str) -> dict[str, str]:
    """Return the pinned version of each package, read from ``requirements/``.

    Args:
        stack: A key of :data:`STACKS`.

    Returns:
        Versions by package name; empty where the folder was not installed along.
    """
    pins = {}
    for file in (*sorted(REQUIREMENTS.glob('*.txt')), *sorted((REQUIREMENTS / stack).glob('*'))):
        for line in file.read_text(encoding='utf-8').splitlines():
            found = re.match(
                r'([\w.-]+)==([\w.]+)\s*(?:;\s*python_version\s*(>=|<)\s*"3\.(\d+)")?', line
            )
            if found and _marker_holds(found[3], found[4]):
                pins[found[1]] = found[2]
    return pins


def _marker_holds(operator: str | None, minor: str | None) -> bool:
    if operator is None or minor is None:
        return True
    return (sys.version_info.minor >= int(minor)) == (operator == '>=')


def installed_version(package: str) -> str | None:
    """Return a package's version, or that of one with the same module, without ``+...``."""
    for name in (package, *SAME_MODULE.get(package, ())):
        try:
            return metadata.version(name).split('+')[0]
        except metadata.PackageNotFoundError:
            continue
    return None


def check_versions() -> Iterator[Finding]:
    """Compare what is installed with what has been tested."""
    present = [stack for stack, package in STACKS.items() if installed_version(package)]
    if len(present) > 1:
        names = ' and '.join(STACKS[stack] for stack in present)
        yield Finding(
            'red',
            'versions',
            f'{names} are both installed and overwrite each other',
            'make a new environment: make env, or make env STACK=onedl',
        )
        return
    stack = present[0] if present else 'openmmlab'
    pins = tested_versions(stack)
    if not pins:
        yield Finding(
            'yellow', 'versions', f"no pinned versions in '{REQUIREMENTS}'", 'run from a checkout'
        )
        return
    equal = {}
    for package, pin in sorted(pins.items()):
        version = installed_version(package)
        if version == pin:
            equal[package] = version
        else:
            yield _version_finding(package, version, pin)
    text = f'{len(equal)} of {len(pins)} packages of the stack {stack} are in their tested versions'
    yield Finding('green', 'versions', text, details={'stack': stack, **equal})
    yield from _pairing_findings()


def _version_finding(package: str, version: str | None, pin: str) -> Finding:
    mmcv = package in STACKS.values()
    mend = 'make env (it is built from source)' if mmcv else f'pip install {package}=={pin}'
    details = {'package': package, 'installed': version, 'tested': pin}
    if version is None:
        level = 'red' if NEEDED.fullmatch(package) else 'yellow'
        return Finding(level, 'versions', f'{package} is not installed', mend, details)
    text = f'{package} {version} has not been tested, {pin} has'
    if package == 'setuptools' and int(version.split('.')[0]) >= 81:
        text += '; from 81 on mmcv does not build, from 82 on mmdet:: configs do not load'
    return Finding('yellow', 'versions', text, mend, details)


def _pairing_findings() -> Iterator[Finding]:
    """Compare torch with what torchvision was built for; a wrong pair fails at its operators."""
    torch = installed_version('torch')
    try:
        needs = metadata.requires('torchvision') or []
    except metadata.PackageNotFoundError:
        return
    wanted = next((m[1] for m in (re.match(r'torch==([\d.]+)', need) for need in needs) if m), None)
    if torch and wanted and torch != wanted:
        text = f'torchvision was built for torch {wanted}, torch {torch} is installed'
        yield Finding('red', 'versions', text, 'pip install -r requirements/torch.txt')


def check_operators(command: tuple[str, ...] = (sys.executable, str(PROBE))) -> Iterator[Finding]:
    """Import everything and compare operators with oracles, in a process of its own.

    Args:
        command: What prints the lines of :mod:`evit_mm.doctor.probe`.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
        output, status = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        partial = error.stdout or b''
        output = partial.decode() if isinstance(partial, bytes) else partial
        status = None
    open_step, failed, notes, passed = '', [], {}, []
    for line in filter(lambda line: line.startswith('{'), output.splitlines()):
        record = json.loads(line)
        if 'begin' in record:
            open_step = record['begin']
            continue
        open_step = ''
        notes[record['end']] = record['note']
        if record['error']:
            failed.append((record['end'], record['error']))
        else:
            passed.append(record['end'])
    if open_step or (status != 0 and not failed):
        what = f'took over {PROBE_SECONDS} s' if status is None else f'ended python ({status})'
        failed.append((open_step or 'the probe', what))
    for name, reason in failed:
        found = _operator_finding(name, reason)
        if name.startswith('mmcv') and failed[0][0].startswith('import'):
            found = replace(found, mend='mend the first import that fails')
        yield found
    imports = [name.split()[1] for name in passed if name.startswith('import ')]
    operators = [name for name in passed if not name.startswith(('import ', 'gpu'))]
    if imports:
        yield Finding('green', 'imports', f'{", ".join(imports)}: load')
    if operators:
        text = f'{", ".join(operators)}: results as expected'
        yield Finding('green', 'operators', text, details={'operators': operators})
    if 'gpu' in notes:
        yield _gpu_finding(notes['gpu'])


def _operator_finding(name: str, error: str) -> Finding:
    kind, _, module = name.partition(' ')
    topic = 'imports' if kind == 'import' else 'operators'
    package = module.split('.')[0] if kind == 'import' else name.split('.')[0]
    mend = {
        'mmcv': 'compile it anew for this torch, on this machine: pip uninstall mmcv onedl-mmcv, '
        'then make env',
        'torchvision': 'pip install --force-reinstall -r requirements/torch.txt (torch and '
        'torchvision of one build)',
        'torch': 'pip install -r requirements/torch.txt',
        'cv2': 'pip install --force-reinstall opencv-python-headless, which needs no display',
    }.get(package, 'make env')
    level = 'yellow' if module in OPTIONAL_IMPORTS else 'red'
    return Finding(level, topic, f'{name}: {error}', mend)


def _gpu_finding(gpu: str) -> Finding:
    if gpu:
        return Finding('green', 'gpu', gpu)
    if Path('/dev/nvidia0').exists():
        text = 'there is an NVIDIA GPU, but torch cannot use it'
        mend = (
            'install its driver and a torch built for CUDA: pip install -r requirements/torch.txt'
        )
        return Finding('yellow', 'gpu', text, mend)
    return Finding('green', 'gpu', 'none here; operators were tried on the CPU alone')


def check_package(import_it: Callable[[], object]) -> Iterator[Finding]:
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
    mend = (
        'docker run --shm-size=8g (or --ipc=host), or --cfg-options train_dataloader.num_workers=0'
    )
    yield Finding(
        level,
        'shared memory',
        text,
        '' if level == 'green' else f'{mend} train_dataloader.persistent_workers=False',
        {'free': free, 'needed': needed},
    )


def readable(size: float) -> str:
    """Return a number of bytes for people."""
    return f'{size / 2**20:.0f} MiB' if size < GIB else f'{size / GIB:.1f} GiB'
