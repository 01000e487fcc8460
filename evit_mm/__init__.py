"""EfficientViT (Microsoft, arXiv 2305.07027) for OpenMMLab.

Importing the package registers its networks by name, provides mmcv's operators, and lets mmengine's
own checkpoints be read while ``torch.load`` stays weights-only. What trains and evaluates is
:mod:`evit_mm.runner`.
"""

from .utils.environment import check_installed

check_installed()  # before anything imports what may be missing
from . import ops  # isort: skip - before anything imports mmcv.ops
from . import models
from .checkpoint import allow_mmengine_types
from .utils.old_names import provide_old_names

__version__ = '0.1.0'
__all__ = ['__version__', 'models', 'ops']

allow_mmengine_types()
provide_old_names()
