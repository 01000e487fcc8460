"""Deprecated module names that configs and programs can still import."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from types import ModuleType
from typing import Any

PACKAGE = 'evit_mm.'
#: old name -> modules that now contain its public names
MOVED = {
    'benchmark': ('compare.benchmark',),
    'classifier': ('models.classifier',),
    'complexity': ('compare.complexity',),
    'datasets': ('data',),
    'engine': ('runner.build', 'runner.config', 'runner.test', 'runner.train'),
    'environment': ('utils.environment',),
    'export': ('deploy.export',),
    'heads': ('models.heads',),
    'metrics': ('evaluation.coco_metric',),
    'optim': ('runner.adaptive_clipping',),
    'published': ('compare.published_results',),
    'tracking': ('runner.tracking',),
    'training': ('runner',),
}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import hook for the old names."""

    def find_spec(self, fullname: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        """Return a spec for an old name, and None for any other name."""
        if not fullname.startswith(PACKAGE) or fullname.removeprefix(PACKAGE) not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Copy the public names of the new modules into the old module."""
        places = [PACKAGE + place for place in MOVED[module.__name__.removeprefix(PACKAGE)]]
        for place in places:
            content = vars(importlib.import_module(place))
            vars(module).update((k, v) for k, v in content.items() if not k.startswith('_'))
        new = ' or '.join(places)
        text = f'{module.__name__} is deprecated and will be removed; import from {new} instead'
        warnings.warn(text, FutureWarning, stacklevel=2)


def provide_old_names() -> None:
    """Install the import hook for the old names."""
    sys.meta_path.append(_Finder())
