"""Segmentations that pycocotools would crash on are told from those it reads."""

import numpy as np
import pytest
from pycocotools import mask as mask_api

from evit_mm.data.masks import is_loadable, run_lengths

# an image 60 wide and 40 high with 20 pixels of one column, as pycocotools writes them
TEXT = {'size': [40, 60], 'counts': 'e<d0d0000000000000000Sc1'}


@pytest.mark.parametrize(
    'segmentation',
    [
        [[2, 2, 1e9, 2, 20, 20]],  # pycocotools would walk along the edge and take all memory
        [[2, 2, 9, 2, 20, 20], ['a', 2]],
        [[2, 2, 9, 2, 20, 20], 'abcdef'],
        [[2, 2, 9, None, 20, 20]],
        [[2, 2, 9, 2, 20, float('nan')]],
        [[2, 2, 9, 2, 20, 20, 7]],
        [[2, 2, 9, 2]],
        [[-60.5, 2, 9, 2, 20, 20]],
        [[2, 2, 120.5, 2, 20, 20]],
        [[2, -40.5, 9, 2, 20, 20]],
        [[2, 2, 9, 80.5, 20, 20]],
        [],
        None,
        'e<d0',
        {**TEXT, 'size': [60, 40]},
        {**TEXT, 'size': None},
        {'size': [40, 60]},
        {**TEXT, 'counts': TEXT['counts'][:-1]},
        {**TEXT, 'counts': TEXT['counts'] + '\u20ac'},
        {**TEXT, 'counts': [400, 20, 1981]},
        {**TEXT, 'counts': [-400, 820, 1980]},
        {**TEXT, 'counts': [400, 20.0, 1980]},
    ],
)
def test_masks_that_would_crash_are_refused(segmentation):
    assert not is_loadable(segmentation, 60, 40)


@pytest.mark.parametrize(
    'segmentation',
    [
        TEXT,
        {**TEXT, 'counts': [400, 20, 1980]},
        {**TEXT, 'counts': [0, 2400]},
        [[2, 2, 20, 2, 20, 20], [1, 1]],
        [[2, 2, 20.5, 2, 20, 20, 2, 20]],
        [[-60, -40, 120, -40, 120, 80]],  # an image's size away from it at the most
    ],
)
def test_masks_that_load_are_not(segmentation):
    assert is_loadable(segmentation, 60, 40)


def test_run_lengths_are_pycocotools():
    rng = np.random.default_rng(0)
    for index in range(60):
        mask = rng.random(rng.integers(1, 120, 2)) < rng.random()
        if index % 2:  # long runs too
            mask = mask.repeat(9, 0).repeat(9, 1)
        runs = run_lengths(mask_api.encode(np.asfortranarray(mask, np.uint8))['counts'].decode())
        decoded = np.repeat(np.arange(len(runs)) % 2, runs).reshape(mask.shape[::-1]).T
        assert np.array_equal(decoded, mask)


@pytest.mark.parametrize(
    ('counts', 'runs'),
    [
        ('1234', [1, 2, 3, 6]),  # the fourth is 4 more than the second
        ('123N', [1, 2, 3, 0]),  # 2 less
        ('123M', []),  # 3 less is below 0
        ('O', []),
        ('P1', [32]),
        ('oo0', [1023]),
        ('P', []),  # the run goes on
        ('\x2f1', []),
        ('p1', []),
        ('PPPPPP1', [1 << 30]),
        ('PPPPPPP1', []),
        ([3, 0, 4], [3, 0, 4]),
        ([3, -1], []),
        (b'12', []),
        (None, []),
    ],
)
def test_run_lengths_by_hand(counts, runs):
    assert run_lengths(counts) == runs
