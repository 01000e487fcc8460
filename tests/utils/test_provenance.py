"""Versions, the commit and the CPU, as reports name them."""

import importlib.metadata
import subprocess

import pytest

from evit_mm.errors import EvitError
from evit_mm.utils import provenance
from evit_mm.utils.provenance import need_torch, versions


def install(folder, **packages):
    for name, version in packages.items():
        info = folder / f'{name}-{version}.dist-info'
        info.mkdir(parents=True)
        text = f'Metadata-Version: 2.1\nName: {name.replace("_", "-")}\nVersion: {version}\n'
        (info / 'METADATA').write_text(text)


def test_versions_name_the_distribution_that_has_a_module(tmp_path, monkeypatch):
    # found before what is installed
    install(tmp_path, mmdet='3.3.0', onedl_mmpretrain='1.4.7', timm='1.0.9', onedl_mmengine='0.11')
    monkeypatch.setattr('sys.path', [str(tmp_path)])
    assert versions(['mmdet', 'mmpretrain', 'mmcv', 'mmengine', 'timm']) == {
        'mmdet': '3.3.0',
        'mmpretrain': '1.4.7 (onedl-mmpretrain)',
        'mmcv': 'not installed',
        'mmengine': '0.11 (onedl-mmengine)',
        'timm': '1.0.9',
    }
    install(tmp_path / 'more', mmcv_lite='2.1.0', onedl_mmdetection='3.4.1', onedl_mmcv='2.3.6')
    monkeypatch.setattr('sys.path', [str(tmp_path / 'more')])
    assert versions(['mmcv', 'mmdet']) == {
        'mmcv': '2.1.0 (mmcv-lite)',
        'mmdet': '3.4.1 (onedl-mmdetection)',
    }


def test_torch_must_be_as_new_as_needed(monkeypatch):
    installed = importlib.metadata.version('torch')
    need_torch('2.0', 'An export')
    need_torch(installed, 'An export')
    fault = rf'^An export needs torch 99\.1 or newer, but torch {installed.split("+")[0]}.* is in'
    with pytest.raises(EvitError, match=fault + r".*: pip install 'torch>=99\.1' torchvision$"):
        need_torch('99.1', 'An export')


def test_commit_is_that_of_the_checkout_alone(tmp_path, monkeypatch):
    def git(*words):
        who = ['-c', 'user.name=a', '-c', 'user.email=a@b.c']
        done = subprocess.run(['git', *who, *words], cwd=tmp_path, check=True, capture_output=True)
        return done.stdout.decode().strip()

    git('init', '--quiet')
    environment = tmp_path / 'environment' / 'evit_mm' / 'utils'
    environment.mkdir(parents=True)
    monkeypatch.setattr(provenance, '__file__', str(environment / 'provenance.py'))
    assert provenance.commit() == 'unknown'
    package = tmp_path / 'evit_mm' / 'utils'
    package.mkdir(parents=True)
    monkeypatch.setattr(provenance, '__file__', str(package / 'provenance.py'))
    assert provenance.commit() == 'unknown'  # nothing is committed
    (package / 'a.py').write_text('1')
    git('add', '--all')
    git('commit', '--quiet', '--message', 'a')
    commit = git('rev-parse', '--short', 'HEAD')
    assert provenance.commit() == commit
    (package / 'a.py').write_text('2')
    assert provenance.commit() == f'{commit}-dirty'
    monkeypatch.setenv('PATH', '')
    assert provenance.commit() == 'unknown'


def test_the_cpu_has_the_name_that_linux_gives_it(tmp_path, monkeypatch):
    info = tmp_path / 'cpuinfo'
    monkeypatch.setattr(provenance, 'Path', {'/proc/cpuinfo': info}.__getitem__)
    info.write_text('processor\t: 0\nmodel name\t: Some CPU @ 2 GHz \nflags\t: a\nmodel name: x\n')
    assert provenance.cpu() == 'Some CPU @ 2 GHz'
    info.write_text('processor\t: 0\n')
    monkeypatch.setattr('platform.machine', lambda: 'aarch64')
    assert provenance.cpu() == 'aarch64'
    info.unlink()
    monkeypatch.setattr('platform.processor', lambda: 'arm')
    assert provenance.cpu() == 'arm'
    monkeypatch.setattr('platform.processor', lambda: '')
    assert provenance.cpu() == 'aarch64'
