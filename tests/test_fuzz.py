"""A few hundred made-up cases of each kind; ``make torture`` runs thousands more."""

import json

import pytest
import torch
from pycocotools import mask as mask_api

from evit_mm.data import check_coco
from evit_mm.data.masks import run_lengths

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


def masks_checked(segmentation):
    coco = fuzz.valid_coco()
    coco['annotations'][0]['segmentation'] = segmentation
    path = fuzz.folder() / 'annotations' / 'masks.json'
    path.write_text(json.dumps(coco))
    return check_coco(path, fuzz.folder() / 'val', ('disc', 'box'), with_mask=True)[0]


TEXT = {'size': [40, 60], 'counts': 'e<d0d0000000000000000Sc1'}
FAR = [[2, 2, 1e9, 2, 20, 20]]  # pycocotools would walk along the edge and take all memory


@pytest.mark.parametrize(
    'segmentation',
    [
        FAR,
        [[2, 2, 9, 2, 20, 20], ['a', 2]],
        [[2, 2, 9, None, 20, 20]],
        [[2, 2, 9, 2]],
        [],
        {**TEXT, 'size': [60, 40]},
        {**TEXT, 'counts': TEXT['counts'][:-1]},
        {**TEXT, 'counts': TEXT['counts'] + '\u20ac'},
        {**TEXT, 'counts': [400, 20, 1981]},
        {**TEXT, 'counts': [-400, 820, 1980]},
    ],
)
def test_masks_that_would_crash_are_named(segmentation):
    (fault,) = masks_checked(segmentation)
    assert '1 of 3 annotations have no valid segmentation' in fault


@pytest.mark.parametrize(
    'segmentation',
    [
        TEXT,
        {**TEXT, 'counts': [400, 20, 1980]},
        [[2, 2, 20, 2, 20, 20], [1, 1]],
        [[-5.5, 2, 70, 2, 9, 45]],
    ],
)
def test_masks_that_load_are_not(segmentation):
    assert masks_checked(segmentation) == []


def test_run_lengths_are_pycocotools():
    rng = torch.Generator().manual_seed(0)
    for index in range(60):
        height, width = torch.randint(1, 120, (2,), generator=rng).tolist()
        share = torch.rand(1, generator=rng)
        mask = torch.rand(height, width, generator=rng) < share
        if index % 2:  # long runs too
            mask = mask.repeat_interleave(9, 0).repeat_interleave(9, 1)
        pixels = mask.T.contiguous().T.numpy().astype('uint8', order='F')
        runs = run_lengths(mask_api.encode(pixels)['counts'].decode())
        values = torch.tensor([place % 2 for place in range(len(runs))])
        decoded = values.repeat_interleave(torch.tensor(runs)).reshape(mask.shape[::-1]).T
        assert torch.equal(decoded.bool(), mask)
