"""requirements/env.sh: what it uses as it is, and one sentence for each thing that can be wrong."""

import os
import stat
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# a made-up interpreter: which modules it has, and what becomes of `-m venv` and `-m pip`
PYTHON = """#!/bin/sh
case "$*" in
    *find_spec*torchvision*) exit {libraries} ;;
    *find_spec*) exit {torch} ;;
    *ensurepip*) exit {ensurepip} ;;
    *version_info*) exit {old} ;;
    *--version*) echo Python 3.9.1 ;;
    *'-m venv'*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit {venv} ;;
    *'-m pip'*) echo {said!r}; exit {pip} ;;
esac
"""
GOOD = {'libraries': 1, 'torch': 1, 'old': 0, 'ensurepip': 0, 'venv': 0, 'pip': 0, 'said': ''}


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def python(path, **changes):
    return program(path, PYTHON.format(**{**GOOD, **changes}))


def set_up(venv, interpreter, gigabytes=50):
    """Set up on a disk with that much space."""
    folder = venv.parent / 'programs'
    program(folder / 'df', f'#!/bin/sh\necho Filesystem\necho d 9 8 {gigabytes << 20} 9% /\n')
    environ = {**os.environ, 'PATH': f'{folder}:{os.environ["PATH"]}'}
    return subprocess.run(
        [ROOT / 'requirements' / 'env.sh', venv, interpreter],
        capture_output=True,
        text=True,
        env=environ,
    )


def fault(done):
    assert done.returncode == 1 and not done.stdout
    lines = [line for line in done.stderr.splitlines() if 'installing' not in line]
    assert len(lines) == 1
    return lines[0]


def test_a_new_environment_is_installed_once(tmp_path):
    venv = tmp_path / 'venv'
    done = set_up(venv, python(tmp_path / 'python'))
    assert done.returncode == 0 and done.stdout == f'{venv}/bin/python\n'
    assert 'installing' in done.stderr
    python(venv / 'bin' / 'python', pip=1)
    done = set_up(venv, 'not needed')
    assert (done.stdout, done.stderr) == (f'{venv}/bin/python\n', '')
    (venv / 'evit_mm.installed').write_text('other pins')
    assert 'pip failed' in fault(set_up(venv, 'not needed'))


def test_an_interrupted_installation_is_continued(tmp_path):
    venv = tmp_path / 'venv'
    fault(set_up(venv, python(tmp_path / 'python', pip=1)))
    python(venv / 'bin' / 'python', torch=0)
    assert 'installing' in set_up(venv, 'not needed').stderr


@pytest.mark.parametrize('given', ['as VENV', 'as PYTHON'])
def test_an_environment_with_the_libraries_is_used_as_it_is(tmp_path, given):
    own = program(tmp_path / 'own' / 'bin' / 'python', f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    venv = tmp_path / 'own' if given == 'as VENV' else tmp_path / 'new'
    done = set_up(venv, own)
    assert (done.stdout, done.stderr) == (f'{own}\n', '')
    assert {p.name for p in tmp_path.iterdir()} == {'own', 'programs'}
    assert [p.name for p in own.parents[1].rglob('*')] == ['bin', 'python']


def test_an_environment_with_another_torch_is_left_alone(tmp_path):
    python(tmp_path / 'own' / 'bin' / 'python', torch=0)
    text = fault(set_up(tmp_path / 'own', 'not needed'))
    assert 'has torch but lacks some of' in text and 'set VENV= to a new path' in text


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'old': 1}, 'Python 3.9.1 is too old; set PYTHON= to Python 3.10 to 3.13'),
        ({'venv': 1}, 'see above; set VENV= to another path'),
        (
            {'ensurepip': 1},
            'has no venv module; on Debian and Ubuntu: apt-get install python3-venv',
        ),
        ({'pip': 1, 'said': '[Errno 28] No space left on device'}, 'the disk is full; free some'),
        (
            {'pip': 1, 'said': 'NewConnectionError: ...'},
            'pip cannot reach the package index; check',
        ),
        ({'pip': 1, 'said': 'ERROR: no wheel'}, 'pip failed: ERROR: no wheel; see '),
    ],
)
def test_what_can_be_wrong_is_one_sentence(tmp_path, changes, sentence):
    assert sentence in fault(set_up(tmp_path / 'venv', python(tmp_path / 'python', **changes)))


def test_no_python(tmp_path):
    text = fault(set_up(tmp_path / 'venv', 'python9'))
    assert (
        text
        == 'evit_mm: python9 is not installed; install Python 3.10 to 3.13, or set PYTHON= to its '
        'path'
    )


def test_too_little_space(tmp_path):
    done = set_up(tmp_path / 'venv', python(tmp_path / 'python'), gigabytes=3)
    assert 'needs 10 GB, but the disk has 3 GB free; free space' in fault(done)


@pytest.mark.parametrize(('given', 'number'), [([], '2'), (['JOBS='], '2'), (['JOBS=4'], '4')])
def test_make_test_has_a_number_of_processes(given, number):
    for target in ('test', 'test-all', 'smoke'):
        recipe = subprocess.run(
            ['make', '-n', target, *given], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert f' -n {number} ' in recipe.stdout
