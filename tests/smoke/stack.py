"""What a smoke run says about its stack."""

import datetime
import importlib.metadata
import platform

from evit_mm.ops import PROVIDED
from evit_mm.utils.provenance import OTHERS, commit

PACKAGES = ('torch', 'torchvision', 'numpy', 'opencv', 'mmcv', 'mmengine', 'mmdet', 'mmpretrain')
# the last one to be installed over the others
OPENCV = ('opencv-contrib-python-headless', 'opencv-python-headless', 'opencv-python')


def describe():
    """Return versions, where they ran, and the day."""
    libc, version = platform.libc_ver()
    return {
        'python': platform.python_version(),
        'platform': f'{platform.system()} {platform.machine()}, {libc} {version}',
        'operators': PROVIDED,
        **{package: installed(package) for package in PACKAGES},
        'date': datetime.date.today().isoformat(),
        'commit': commit(),
    }


def installed(package):
    """Return the version, before it the distribution's name where that is another one."""
    for name in OPENCV if package == 'opencv' else (package, *OTHERS.get(package, ())):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return version if name == package else f'{name} {version}'
    return None
