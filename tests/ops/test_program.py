"""``python -m evit_mm.ops PROGRAM.py`` for programs that import mmcv's operators at once."""

import subprocess
import sys

import pytest

from evit_mm.ops.__main__ import main
from tests.conftest import ROOT

PROGRAM = """
import sys
import neighbour
from mmdet.datasets import CocoDataset
from mmcv.ops import nms
print(__name__, sys.argv[1:], neighbour.VALUE)
"""


def call(*words, cwd):
    command = [sys.executable, '-W', 'ignore', '-m', 'evit_mm.ops', *words]
    environment = {'PYTHONPATH': str(ROOT), 'PATH': ''}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_program_runs_with_its_arguments_and_modules(tmp_path):
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'program.py').write_text(PROGRAM)
    (tmp_path / 'tools' / 'neighbour.py').write_text('VALUE = 5')
    done = call('tools/program.py', 'config.py', '--out', 'x', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "__main__ ['config.py', '--out', 'x'] 5"


def test_programs_are_run_as_python_does_or_named(tmp_path, monkeypatch, capsys):
    (tmp_path / 'program.py').write_text('import sys\nprint(__name__, sys.argv, sys.path[:2])')
    monkeypatch.chdir(tmp_path)
    for words in (['program.py'], ['program.py', '--out', 'x']):
        monkeypatch.setattr(sys, 'path', ['first', 'second', *sys.path])
        monkeypatch.setattr(sys, 'argv', ['of python', *words])
        main()
        expected = ('__main__', words, [str(tmp_path), 'second'])
        assert capsys.readouterr().out.split('\n')[0] == ' '.join(map(str, expected))
    for words, message in (
        ([], 'usage: python -m evit_mm.ops PROGRAM.py'),
        (['gone.py', 'x'], "'gone.py' is not a file; usage: "),
        (['.'], "'.' is not a file; usage: "),
    ):
        monkeypatch.setattr(sys, 'argv', ['of python', *words])
        with pytest.raises(SystemExit, match=f'^{message}'):
            main()


def test_a_missing_program_is_named(tmp_path):
    done = call('nothing.py', cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("'nothing.py' is not a file; usage:")
