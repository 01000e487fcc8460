"""The wheel: what it holds, that it installs, and that it trains from outside the checkout."""

import email
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import evit_mm
from tests.conftest import ROOT

CHECKED = """
import importlib, pkgutil, sys
import evit_mm
from evit_mm.utils.package_files import project_path
from evit_mm.compare import available_models
from evit_mm.doctor.stack import tested_versions
from evit_mm.utils.provenance import commit

assert evit_mm.__file__.startswith(sys.prefix), evit_mm.__file__
names = [m.name for m in pkgutil.walk_packages(evit_mm.__path__, 'evit_mm.')]
for name in names:
    if not name.endswith(('.__main__', '.probe')):  # these are scripts
        assert importlib.import_module(name).__file__.startswith(sys.prefix)
assert 'evit_m4' in available_models() and tested_versions()['torch']
assert commit() == 'unknown'  # the repository around the environment is not evit_mm's
print(len(names))
"""


LIGHT = """
import sys
import mmengine.model

def loaded(*packages):
    return {name for name in sys.modules if name.split('.')[0] in packages}

before = loaded('rich')
import evit_mm
print(sorted(loaded(*sys.argv[1:]) | loaded('rich') - before))
"""


def run(*command, cwd, **env):
    inherited = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, 'OMP_NUM_THREADS': '1', **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """Source distribution, and the wheel that is built from it, of a copy of the checkout."""
    source = tmp_path_factory.mktemp('source') / 'evit_mm'
    ignore = shutil.ignore_patterns('.*', '__pycache__', '*.egg-info', 'build', 'dist', 'work_dirs')
    shutil.copytree(ROOT, source, ignore=ignore)
    before = files_under(source)
    out = tmp_path_factory.mktemp('dist')
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, source, cwd=out)
    left = {name for name in files_under(source) - before if '.egg-info/' not in name}
    assert not left  # neither links nor copies
    return next(out.glob('*.whl')), next(out.glob('*.tar.gz'))


def files_under(folder):
    return {str(f.relative_to(folder)) for f in folder.rglob('*') if f.is_file() or f.is_symlink()}


@pytest.mark.slow
def test_the_wheel_holds_code_configs_and_tools_and_nothing_else(built):
    wheel, sdist = built
    with zipfile.ZipFile(wheel) as packed, tarfile.open(sdist) as source:
        names = set(packed.namelist())
        inside = {name.partition('/')[2] for name in source.getnames()}
    own = {f'evit_mm/{f}' for f in files_under(ROOT / 'evit_mm') if '__pycache__' not in f}
    mim = {f'configs/{name}' for name in files_under(ROOT / 'configs') if '__pycache__' not in name}
    mim |= {f'tools/{f.name}' for kind in ('py', 'sh') for f in (ROOT / 'tools').glob(f'*.{kind}')}
    mim |= {'requirements/constraints.txt'}
    expected = own | {f'evit_mm/.mim/{name}' for name in mim | {'model-index.yml'}}
    info = f'evit_mm-{evit_mm.__version__}.dist-info/'
    assert {name for name in names if not name.startswith(info)} == expected
    assert {f'{info}licenses/LICENSE', f'{info}licenses/NOTICE'} <= names
    assert not any(name.startswith(('tests/', 'docs/', 'tools/dev/')) for name in inside)
    assert 'CHANGELOG.md' in inside and 'evit_mm/.mim' not in inside


@pytest.mark.slow
def test_the_description_renders(built, tmp_path):
    run(sys.executable, '-m', 'twine', 'check', '--strict', *built, cwd=tmp_path)


@pytest.mark.slow
def test_the_wheel_trains_and_tests_from_outside_the_checkout(built, tmp_path):
    """In a fresh environment that sees the tested stack, and evit_mm only in its own wheel."""
    run('git', 'init', '--quiet', tmp_path, cwd=tmp_path)
    environment = tmp_path / 'environment'
    run(sys.executable, '-m', 'venv', '--without-pip', environment, cwd=tmp_path)
    python = environment / 'bin' / 'python'
    own = run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=tmp_path)
    Path(own.strip(), 'stack.pth').write_text(sysconfig.get_path('purelib'))
    pip = [sys.executable, '-m', 'pip', '--python', python, 'install', '--no-index', '--quiet']
    # the stack may hold an evit_mm of its own, which must neither count nor go
    run(*pip, '--ignore-installed', '--no-deps', built[0], cwd=tmp_path)
    tools = ('det', 'cls', 'export', 'report', 'demo', 'tiles', 'track')
    run(*pip, f'evit_mm[{",".join(tools)}]', cwd=tmp_path)  # what it needs is there already
    assert int(run(python, '-c', CHECKED, cwd=tmp_path).split()[-1]) > 50  # after a log line

    command = environment / 'bin' / 'evit_mm'
    run(command, 'make_shapes', 'data/shapes', '--train', '8', '--val', '4', cwd=tmp_path)
    options = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        options += [f'{loader}.num_workers=0', f'{loader}.persistent_workers=False']
    config = 'retinanet_evit_m4_shapes'
    said = run(command, 'train', config, '--device', 'cpu', '--cfg-options', *options, cwd=tmp_path)
    assert (tmp_path / 'work_dirs' / config / 'epoch_1.pth').is_file()
    following = re.findall(r'^  python (-m evit_mm test .+)', said, re.M)
    if following:  # one iteration may find not one box, and then no epoch is the best
        run(python, *shlex.split(following[0]), cwd=tmp_path)
    assert 'next:' in said


@pytest.mark.slow
def test_requirements_are_pinned_and_only_all_names_the_libraries(built):
    """Each requirement has one pin for each Python; 'all' has every extra but the large one."""
    with zipfile.ZipFile(built[0]) as wheel:
        name = f'evit_mm-{evit_mm.__version__}.dist-info/METADATA'
        metadata = email.message_from_bytes(wheel.read(name))
    needs = [Requirement(line) for line in metadata.get_all('Requires-Dist')]
    extras = metadata.get_all('Provides-Extra')
    assert {'cls', 'export', 'report', 'dev', 'all'} <= set(extras)
    optional = [need for need in needs if need.marker]
    by_extra = {
        extra: {need.name for need in optional if need.marker.evaluate({'extra': extra})}
        for extra in extras
    }
    everything = by_extra.pop('all')
    large = by_extra.pop('executorch')
    assert everything > set().union(*by_extra.values()) and everything.isdisjoint(large)
    # what may be there under another name, or for another torch, comes only where all is asked for
    libraries = {'torchvision', 'mmengine', 'mmcv-lite', 'opencv-contrib-python-headless'}
    assert libraries <= everything
    others = {need.name for need in needs if not need.marker}.union(*by_extra.values())
    assert not any(re.match('torchvision|mmengine|mmcv|onedl|opencv', name) for name in others)

    lines = (ROOT / 'requirements' / 'constraints.txt').read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith('#')]
    for minor in (10, 11, 12, 13):
        python = {'python_full_version': f'3.{minor}.5', 'python_version': f'3.{minor}'}
        here = [pin for pin in pins if not pin.marker or pin.marker.evaluate(python)]
        versions = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in here}
        assert len(versions) == len(here)
        for need in needs:
            assert versions[canonicalize_name(need.name)] in need.specifier, need


def test_the_package_loads_nothing_that_its_networks_do_not_need(tmp_path):
    heavy = ('cv2', 'PIL', 'filelock', 'huggingface_hub', 'matplotlib', 'pooch', 'torchvision')
    libraries = ('mmcv', 'mmdet', 'mmpretrain', 'timm')
    command = [sys.executable, '-c', LIGHT, *heavy, *libraries]
    assert run(*command, cwd=tmp_path, PYTHONPATH=str(ROOT)) == '[]\n'


def test_metadata_names_licence_python_and_paper():
    metadata = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert {'cff-version', 'message', 'title', 'authors', 'version', 'license'} <= set(metadata)
    assert metadata['cff-version'] == '1.2.0' and metadata['license'] == 'Apache-2.0'
    assert metadata['version'] == evit_mm.__version__
    paper = metadata['preferred-citation']
    assert {'type', 'title', 'authors', 'year'} <= set(paper)
    assert all({'family-names', 'given-names'} == set(author) for author in paper['authors'])


def test_the_tools_run_by_name(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'evit_mm', 'trian'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "error: unknown tool 'trian'" in done.stderr
    tools = re.search('tools: (.+)', done.stderr)[1].split(', ')
    assert tools == sorted(file.stem for file in (ROOT / 'tools').glob('*.py'))


def test_hooks_before_a_commit_fetch_nothing_and_are_what_lint_runs():
    (repo,) = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos']
    assert repo['repo'] == 'local'
    assert {hook['language'] for hook in repo['hooks']} == {'system'}
    lint = (ROOT / 'Makefile').read_text().partition('lint:')[2]
    for hook in repo['hooks']:
        start, flag = hook['entry'].partition(' --')[:2]
        assert start.removeprefix('python ') in lint and hook['types' + '_or' * bool(flag)]


def test_issue_forms_ask_for_what_exists():
    folder = ROOT / '.github' / 'ISSUE_TEMPLATE'
    forms = [yaml.safe_load(f.read_text()) for f in sorted(folder.glob('*.yml'))]
    bug, config, *others = forms
    assert config == {'blank_issues_enabled': False} and len(others) == 2
    for form in (bug, *others):
        assert form['name'] and form['description']
        ids = [field['id'] for field in form['body']]
        assert len(set(ids)) == len(ids) and form['body'][0]['validations'] == {'required': True}
    told = (ROOT / 'CONTRIBUTING.md').read_text() + str(bug)
    named = set(re.findall(r'\b(?:tools|tests|configs|evit_mm)/[\w/.]+\w', told))
    assert 'tools/doctor.py' in named and 'tests/models/test_window.py' in named
    for name in named:
        assert name == 'evit_mm/.mim' or list(ROOT.glob(name.replace('NAME', '*'))), name
