"""The commands of docs/looking.md are ones that the tools take."""

import re
import runpy
import shlex
import sys

import pytest

from .conftest import ROOT
from .test_docs import blocks

PAGE = ROOT / 'docs' / 'looking.md'
COMMANDS = [line for block in blocks(PAGE, 'bash') for line in block.strip().splitlines()]


def test_the_page_shows_each_tool_in_pictures_that_are_small():
    tools = {re.search(r'tools/(\w+)\.py', command)[1] for command in COMMANDS}
    assert tools == {'browse_dataset', 'predict', 'demo', 'visualize_attention'}
    pictures = re.findall(r'!\[[^\]]+\]\((\S+)\)', PAGE.read_text())
    assert len(pictures) == 4
    for picture in pictures:
        assert (PAGE.parent / picture).stat().st_size < 200_000, picture


@pytest.mark.parametrize('command', COMMANDS)
def test_each_tool_takes_what_the_page_says(command, monkeypatch):
    words = shlex.split(re.sub(r'\[.*\]', '', command))[1:]
    monkeypatch.setattr(sys, 'argv', words)
    args = vars(runpy.run_path(str(ROOT / words[0]), run_name='tool')['parse_args']())
    flags = [word for word in words if word.startswith('-')]
    assert len([value for value in args.values() if value]) >= len(flags) + 1


def test_each_tool_names_a_config_that_is_not_there(monkeypatch):
    for name in ('browse_dataset', 'predict', 'demo', 'visualize_attention'):
        words = next(shlex.split(re.sub(r'\[.*\]', '', c)) for c in COMMANDS if name in c)[1:]
        monkeypatch.setattr(sys, 'argv', words)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / words[0]), run_name='__main__')
        assert str(ended.value.code).startswith("error: config 'CONFIG' does not exist")
