"""A few hundred made-up cases of each kind; ``make torture`` runs thousands more."""

import pytest
import torch

from . import fuzz

CASES = 1000


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize('name', fuzz.PROPERTIES)
def test_property(name):
    share = fuzz.PROPERTIES[name][1]
    # a space of few cases may be exhausted sooner, which the count tells
    assert 0.5 * CASES * share < fuzz.run_fuzz(CASES, only=name)[name] <= CASES * share
