"""The types that a checkpoint may hold besides tensors and plain Python values, and no others."""

from __future__ import annotations

import argparse
import pickle
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

# From 2.6 on torch.load is weights-only by default, and types may be allowed under other names.
TORCH_HAS_SAFE_TYPES: bool = digit_version(torch.__version__) >= digit_version('2.6.0')


def _history_method(owner: Any, name: str) -> Any:
    """Stand in for ``getattr`` in mmengine's pickles, which name HistoryBuffer's statistics so.

    Allowing ``getattr`` itself would let a file reach attributes of anything.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'getattr of {name!r} is not allowed')
    return getattr(owner, name)


# numpy's functions that make an array and a number again; pickling is the public way to them
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_SCALAR = np.float64().__reduce__()[0]
# The dtypes of the numbers that mmengine logs; np.dtypes, where they have names, needs numpy 1.25.
DTYPES: list[Any] = [type(np.dtype(kind)) for kind in ('float64', 'float32', 'int64', 'int32')]
# What mmengine's CheckpointHook writes beside tensors: its scalar histories, which are numpy
# arrays. Numpy 1 and 2 name the two functions differently, and each reads the other's files.
MMENGINE_TYPES: list[Any] = [
    HistoryBuffer,
    np.ndarray,
    np.dtype,
    *DTYPES,
    (_RECONSTRUCT, 'numpy._core.multiarray._reconstruct'),
    (_RECONSTRUCT, 'numpy.core.multiarray._reconstruct'),
    (_SCALAR, 'numpy._core.multiarray.scalar'),
    (_SCALAR, 'numpy.core.multiarray.scalar'),
    (_history_method, 'builtins.getattr'),
    (_history_method, '__builtin__.getattr'),  # its name in pickle protocol 2
]
# The authors' ImageNet files keep their command line beside the weights.
AUTHORS_TYPES: list[Any] = [argparse.Namespace]


def allow_mmengine_types() -> None:
    """Let ``torch.load(weights_only=True)`` read what mmengine itself saves, and no more.

    From torch 2.6 on, mmengine's own ``torch.load`` calls are weights-only; without this, testing
    and resuming from its training checkpoints fail. Before, they unpickle whatever they are given,
    and there is nothing to allow.
    """
    if TORCH_HAS_SAFE_TYPES:
        torch.serialization.add_safe_globals(MMENGINE_TYPES)
