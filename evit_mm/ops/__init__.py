"""mmcv's operators based on torchvision, for an mmcv without compiled operators (mmcv-lite).

Importing this package makes the operators available to ``mmcv.ops``, on CPU and GPU, forward and
backward. An mmcv with compiled operators is not changed. The environment variable ``EVIT_MM_OPS``
overrides this, see :func:`~evit_mm.ops.extension.provide`.

The functions have the names, arguments and results of mmcv's extension, and mmcv's classes and
functions call them. :data:`~evit_mm.ops.operators.OPERATORS` lists them. Importing ``mmcv.ops``
loads them.
"""

from .extension import MissingOperatorError, provide

#: operators that mmcv uses: 'torchvision' (this package) or 'compiled'
PROVIDED = provide()

__all__ = ['PROVIDED', 'MissingOperatorError', 'provide']
