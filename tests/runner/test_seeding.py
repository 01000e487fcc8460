"""Seeds: one for each place in a training, for all generators."""

import itertools
import random

import numpy as np
import torch

from evit_mm.runner.seeding import MODEL, SAMPLE, derive_seed, seed_generators


def test_each_place_has_a_seed_of_its_own():
    places = list(itertools.product(range(3), (SAMPLE, MODEL), range(3), range(3)))
    seeds = {derive_seed(*place) for place in places}
    assert len(seeds) == len(places) == 54 and all(0 <= seed < 2**32 for seed in seeds)
    assert derive_seed(3, SAMPLE, 1, 2) == derive_seed(3, SAMPLE, 1, 2)


def test_all_generators_are_seeded():
    seed = 2**32 - 5
    seed_generators(seed)
    assert random.random() == random.Random(seed).random()
    assert np.random.rand() == np.random.RandomState(seed).rand()
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(seed))
