"""Configs and tools are found in a checkout and in an installed package."""

import sys
from pathlib import Path

import pytest

import evit_mm.__main__
from evit_mm.errors import ConfigError
from evit_mm.utils import package_files as places
from evit_mm.utils.package_files import find_config, project_path
from tests.conftest import ROOT


def test_configs_are_found_by_name_or_path(tmp_path, monkeypatch):
    expected = ROOT / 'configs' / 'retinanet_evit_m4_coco.py'
    monkeypatch.chdir(tmp_path)
    for name in ('retinanet_evit_m4_coco', 'configs/retinanet_evit_m4_coco.py', expected):
        assert find_config(name).resolve() == expected
    (tmp_path / 'retinanet_evit_m4_coco').mkdir()  # a folder is no config
    assert find_config('retinanet_evit_m4_coco').resolve() == expected
    (tmp_path / 'retinanet_evit_m4_coco.py').write_text('')
    assert find_config('retinanet_evit_m4_coco.py') == Path('retinanet_evit_m4_coco.py')
    with pytest.raises(
        ConfigError, match="did you mean 'retinanet_evit_m4_coco' or '.*' or '.*'.?\\)"
    ):
        find_config('retinanet_evit_m4_cocoo.py')
    with pytest.raises(ConfigError, match='does not exist; the configs are in .*configs'):
        find_config('elsewhere/x.py')
    with pytest.raises(ConfigError, match="'elsewhere/retinanet_evit_m4_coco.py' does not exist"):
        find_config('elsewhere/retinanet_evit_m4_coco.py')


def test_an_installed_package_asks_its_own_folder_alone(tmp_path, monkeypatch):
    assert project_path('configs') == ROOT / 'configs'
    site = tmp_path / 'site-packages'
    (site / 'configs').mkdir(parents=True)  # somebody else's
    (site / 'evit_mm' / '.mim').mkdir(parents=True)
    monkeypatch.setattr(places, 'PACKAGE', site / 'evit_mm')
    monkeypatch.setattr(places, 'MIM', site / 'evit_mm' / '.mim')
    assert project_path('configs') == site / 'evit_mm' / '.mim' / 'configs'


def test_a_tool_runs_by_its_name_with_its_arguments(tmp_path, monkeypatch, capsys):
    options = ['--train', '1', '--val', '2', '--size', '64x48']
    monkeypatch.setattr(sys, 'argv', ['evit_mm', 'make_shapes', f'{tmp_path}/set', *options])
    evit_mm.__main__.main()
    assert f'shapes data set: {tmp_path}/set\n' in capsys.readouterr().out
    assert len(list((tmp_path / 'set' / 'val').iterdir())) == 2


@pytest.mark.parametrize('words', [[], ['-h'], ['--help']])
def test_without_a_tool_the_tools_and_configs_are_listed(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['evit_mm', *words])
    evit_mm.__main__.main()
    usage, tools, configs = capsys.readouterr().out.splitlines()
    assert usage == 'usage: python -m evit_mm TOOL [options]'
    assert {'train', 'test', 'doctor'} < set(tools.removeprefix('tools: ').split(', '))
    assert configs.endswith(f': {ROOT / "configs"}')


def test_an_unknown_tool_is_named_above_the_list(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['evit_mm', 'trian', 'x'])
    with pytest.raises(SystemExit, match="^error: unknown tool 'trian'\nusage: .*\ntools: .*"):
        evit_mm.__main__.main()
