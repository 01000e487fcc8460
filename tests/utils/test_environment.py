"""Packages that do not fit each other end in one sentence; they are made up in a folder."""

import os
import subprocess
import sys

import pytest

from evit_mm.utils import environment
from tests.conftest import ROOT

PROGRAM = ROOT / 'evit_mm' / 'utils' / 'environment.py'
TORCH = 'class ops:\n    class torchvision:\n        nms = None\n'
SOUND = {
    'torch': ('2.14.1+cpu', TORCH),
    'torchvision': ('0.29.1', ''),
    'opencv-python': ('5.0.0.93', ''),
    'mmengine': ('0.10.7', ''),
    'mmcv-lite': ('2.1.0', ''),
    'mmdet': ('3.3.0', ''),
}
MODULES = {
    'opencv-python': 'cv2',
    'opencv-contrib-python': 'cv2',
    'opencv-python-headless': 'cv2',
    'mmcv-lite': 'mmcv',
    'onedl-mmcv': 'mmcv',
}
NO_NMS = "raise RuntimeError('operator torchvision::nms does not exist')"
NO_XCB = "raise ImportError('libxcb.so.1: cannot open shared object file')"
UNDEFINED = "raise ImportError('_ext.so: undefined symbol: _ZN3c10')"


def make(folder, packages):
    """Write packages with these versions and contents; torchvision asks for one torch."""
    for name, (version, code) in packages.items():
        module = folder / MODULES.get(name, name)
        module.mkdir(exist_ok=True)
        (module / '__init__.py').write_text(code)
        info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
        info.mkdir()
        text = f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
        if name == 'torchvision':
            pin = 'torch (==2.0)' if version == '0.15' else 'torch==2.14.1'
            text += f'Requires-Dist: numpy\nRequires-Dist: {pin}\n'
        (info / 'METADATA').write_text(text)


def run(folder, *command, **variables):
    """Run Python where only these packages and the standard library are found."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, '-S', *map(str, command)],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': path, **variables},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        (
            {'mmcv-lite': None, 'mmcv': ('2.2.0', '')},
            'mmcv 2.2.0 is installed, but mmdet 3.3 requires mmcv >= 2.0.0, < 2.2.0; '
            'pip uninstall -y mmcv, then pip install mmcv-lite==2.1.0',
        ),
        (
            {'mmcv': ('2.1.0', '')},
            'mmcv 2.1.0 and mmcv-lite 2.1.0 are both installed and overwrite each other; reinstall '
            'one: pip uninstall -y mmcv mmcv-lite, then pip install mmcv-lite==2.1.0',
        ),
        (
            {'mmcv-lite': ('1.7.2', ''), 'mmdet': None},
            'mmcv-lite 1.7.2 is installed, but mmdet 3.3 requires mmcv >= 2.0.0, < 2.2.0; '
            'pip uninstall -y mmcv-lite, then',
        ),
        (
            {'onedl-mmcv': ('2.3.6', '')},
            'mmcv-lite 2.1.0 and onedl-mmcv 2.3.6 are both installed and overwrite each other; '
            'reinstall one: pip uninstall -y mmcv-lite onedl-mmcv, then pip install onedl-mmcv',
        ),
        (
            {'torch': ('2.14.1+cpu', "raise OSError('libc10.so:\\n  ' + 'x' * 300)")},
            'torch 2.14.1+cpu cannot be imported (OSError: libc10.so: '
            f'{"x" * 189}); pip install --force-reinstall torch==2.14.1+cpu',
        ),
        (
            {'torchvision': None},
            'torchvision is not installed; pip install torch==2.14.1+cpu torchvision',
        ),
        (
            {'torch': ('2.11.0', TORCH)},
            'torchvision 0.29.1 requires torch 2.14.1, but torch 2.11.0 is installed; '
            'pip install torch==2.11.0 torchvision',
        ),
        ({'torch': ('1.13.1', TORCH)}, 'torch 1.13.1 is too old; pip install "torch>=2.0"'),
        (
            {'mmcv-lite': None},
            "mmcv is not installed; pip install torch==2.14.1+cpu 'mmcv-lite>=2.0.0,<2.2.0'",
        ),
        (
            dict.fromkeys(['torch', 'torchvision']),
            'torch, torchvision are not installed; pip install torch torchvision',
        ),
        (
            dict.fromkeys(['torch', 'torchvision', 'mmcv-lite']),
            "torch, torchvision, mmcv are not installed; pip install 'evit_mm[all]'",
        ),
    ],
)
def test_what_is_missing_or_does_not_fit_is_one_sentence(tmp_path, changes, sentence):
    assert_named(tmp_path, changes, sentence)
    done = run(tmp_path, '-c', 'import evit_mm')
    assert done.stderr.splitlines()[-1].startswith(
        f'evit_mm.utils.environment.EnvironmentFault: {sentence}'
    )


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        (
            {'torchvision': ('0.29.1', NO_NMS)},
            'torchvision 0.29.1 and torch 2.14.1+cpu come from different builds (RuntimeError: '
            'operator torchvision::nms does not exist); pip uninstall -y torch torchvision, then '
            'pip install both from the same index',
        ),
        (
            {'torch': ('2.14.1', 'class ops:\n    torchvision = None')},
            'torchvision 0.29.1 and torch 2.14.1 come from different builds (its operators are '
            'missing); pip uninstall -y torch torchvision, then pip install both from the same '
            'index',
        ),
        (
            {'opencv-python': ('5.0.0.93', NO_XCB)},
            'OpenCV cannot be imported (ImportError: libxcb.so.1: cannot open shared object file); '
            'install the build that needs no display libraries: pip install --force-reinstall '
            '--no-deps opencv-python-headless==5.0.0.93',
        ),
        (
            {'opencv-python': None, 'opencv-contrib-python': ('4.9.0.80', NO_XCB)},
            'OpenCV cannot be imported (ImportError: libxcb.so.1: cannot open shared object file); '
            'install the build that needs no display libraries: pip install --force-reinstall '
            '--no-deps opencv-python-headless==4.9.0.80',
        ),
    ],
)
def test_what_does_not_load_is_one_sentence(tmp_path, changes, sentence):
    assert_named(tmp_path, changes, sentence)


def assert_named(folder, changes, sentence):
    make(folder, {name: made for name, made in {**SOUND, **changes}.items() if made})
    done = run(folder, PROGRAM)
    assert done.returncode == 1 and done.stdout.startswith(sentence), done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_an_opencv_that_does_not_load_is_named_where_it_is_needed(tmp_path):
    (tmp_path / 'cv2.py').write_text(NO_XCB)
    code = 'import evit_mm.models; print("light"); import evit_mm.runner'
    environ = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.stdout == 'light\n'
    assert done.stderr.splitlines()[-1].startswith(
        'evit_mm.utils.environment.EnvironmentFault: OpenCV cannot be imported (ImportError: libxcb'
    )


@pytest.mark.parametrize('name', ['mmcv', 'onedl-mmcv'])
def test_operators_compiled_for_another_torch(tmp_path, name):
    make(
        tmp_path,
        {**{k: made for k, made in SOUND.items() if k != 'mmcv-lite'}, name: ('2.1.0', '')},
    )
    (tmp_path / 'mmcv' / '_ext.py').write_text(UNDEFINED)
    (line,) = run(tmp_path, PROGRAM).stdout.splitlines()
    assert line.startswith(f'the compiled operators of {name} 2.1.0 cannot be loaded with torch')
    assert 'undefined symbol' in line and '; set EVIT_MM_OPS=torchvision' in line
    # then nothing of mmcv's operators is loaded
    assert not run(tmp_path, PROGRAM, EVIT_MM_OPS='torchvision').stdout


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'mmcv-lite': None, 'mmcv': ('2.1.0', '')},
        {'mmcv-lite': ('2.0.0rc4', '')},
        {'mmcv-lite': None, 'mmcv': ('2.2.0', ''), 'mmdet': None},  # mmpretrain takes it
        {'mmcv-lite': None, 'mmdet': None, 'onedl-mmcv': ('2.3.6', '')},
        {'torch': ('2.0', TORCH), 'torchvision': ('0.15', '')},
        {'opencv-python': None, 'opencv-python-headless': ('5.0.0.93', '')},
    ],
)
def test_sound_environments_pass(tmp_path, changes):
    make(tmp_path, {name: made for name, made in {**SOUND, **changes}.items() if made})
    done = run(tmp_path, PROGRAM)
    assert (done.returncode, done.stdout) == (0, ''), done.stdout + done.stderr


def test_this_environment_is_sound():
    environment.check_environment()


def test_operators_need_nothing_but_torch_and_openmmlab():
    """Neither the hub nor safetensors, nor what other parts of the package import."""
    absent = ['huggingface_hub', 'safetensors', 'timm', 'mmpretrain', 'hotcoco', 'psutil']
    code = f'import sys; sys.modules.update(dict.fromkeys({absent})); import evit_mm.ops'
    environ = {**os.environ, 'PYTHONPATH': str(ROOT)}
    subprocess.run([sys.executable, '-c', code], env=environ, check=True)


def test_a_version_is_the_numbers_it_starts_with():
    versions = ['2.14.1+cpu', '2.1.0rc4', '10', '0.29.dev1', 'main', '']
    numbers = [(2, 14, 1), (2, 1, 0), (10,), (0, 29), (), ()]
    assert list(map(environment.version_numbers, versions)) == numbers


def test_the_switch_of_the_operators(monkeypatch):
    monkeypatch.setenv('EVIT_MM_OPS', 'fast')
    fault = "EVIT_MM_OPS='fast' is not one of auto, torchvision, compiled; unset"
    with pytest.raises(environment.EnvironmentFault, match=fault):
        environment.check_installed()
    for value in ('', 'auto', 'torchvision', 'compiled'):
        monkeypatch.setenv('EVIT_MM_OPS', value)
        environment.check_installed()
