"""The page of tested stacks is what its command writes from the reports, and they are green."""

import json

from tests.smoke.table import COLUMNS, DOCS, PAGE, page

REPORTS = [json.loads(file.read_text()) for file in sorted(DOCS.glob('stacks/*.json'))]


def test_the_page_is_what_the_command_writes():
    assert PAGE.read_text() == page()


def test_every_stack_is_green_and_whole():
    keys = {key for _, key in COLUMNS} - {'name'}
    for report in REPORTS:
        assert report.keys() == keys | {'platform'}
        assert report['failed'] == 0 and report['passed'] > 3 * report['skipped']


def test_the_matrix_is_covered():
    """Python 3.10 to 3.13, torch from 2.0 on, numpy 1 and 2, operators compiled and not."""
    pythons = {report['python'].rpartition('.')[0] for report in REPORTS}
    assert pythons >= {'3.10', '3.11', '3.12', '3.13'}
    assert any(report['torch'].startswith('2.0.') for report in REPORTS)
    assert {report['numpy'].split('.')[0] for report in REPORTS} == {'1', '2'}
    assert {report['operators'] for report in REPORTS} == {'compiled', 'torchvision'}
