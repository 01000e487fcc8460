"""mmcv's operators by torchvision, for an mmcv without compiled ones (mmcv-lite).

Importing this package lets ``mmcv.ops`` find them, on CPUs and GPUs, forward and backward. An mmcv
with compiled operators is left as it is; see :func:`~evit_mm.ops.extension.provide` for the
environment variable ``EVIT_MM_OPS``. The functions have the names, arguments and results of mmcv's
extension, and mmcv's own classes and functions call them. They are in
:data:`~evit_mm.ops.operators.OPERATORS`, and are imported with ``mmcv.ops``.
"""

from collections.abc import Callable, Mapping
from typing import Any

from .extension import MissingOperatorError, provide


def _operators() -> Mapping[str, Callable[..., Any]]:
    from .operators import OPERATORS  # late: it loads torchvision

    return OPERATORS


#: which operators mmcv uses: 'torchvision' (these) or 'compiled'
PROVIDED = provide(_operators)

__all__ = ['PROVIDED', 'MissingOperatorError', 'provide']
