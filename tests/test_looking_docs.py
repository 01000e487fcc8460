"""The commands of docs/looking.md are ones that the tools take."""

import re
import shlex
import subprocess
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


@pytest.mark.slow
@pytest.mark.parametrize('tool', sorted({shlex.split(command)[1] for command in COMMANDS}))
def test_each_tool_takes_what_the_page_says(tool, tmp_path):
    """Parsed by the tool itself: the config that is not there is what it complains of."""
    for command in COMMANDS:
        words = shlex.split(re.sub(r'\[.*\]', '', command))
        if words[1] == tool:
            done = subprocess.run(
                [sys.executable, *words[1:]],
                cwd=ROOT,
                env={'PYTHONPATH': str(ROOT), 'PATH': '/usr/bin:/bin', 'HOME': str(tmp_path)},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 1, done.stderr
            assert done.stderr.endswith("error: config 'CONFIG' does not exist; see configs/\n")
