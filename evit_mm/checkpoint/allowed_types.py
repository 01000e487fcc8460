"""Types that a checkpoint may contain besides tensors and plain Python values."""

from __future__ import annotations

import argparse
import pickle
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

# Since torch 2.6, torch.load is weights-only by default, and types can be allowed by another name.
TORCH_HAS_SAFE_TYPES: bool = digit_version(torch.__version__) >= digit_version('2.6.0')


def _history_method(owner: Any, name: str) -> Any:
    """Replace ``getattr`` in mmengine's pickles, which use it for methods of ``HistoryBuffer``.

    If ``getattr`` itself were allowed, a file could access the attributes of any object.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'getattr of {name!r} is not allowed')
    return getattr(owner, name)


# numpy's functions that rebuild an array and a scalar, obtained through the public pickle protocol
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_SCALAR = np.float64().__reduce__()[0]
# Dtypes of the numbers that mmengine logs. np.dtypes has names for them, but needs numpy 1.25.
DTYPES: list[Any] = [type(np.dtype(kind)) for kind in ('float64', 'float32', 'int64', 'int32')]
# mmengine's CheckpointHook also writes the histories of logged scalars, which are numpy arrays.
# numpy 1 and numpy 2 use different names for the two functions, and each reads both names.
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
    (_history_method, '__builtin__.getattr'),  # the name in pickle protocol 2
]
# The authors' ImageNet files also contain their command-line arguments.
AUTHORS_TYPES: list[Any] = [argparse.Namespace]


def allow_mmengine_types() -> None:
    """Allow the types in mmengine's training checkpoints for ``torch.load(weights_only=True)``.

    Since torch 2.6, the ``torch.load`` calls in mmengine are weights-only. Without these types,
    mmengine cannot test or resume from its own checkpoints. Before torch 2.6, mmengine unpickles
    any object, and no type needs to be allowed.
    """
    if TORCH_HAS_SAFE_TYPES:
        torch.serialization.add_safe_globals(MMENGINE_TYPES)
