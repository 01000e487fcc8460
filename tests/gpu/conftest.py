"""The device of the tests, and a record of their outcomes and figures."""

import json
import os
import time

import pytest
import torch

from evit_mm.compare.benchmark import machine

WANTED = os.environ.get('EVIT_MM_GPU_TESTS')  # device, also without a GPU
RECORD = os.environ.get('EVIT_MM_GPU_RECORD')  # file with one line per test


def pytest_collection_modifyitems(items):
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.gpu)
            if WANTED is None and not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason='needs a GPU (or EVIT_MM_GPU_TESTS=cpu)'))


@pytest.fixture
def device():
    return WANTED or 'cuda'


@pytest.fixture
def is_gpu(device):
    return torch.device(device).type == 'cuda'


@pytest.fixture
def half(is_gpu):
    """The type that autocast computes in: float16 where it is fast."""
    return torch.float16 if is_gpu else torch.bfloat16


@pytest.fixture
def figures(request):
    """A dict for the figures of a test, which the page shows."""
    request.node.figures = {}
    return request.node.figures


@pytest.fixture(autouse=True)
def _full_float32():
    with machine.tf32(False):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if RECORD and (report.when == 'call' or report.outcome != 'passed'):
        reason = ''
        if report.failed:
            reason = (str(call.excinfo.value).strip().splitlines() or [''])[0][:300]
            reason = f'{call.excinfo.typename}: {reason}'
        elif report.skipped:
            reason = str(call.excinfo.value)
        line = {
            'test': f'{item.path.stem.removeprefix("test_")}: {item.name.removeprefix("test_")}',
            'outcome': report.outcome,
            'seconds': round(report.duration, 2),
            'reason': reason,
            'figures': getattr(item, 'figures', {}),
            'at': round(time.time(), 1),
        }
        with open(RECORD, 'a', encoding='utf-8') as file:
            file.write(json.dumps(line) + '\n')
    return report
