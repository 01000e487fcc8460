"""The page says what was run, and a run that was interrupted goes on."""

import json

import pytest

from . import torture

KILLS = {'points': {'step': 2}, 'runs': 1, 'worst_difference': 1e-8, 'lost': 0}


def args(tmp_path, *more):
    page = ['--work-dir', str(tmp_path / 'work'), '--page', str(tmp_path / 'page.md')]
    return torture.parse_args([*page, *more])


def cells(tmp_path, title):
    text = (tmp_path / 'page.md').read_text()
    rows = [line for line in text.splitlines() if line.startswith(f'| {title}')]
    return [row.strip('| ').split(' | ')[1:] for row in rows]


def test_what_has_not_been_run_says_so():
    text = torture.page({})
    assert text.count(f'{torture.NOT_RUN} | {torture.NOT_RUN} | {torture.NOT_RUN}') == 10
    table = text.split('lost |')[1].split('##')[0].replace('kill -9', '')
    assert not any(character.isdecimal() for character in table)


def test_kills_go_on_where_they_were_and_add_up(tmp_path, monkeypatch):
    asked = []

    def run(part, folder, number, start):
        asked.append((number, start))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return {**KILLS, 'injected': number, 'survived': number}

    monkeypatch.setattr(torture, 'run_program', run)
    chosen = args(tmp_path, '--parts', 'kills', '--kills', '25')
    with pytest.raises(KeyboardInterrupt):
        torture.torture(chosen)
    torture.torture(chosen)
    assert asked == [(10, 0), (10, 10), (10, 10), (5, 20)]
    torture.torture(chosen)
    assert len(asked) == 4
    assert ['OpenMMLab' if torture.this_stack() == 'openmmlab' else 'OneDL', '25', '25', '0'] in (
        cells(tmp_path, 'trainings killed')
    )
    state = json.loads((tmp_path / 'work' / 'state.json').read_text())
    assert state[torture.this_stack()]['kills']['points'] == {'step': 6}
    assert state[torture.this_stack()]['kills']['runs'] == 3


def test_a_failure_stands_on_the_page_and_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(torture, 'run_program', lambda part, **_: {'error': 'struct.error: 4'})
    torture.torture(args(tmp_path, '--parts', 'fuzz'))
    assert ['failed: struct.error: 4', '-', '-'] in [row[1:] for row in cells(tmp_path, 'random')]
    good = {'injected': 5, 'survived': 5, 'lost': 0, 'cases': {'a': 5}}
    monkeypatch.setattr(torture, 'run_program', lambda part, **_: good)
    torture.torture(args(tmp_path, '--parts', 'fuzz'))
    assert ['5', '5', '0'] in [row[1:] for row in cells(tmp_path, 'random')]


def test_a_part_that_is_not_there_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setitem(torture.PROGRAMS, 'hostile', 'import tests.absent\nresult = {folder!r}')
    torture.torture(args(tmp_path, '--parts', 'hostile'))
    assert [row[1:] for row in cells(tmp_path, 'hostile')] == [[torture.NOT_RUN] * 3] * 2


def test_numbers_of_processes_are_read_from_the_tests_that_passed():
    names = ['tests.test_distributed::test_several_processes_equal_one[4]', 'x::y']
    found = {'injected': 3, 'survived': 2, 'passed': names, 'failed': ['a::b'], 'skipped': []}
    text = torture.page({'onedl': {'worlds': found}})
    assert 'OneDL, numbers of processes with equal results: 1, 4.' in text
    assert '| tests with several processes | OneDL | 3 | 2 | 1 |' in text
    assert '- OneDL, failed: `a::b`' in text
