"""``pytest tests/smoke``: a few minutes on a CPU that show whether a stack works.

``--stack-report FILE.json`` writes what ran where; ``python -m tests.smoke.table`` makes the table.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from .stack import describe

FOLDER = Path(__file__).parent
OUTCOMES = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption('--stack-report', metavar='FILE.json', help='write the stack and the counts')


def pytest_configure(config):
    config.stash[OUTCOMES] = Counter()
    if config.getoption('--stack-report', None):
        config.pluginmanager.register(Report(config.stash[OUTCOMES]))


def pytest_collection_modifyitems(items):
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.smoke)


def pytest_sessionfinish(session):
    path = session.config.getoption('--stack-report', None)
    if path:
        counts = session.config.stash[OUTCOMES]
        report = {**describe(), **{k: counts[k] for k in ('passed', 'failed', 'skipped')}}
        Path(path).write_text(json.dumps(report, indent=1) + '\n')


class Report:
    """Counts tests; one that breaks before or after its own lines has failed."""

    def __init__(self, counts):
        self.counts = counts

    def pytest_runtest_logreport(self, report):
        if report.when == 'call' or report.outcome != 'passed':
            self.counts[report.outcome] += 1
