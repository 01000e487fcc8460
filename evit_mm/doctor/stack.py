"""Check the environment: package versions, imports and operators.

This module imports only the standard library, because any other package can be broken.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from .findings import Finding, from_sentence

PACKAGE = Path(__file__).resolve().parents[1]
# copied from evit_mm.utils.package_files, which cannot be imported in a broken environment
MIM = PACKAGE / '.mim'
CONSTRAINTS = (MIM if MIM.is_dir() else PACKAGE.parent) / 'requirements' / 'constraints.txt'
# the pinned packages that evit_mm and its tools import
PACKAGES = (
    'torch',
    'torchvision',
    'numpy',
    'mmengine',
    'mmcv-lite',
    'mmdet',
    'mmpretrain',
    'opencv-python',
    'pycocotools',
    'hotcoco',
    'rich',
    'setuptools',
    'timm',
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
)
# distributions that install the same module; the onedl packages have other version numbers
SAME_MODULE = {
    'opencv-python': ('opencv-python-headless', 'opencv-contrib-python-headless'),
    'mmcv-lite': ('mmcv', 'onedl-mmcv'),
    'mmengine': ('onedl-mmengine',),
    'mmdet': ('onedl-mmdetection',),
    'mmpretrain': ('onedl-mmpretrain',),
}
ENVIRONMENT = PACKAGE / 'utils' / 'environment.py'
PROBE = Path(__file__).with_name('probe.py')
PROGRAM_SECONDS = 300


def tested_versions() -> dict[str, str]:
    """Return the pinned version of each package for this Python version."""
    from packaging.requirements import Requirement

    lines = CONSTRAINTS.read_text(encoding='utf-8').splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith('#')]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    return {pin.name: next(iter(pin.specifier)).version for pin in here}


def installed_version(package: str) -> str | None:
    """Return the version of a package or of an alternative, without the ``+...`` suffix."""
    for name in (package, *SAME_MODULE.get(package, ())):
        try:
            return metadata.version(name).split('+')[0]
        except metadata.PackageNotFoundError:
            continue
    return None


def check_versions() -> Iterator[Finding]:
    """Compare the installed versions with the pinned ones."""
    pins = tested_versions()
    equal = 0
    for package in PACKAGES:
        version, pin = installed_version(package), pins[package]
        if version == pin:
            equal += 1
        else:
            text = f'{package} is {version or "not installed"} (pinned version: {pin})'
            fix = f'if something fails, run pip install {package}=={pin}'
            yield Finding('yellow', 'versions', text, fix)
    text = f'{equal} of {len(PACKAGES)} packages have the pinned version'
    yield Finding('green', 'versions', text)


def run_program(file: Path) -> tuple[list[str], int]:
    """Run a Python file in a separate process and return its output lines and exit status."""
    path = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get('PYTHONPATH'))))
    done = subprocess.run(
        [sys.executable, str(file)],
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
    )
    return done.stdout.splitlines(), done.returncode


def check_environment(program: Path = ENVIRONMENT) -> Iterator[Finding]:
    """Check with :mod:`evit_mm.utils.environment` whether the packages are compatible."""
    faults, status = run_program(program)
    for fault in faults:
        yield from_sentence('red', 'environment', fault)
    if not faults and status:
        text = f'Python crashed during the import of the libraries (exit status {status})'
        yield Finding('red', 'environment', text, 'install into a new environment')
    elif not faults:
        text = 'torch, torchvision, OpenCV and mmcv are compatible'
        yield Finding('green', 'environment', text)


def check_operators(program: Path = PROBE) -> Iterator[Finding]:
    """Import the package and test mmcv's operators with :mod:`evit_mm.doctor.probe`."""
    lines, status = run_program(program)
    outcomes = dict(line.split(': ', 1) for line in lines)
    for step, outcome in outcomes.items():
        if outcome != 'ok':  # an empty outcome means that the step crashed the process
            text = f'{step}: {outcome or f"Python crashed (exit status {status})"}'
            yield Finding('red', 'operators', text, 'install the pinned versions')
    passed = [step for step, outcome in outcomes.items() if outcome == 'ok']
    if passed:
        yield Finding('green', 'operators', f'passed: {", ".join(passed)}')
    without_gpu = 'mmcv.nms cpu' in passed and 'mmcv.nms cuda' not in outcomes
    if without_gpu and Path('/dev/nvidia0').exists():
        text = 'torch cannot use the NVIDIA GPU of this machine'
        fix = 'install the GPU driver and a torch build for its CUDA version'
        yield Finding('yellow', 'operators', text, fix)
