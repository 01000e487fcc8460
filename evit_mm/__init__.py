"""EfficientViT (Microsoft, arXiv 2305.07027) for OpenMMLab.

Importing the package registers its modules by name and lets mmengine's own checkpoints be read
while ``torch.load`` stays weights-only.
"""

from .utils.environment import check_environment

check_environment()  # before anything imports what may be broken
from . import ops  # isort: skip - before anything imports mmcv.ops
from . import models
from .checkpoint import allow_mmengine_types

__version__ = '0.1.0'
__all__ = ['__version__', 'models', 'ops']

allow_mmengine_types()
