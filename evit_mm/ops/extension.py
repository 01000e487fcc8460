"""The module ``mmcv._ext`` with the operators of this package."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from ..errors import EvitError
from ..utils.distributed import is_first_process
from ..utils.environment import OPERATORS_SWITCH as SWITCH

NAME = 'mmcv._ext'
COMPILE = (
    'pip uninstall -y mmcv-lite, then '
    'MMCV_WITH_OPS=1 pip install --no-build-isolation mmcv==2.1.0 (needs a C++ compiler)'
)
logger = logging.getLogger('evit_mm')


class MissingOperatorError(EvitError, NotImplementedError):
    """The called operator exists only in the compiled extension of mmcv."""


class _Extension(ModuleType):
    """A module with a function for every name, because mmcv requests all names on import."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith('_'):
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise MissingOperatorError(
                f"evit_mm.ops does not provide the mmcv operator '{name}'; install mmcv with "
                f'compiled operators: {COMPILE}'
            )

        return missing


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import hook for ``mmcv._ext``."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a spec for ``mmcv._ext``, and None for any other module."""
        if fullname != NAME:
            return None
        return importlib.machinery.ModuleSpec(NAME, self, origin='evit_mm.ops')

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return the module without functions."""
        return _Extension(spec.name, 'Operators of evit_mm.ops.')

    def exec_module(self, module: ModuleType) -> None:
        """Add the functions to the module."""
        from .operators import OPERATORS  # here, because it imports torchvision

        vars(module).update(OPERATORS)


def provide() -> str:
    """Provide the operators of this package to mmcv, unless mmcv has compiled operators.

    The environment variable ``EVIT_MM_OPS`` overrides this. With ``torchvision``, this
    package replaces compiled operators. With ``compiled``, it does not provide operators. A second
    call has no effect.

    Returns:
        The operators that mmcv uses: ``'torchvision'`` or ``'compiled'``.

    Raises:
        EvitError: mmcv cannot use the operators that ``EVIT_MM_OPS`` selects.
    """
    choice = os.environ.get(SWITCH)
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return 'torchvision'
    loaded = NAME in sys.modules
    compiled = loaded or _is_compiled()
    if choice == 'compiled' and not compiled:
        raise EvitError(
            f"{SWITCH}='compiled', but this mmcv has no compiled operators; unset {SWITCH}, or "
            f'install mmcv with compiled operators: {COMPILE}'
        )
    if choice == 'torchvision' and loaded:
        raise EvitError(
            f"{SWITCH}='torchvision', but mmcv has already loaded its compiled operators; import "
            'evit_mm before mmcv.ops'
        )
    if compiled and choice != 'torchvision':
        logger.info('operators: mmcv uses its compiled operators')
        return 'compiled'
    sys.meta_path.insert(0, _Finder())
    if is_first_process() and multiprocessing.parent_process() is None:
        # a warning, because Python prints warnings even if logging is not configured
        place = f' instead of its compiled operators ({SWITCH})' if compiled else ''
        logger.warning('operators: mmcv uses the torchvision operators of evit_mm.ops%s', place)
    return 'torchvision'


def _is_compiled() -> bool:
    """Return whether mmcv's compiled extension is installed, without importing it."""
    mmcv = importlib.machinery.PathFinder.find_spec('mmcv')
    if mmcv is None or mmcv.submodule_search_locations is None:
        return False
    places = list(mmcv.submodule_search_locations)
    return importlib.machinery.PathFinder.find_spec(NAME, places) is not None
