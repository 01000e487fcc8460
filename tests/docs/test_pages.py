"""What the documents tell a user to do is done here."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from datetime import datetime
from statistics import mean, median, stdev

import pytest

from tests.conftest import ROOT


def blocks(path, language):
    return re.findall(rf'```{language}\n(.*?)```', path.read_text(), re.DOTALL)


@pytest.mark.slow
def test_your_data_page_on_the_blood_cells(real_data, tmp_path):
    """Write the page's config, run its commands on a folder laid out as it says."""
    bccd = real_data('bccd')
    page = ROOT / 'docs' / 'your_data.md'
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'cells').symlink_to(bccd)
    for name in ('configs', 'tools', 'evit_mm'):
        (tmp_path / name).symlink_to(ROOT / name)
    config = blocks(page, 'python')[0]
    assert len(config.strip().splitlines()) <= 12
    (tmp_path / 'my_cells.py').write_text(config)
    commands = [c for b in blocks(page, 'bash') for c in b.strip().splitlines()]
    tools = ['train', 'train', 'test', 'predict']
    assert [re.search(r'tools/(\w+)\.py', c)[1] for c in commands] == tools
    small = (
        'train_cfg.max_epochs=1 train_dataloader.dataset.indices=16 '
        'val_dataloader.dataset.indices=8 test_dataloader.dataset.indices=8 '
        'model.test_cfg.score_thr=0.0'
    )
    for command in commands:
        # one short epoch in place of thirty; everything else is the page's
        command = command.replace('epoch_30.pth', 'epoch_1.pth')
        arguments = [*shlex.split(command)[1:], '--cfg-options', *small.split()]
        if '--data' in arguments:
            arguments.append('scale=(96,64)')
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, 'PYTHONPATH': str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    for name in ('rtmdet_m0_cells', 'my_cells'):
        assert (tmp_path / 'work_dirs' / name / 'epoch_1.pth').is_file()
    assert len(list((tmp_path / 'pictures').glob('*.jpg'))) == 8
    assert (tmp_path / 'found' / 'results.json').is_file()


def test_readme_names_only_files_that_exist():
    pages = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
    text = ''.join(page.read_text() for page in pages)
    named = set(
        re.findall(r'(?<![\w/])(?:configs|tools|docs|requirements|tests)/[\w./{}-]+\w', text)
    )
    assert len(named) > 5
    for name in named:
        if '{' not in name and 'work_dirs' not in name:
            assert (ROOT / name).exists(), name


def test_links_between_pages_lead_somewhere():
    pages = [*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')]
    links = [(p, link) for p in pages for link in re.findall(r'\]\(([^)#\s]+)', p.read_text())]
    local = [(page, link) for page, link in links if '://' not in link]
    assert len(local) > 20
    missing = [f'{p.name}: {link}' for p, link in local if not (p.parent / link).exists()]
    assert not missing


def test_comparison_page_has_the_tables_that_the_command_wrote():
    table = (ROOT / 'docs' / 'comparison' / 'table.md').read_text()
    page = (ROOT / 'docs' / 'comparison.md').read_text()
    tables = [part for part in table.split('\n\n') if part.startswith('|')]
    assert len(tables) == 2  # with the learning rates
    assert all(part in page for part in tables)
    content = json.loads((ROOT / 'docs' / 'comparison' / 'table.json').read_text())
    for row in content['rows']:
        values = [100 * run['mAP'] for run in row['runs']]
        assert len(values) == 3
        assert f'| {row["label"]} | {mean(values):.1f} ± {stdev(values):.1f} (3) |' in table


def test_performance_page_quotes_its_tables():
    """Each bold figure is in the page that its line or paragraph, or the row above, links to."""
    page, checked, tables = '', 0, ROOT / 'docs'
    text = (ROOT / 'docs' / 'performance.md').read_text()
    for line in re.sub(r'(?<!\|)\n(?=\w|\()', ' ', text).splitlines():
        links = re.findall(r'\((performance/\w+\.md)\)', line)
        page = (tables / links[-1]).read_text().replace(',', ' ') if links else page
        for figure in re.findall(r'\*\*([\d.]+%?)\*\*', line):
            assert f' {figure} ' in page, (figure, line)
            checked += 1
    assert checked > 15


def test_the_times_of_an_epoch_follow_from_the_logs():
    page = (ROOT / 'docs' / 'scale.md').read_text()
    row = r'\| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| `(\S+)`'
    rows = re.findall(row, page)
    line = r'(\S+ \S+) - .* Epoch\(train\) .*? time: ([\d.]+)'
    assert len(rows) == 2
    for images, batch, time, computed, measured, log in rows:
        found = re.findall(line, (ROOT / log).read_text())
        stamps = [datetime.strptime(stamp, '%Y/%m/%d %H:%M:%S') for stamp, _ in found]
        between = [(b - a).total_seconds() for a, b in itertools.pairwise(stamps)]
        seconds = median(float(second) for _, second in found)
        iterations = -(-int(images) // int(batch))
        assert (time, computed) == (f'{seconds:.3f}', f'{iterations * seconds:.1f}')
        assert measured == f'{median(between):.1f}'


def test_licence_and_notice():
    assert 'Apache License' in (ROOT / 'LICENSE').read_text()
    notice = (ROOT / 'NOTICE').read_text()
    assert 'MIT License' in notice and 'Copyright (c) Microsoft Corporation' in notice
