"""Seeds that follow from a place in the training, so that no generator's state need be kept.

A sample is augmented under a seed of (seed, epoch, place in the epoch's order), the model's own
noise in an iteration drawn under one of (seed, iteration, rank). A resumed run therefore draws what
an uninterrupted one draws, whatever its number of workers, and no checkpoint has to carry the
states of python's, numpy's, torch's and CUDA's generators of each process and each worker, which
have read ahead anyway.
"""

from __future__ import annotations

import random

import numpy as np
import torch

SAMPLE, MODEL = 0, 1  # streams that must not coincide


def derive_seed(*keys: int) -> int:
    """Return a seed below 2**32 that depends on all keys, none of them negative."""
    return int(np.random.SeedSequence(keys).generate_state(1)[0])


def seed_generators(seed: int) -> None:
    """Seed python's, numpy's and torch's generators, CUDA's where it is in use."""
    random.seed(seed)
    np.random.seed(seed)
    # not torch.manual_seed, which collects a stack trace on each call until CUDA is in use
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
