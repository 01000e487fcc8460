"""EfficientViT (Microsoft, arXiv 2305.07027) for OpenMMLab.

Importing the package registers the networks and provides mmcv's operators. It also allows the types
in mmengine's checkpoints for weights-only ``torch.load``. Training and evaluation are in
:mod:`evit_mm.runner`. The first use of ``evit_mm.Detector`` imports mmdet.
"""

from typing import TYPE_CHECKING, Any

from .utils.cli import end_quietly_while_loading
from .utils.environment import check_installed

end_quietly_while_loading()
check_installed()  # before the imports of packages that may be missing
from . import ops  # isort: skip - before the first import of mmcv.ops
from . import models
from .checkpoint import allow_mmengine_types
from .utils.old_names import provide_old_names

if TYPE_CHECKING:
    from .inference import Detector

__version__ = '0.1.0'
__all__ = ['Detector', '__version__', 'models', 'ops']

allow_mmengine_types()
provide_old_names()


def __getattr__(name: str) -> Any:
    if name == 'Detector':
        from .inference import Detector

        return Detector
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
