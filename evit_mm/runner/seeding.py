"""Derive seeds from the position in the training, so that checkpoints need no generator states.

The augmentation of a sample uses a seed derived from (seed, epoch, position in the epoch). The
random numbers of the model use a seed derived from (seed, iteration, rank). A resumed run
therefore uses the same random numbers as an uninterrupted run, for any number of workers.

Saved generator states would not be enough, because workers load samples in advance.
"""

from __future__ import annotations

import random

import numpy as np
import torch

SAMPLE, MODEL = 0, 1  # first keys that keep the two kinds of seeds apart


def derive_seed(*keys: int) -> int:
    """Return a seed below 2**32 that depends on all keys. Keys must not be negative."""
    return int(np.random.SeedSequence(keys).generate_state(1)[0])


def seed_generators(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch, and of CUDA if it is initialised."""
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed is slower: it collects a stack trace until CUDA is initialised
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
