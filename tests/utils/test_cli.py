"""What the tools share: one error line, Ctrl-C, the same options."""

import argparse
import os
import random
import re
import runpy
import signal
import subprocess
import sys

import pytest
from mmengine.config import DictAction

from evit_mm.errors import CheckpointError, ConfigError, DataError
from evit_mm.utils import cli
from tests.conftest import ROOT


def fail(error, cause=None):
    def tool():
        raise error from cause

    return tool


@pytest.mark.parametrize(
    ('tool', 'arguments', 'said'),
    [
        ('train', ['--data', ''], "the argument after '--data' is empty"),
        ('predict', ['a.py', 'b.pth', '', '--out', 'c'], "the argument after 'b.pth' is empty"),
        ('report', [''], 'report.py. is empty'),
        ('doctor', ['--data', ''], 'an argument is empty; if it is a shell variable, set it'),
    ],
)
def test_an_empty_argument_is_no_path(tool, arguments, said, monkeypatch, capsys):
    path = str(ROOT / 'tools' / f'{tool}.py')
    monkeypatch.setattr(sys, 'argv', [path, *arguments])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(path, run_name='__main__')
    assert caught.value.code == 2 and re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize(
    ('error', 'cause', 'said'),
    [
        (ConfigError('a.py: no'), None, 'error: a.py: no'),
        (ConfigError('a.py: no'), KeyError('x'), 'error: a.py: no\nset EVIT_MM_DEBUG=1'),
        (
            FileNotFoundError(2, 'No such file', 'b'),
            None,
            "error: [Errno 2] No such file: 'b'\nset EVIT",
        ),
        (CheckpointError('b.pth: no'), None, 'error: b.pth: no'),
        (DataError('c.json: no'), None, 'error: c.json: no'),
    ],
)
def test_a_tool_ends_with_one_line(error, cause, said, monkeypatch):
    monkeypatch.delenv(cli.DEBUG, raising=False)
    with pytest.raises(SystemExit) as caught:
        cli.run_tool(fail(error, cause), 'go on')
    assert str(caught.value).startswith(said)
    assert ('EVIT_MM_DEBUG' in str(caught.value)) == ('EVIT' in said)


def test_the_debug_variable_prints_the_traceback_with_its_cause(monkeypatch, capsys):
    monkeypatch.setenv(cli.DEBUG, '1')
    with pytest.raises(SystemExit, match='^error: a.py: no$'):
        cli.run_tool(fail(ConfigError('a.py: no'), KeyError('x')))
    shown = capsys.readouterr().err
    assert "KeyError: 'x'" in shown and 'in tool' in shown
    monkeypatch.setenv(cli.DEBUG, '0')
    with pytest.raises(SystemExit):
        cli.run_tool(fail(ConfigError('a.py: no'), KeyError('x')))
    assert not capsys.readouterr().err


def test_a_bug_is_not_made_a_line_of():
    with pytest.raises(ZeroDivisionError):
        cli.run_tool(lambda: 1 / 0)
    assert cli.run_tool(lambda: 3) == 3


@pytest.mark.parametrize(
    ('number', 'status', 'said'),
    [(signal.SIGINT, 130, 'interrupted'), (signal.SIGTERM, 143, 'terminated')],
)
@pytest.mark.parametrize('then', ['', 'run it again', lambda: 'run it again'])
def test_a_signal_ends_a_tool_with_a_sentence_and_the_status_of_a_shell(
    number, status, said, then, capsys, request
):
    # it is ignored where the tests were started in the background of a shell
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, interrupt))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        cli.run_tool(lambda: signal.raise_signal(number), then)
    assert caught.value.code == status
    assert capsys.readouterr().err == f'{said}; run it again\n' if then else f'{said}\n'
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize('kind', [SyntaxError, ConfigError])
def test_an_interrupt_that_a_library_has_renamed_is_one(kind, capsys):
    def tool():
        try:
            raise KeyboardInterrupt
        except BaseException as error:  # as in mmengine's Config.pretty_text
            raise kind('cannot be formatted') from error

    with pytest.raises(SystemExit, match='^130$'):
        cli.run_tool(tool)
    assert capsys.readouterr().err == 'interrupted\n'


START = """
import os, signal, sys
class Interrupt:  # Ctrl-C while the named module is being imported
    def find_spec(self, name, *_):
        if name == 'mmengine':
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
"""


@pytest.mark.slow
@pytest.mark.parametrize('words', [['tools/train.py', 'x.py'], ['-m', 'evit_mm', 'predict']])
def test_ctrl_c_while_modules_load_ends_a_tool_without_a_traceback(words, tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(START)
    command = ['env', '--default-signal=INT', sys.executable, *words]
    env = {**os.environ, 'PYTHONPATH': f'{tmp_path}:{ROOT}'}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT and not done.stderr + done.stdout
    command[-len(words) :] = ['-c', 'import evit_mm']  # other programs are not changed
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert 'KeyboardInterrupt' in done.stderr


@pytest.mark.parametrize(
    ('words', 'before', 'launcher', 'rank'),
    [
        (['--local-rank', '2', '--launcher', 'pytorch'], None, 'pytorch', '2'),
        (['--local_rank=3', '--launcher', 'slurm'], None, 'slurm', '3'),
        (['--local-rank', '2', '--launcher', 'mpi'], '1', 'mpi', '1'),  # torchrun has set it
        ([], None, 'none', '0'),
    ],
)
def test_a_launchers_rank_goes_to_the_environment(words, before, launcher, rank, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', before or '')
    if before is None:
        del os.environ['LOCAL_RANK']
    monkeypatch.setattr('sys.argv', ['tool', *words])
    parser = argparse.ArgumentParser()
    cli.add_launcher(parser)
    assert vars(cli.parse_with_rank(parser)) == {'launcher': launcher}
    assert os.environ['LOCAL_RANK'] == rank


def test_devices_and_overrides_are_read():
    parser = argparse.ArgumentParser()
    cli.add_device(parser)
    cli.add_cfg_options(parser)
    assert vars(parser.parse_args([])) == {'device': None, 'cfg_options': None}
    words = ['--device', 'cuda:1', '--cfg-options', 'a.b=1', 'c=[0.5,x]', 'd=e=f']
    options = {'a.b': 1, 'c': [0.5, 'x'], 'd': 'e=f'}
    assert vars(parser.parse_args(words)) == {'device': 'cuda:1', 'cfg_options': options}


def test_an_override_without_a_value_is_named(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['tool', '--cfg-options', 'a.b=1', 'model'])
    parser = argparse.ArgumentParser()
    cli.add_cfg_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args()
    assert "expects KEY=VALUE, got 'model'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ('word', 'value'),
    [
        ('/x/my data (2)/', '/x/my data (2)/'),
        ("('red cell','white cell')", ('red cell', 'white cell')),
        ('[ (1, 2) , red cell, None ]', [(1, 2), 'red cell', None]),
        ('red cell, white cell', ['red cell', 'white cell']),
        ('[cell (big), [a b, [ c d]]]', ['cell (big)', ['a b', ['c d']]]),
        (' 0.5 ', 0.5),
        ('[ true , 1e-3 , -2 ]', [True, 1e-3, -2]),
        ('" a "', ' a '),
        ('1 2', '1 2'),  # mmengine reads 12
        ('( )', ()),
        ('a = b', 'a = b'),
    ],
)
def test_spaces_in_a_value_are_kept(word, value):
    parser = argparse.ArgumentParser()
    cli.add_cfg_options(parser)
    (parsed,) = parser.parse_args(['--cfg-options', f'a.b={word}']).cfg_options.values()
    assert repr(parsed) == repr(value)
    assert parser.parse_args(['--cfg-options', f'a.b = {word}']).cfg_options.keys() == {'a.b'}


def test_values_without_spaces_are_parsed_as_in_mmengine():
    draw, mmengine = random.Random(0), argparse.ArgumentParser()
    mmengine.add_argument('--o', nargs='+', action=DictAction)
    parts = [*'()[],\'"=.-_ae', ',', '1', '2.5', 'None', 'true', 'False', 'nan', 'x/y']
    parsed = 0
    for _ in range(20_000):
        word = ''.join(draw.choices(parts, k=draw.randint(0, 10)))
        try:
            expected = mmengine.parse_args(['--o', f'a={word}']).o['a']
        except (AssertionError, RecursionError):  # how mmengine ends at unequal brackets
            with pytest.raises(ValueError, match='brackets in .* do not match'):
                cli.parse_value(word)
            continue
        assert repr(cli.parse_value(word)) == repr(expected), word
        parsed += 1
    assert parsed > 10_000


def test_the_option_can_be_repeated_and_names_unequal_brackets(capsys):
    parser = argparse.ArgumentParser()
    cli.add_cfg_options(parser)
    words = ['--cfg-options', 'a=1', 'b=x y', '--cfg-options', 'a=2']
    assert parser.parse_args(words).cfg_options == {'a': 2, 'b': 'x y'}
    with pytest.raises(SystemExit):
        parser.parse_args(['--cfg-options', 'a.b=[1,(2]'])
    assert "a.b: the brackets in '1,(2' do not match" in capsys.readouterr().err


# the doctor runs where evit_mm cannot be imported
TOOLS = {path.stem for path in (ROOT / 'tools').glob('*.py')} - {'doctor'}


@pytest.mark.parametrize('tool', sorted(TOOLS))
def test_every_tool_uses_it(tool):
    assert runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'))['run_tool'] is cli.run_tool


def test_a_tool_runs_in_utf_8_in_any_locale(tmp_path):
    script = tmp_path / 'tool.py'
    script.write_text(
        'import locale, sys\n'
        'from evit_mm.utils.cli import run_tool\n'
        "run_tool(lambda: print('\\u00f6', locale.getpreferredencoding(False), sys.argv[1:]))\n"
    )
    plain = {k: v for k, v in os.environ.items() if k != 'PYTHONUTF8'}
    for locale_options in (
        {'LC_ALL': 'C', 'PYTHONUTF8': '0'},
        {'LC_ALL': 'C', 'PYTHONUTF8': '1'},
        {'LC_ALL': 'C.UTF-8'},
    ):
        env = {**plain, 'PYTHONPATH': str(ROOT), **locale_options}
        command = [sys.executable, str(script), 'a b']
        done = subprocess.run(command, env=env, capture_output=True, timeout=120)
        said = done.stdout.decode().lower().replace('-', '')
        assert said == "ö utf8 ['a b']\n", (locale_options, done.stderr)
