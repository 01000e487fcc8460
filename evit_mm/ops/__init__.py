"""mmcv's operators by torchvision, for an mmcv without compiled ones (mmcv-lite).

Importing this package lets ``mmcv.ops`` find them, on CPUs and GPUs, forward and backward. An mmcv
with compiled operators is left as it is; see :func:`~evit_mm.ops.extension.provide` for the
environment variable ``EVIT_MM_OPS``. The functions have the names, arguments and results of mmcv's
extension, and mmcv's own classes and functions call them. They are in
:data:`~evit_mm.ops.operators.OPERATORS`, and are imported with ``mmcv.ops``.
"""

from .extension import MissingOperatorError, provide

#: which operators mmcv uses: 'torchvision' (these) or 'compiled'
PROVIDED = provide()

__all__ = ['PROVIDED', 'MissingOperatorError', 'provide']
