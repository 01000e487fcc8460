"""Weights-only unpickler for torch before 2.6.

The unpickler of these torch versions does not support all types in
:mod:`~evit_mm.checkpoint.allowed_types` and cannot be extended. ``torch.load`` accepts this module
as ``pickle_module``. The rules are those of torch's weights-only unpickler. A file can use only the
names in one table. It can call only functions and a few types in the table. It can modify only
objects of the allowed types.
"""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections import OrderedDict
from functools import cache
from typing import IO, Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from .allowed_types import AUTHORS_TYPES, DTYPES, MMENGINE_TYPES

# opcodes of pickle protocol 2, which torch.save writes. Opcodes that build objects in older ways,
# call methods or have a 4-byte length are left out.
OPCODES = (
    *(pickle.APPEND, pickle.APPENDS, pickle.BINFLOAT, pickle.BINGET, pickle.BININT),
    *(pickle.BININT1, pickle.BININT2, pickle.BINPERSID, pickle.BINPUT, pickle.BINUNICODE),
    *(pickle.BUILD, pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_SET, pickle.EMPTY_TUPLE),
    *(pickle.GLOBAL, pickle.LONG1, pickle.LONG_BINGET, pickle.LONG_BINPUT, pickle.MARK),
    *(pickle.NEWFALSE, pickle.NEWOBJ, pickle.NEWTRUE, pickle.NONE, pickle.PROTO, pickle.REDUCE),
    *(pickle.SETITEM, pickle.SETITEMS, pickle.SHORT_BINSTRING, pickle.STOP, pickle.TUPLE),
    *(pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
)
CALLED_TYPES = (OrderedDict, torch.Size)
STORAGE = ('storage', b'storage')  # in the zip and the legacy format of torch.save


def _latin1(text: str, encoding: str) -> bytes:
    """Replace ``_codecs.encode``, which protocol 2 uses for bytes."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'encoding {encoding!r} is not allowed')
    return text.encode('latin1')


def _dtype(kind: Any, *_: Any) -> np.dtype[Any]:
    """Replace ``np.dtype``. Return a copy, because the file can modify it."""
    found = np.dtype(kind, copy=True)
    if type(found) not in DTYPES:
        raise pickle.UnpicklingError(f'dtype {type(found)} is not allowed')
    return found


@cache
def _table() -> dict[str, Any]:
    """Return all names that a file can use: torch's list, torch's dtypes and the allowed types."""
    # private, but the only list of the functions that rebuild a tensor
    table = dict(torch._weights_only_unpickler._get_allowed_globals())
    table.update((f'torch.{k}', v) for k, v in vars(torch).items() if isinstance(v, torch.dtype))
    table['_codecs.encode'] = _latin1
    for allowed in (*MMENGINE_TYPES, *AUTHORS_TYPES):
        named = isinstance(allowed, tuple)
        value, name = allowed if named else (allowed, f'{allowed.__module__}.{allowed.__name__}')
        table[name] = value
    table['numpy.dtype'] = _dtype
    return table


# private, but a subclass of the C unpickler can only control names, not calls and modifications
_Unpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class Unpickler(_Unpickler):
    """Read a pickle of tensors, plain Python values and the allowed types.

    Raises:
        pickle.UnpicklingError: The pickle contains anything else.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return the entry of the table. Nothing is imported."""
        full_name = f'{module}.{name}'
        if full_name not in _table():
            raise pickle.UnpicklingError(f'GLOBAL {full_name} is not allowed')
        return _table()[full_name]

    def load_reduce(self) -> None:
        """Call a function in the table or one of ``CALLED_TYPES``."""
        function = self.stack[-2]
        in_table = any(function is known for known in _table().values())
        if not in_table or (isinstance(function, type) and function not in CALLED_TYPES):
            raise pickle.UnpicklingError(f'reduce for {function!r} is not allowed')
        arguments = self.stack.pop()
        self.stack[-1] = function(*arguments)

    def load_newobj(self) -> None:
        """Create an empty HistoryBuffer or Namespace."""
        arguments, made = self.stack.pop(), self.stack.pop()
        if not (made is HistoryBuffer or made is Namespace) or arguments:
            raise pickle.UnpicklingError(f'creating {made!r} is not allowed')
        self.append(made.__new__(made))

    def load_build(self) -> None:
        """Set the state of an object of an allowed type."""
        state, target = self.stack.pop(), self.stack[-1]
        kind = type(target)
        if kind in (OrderedDict, Namespace) and type(state) is dict:
            vars(target).update(state)
        elif kind in (np.ndarray, *DTYPES) or (kind is HistoryBuffer and type(state) is dict):
            kind.__setstate__(target, state)  # type: ignore[attr-defined]
        else:
            raise pickle.UnpicklingError(f'setting the state of {kind} is not allowed')

    def load_append(self) -> None:
        """Append to a list. For any other type, pickle would call a method of the object."""
        _check_type(self.stack[-2], list)
        super().load_append()

    def load_appends(self) -> None:
        """Extend a list. Refuse any other type."""
        _check_type(self.metastack[-1][-1], list)
        super().load_appends()

    def load_setitem(self) -> None:
        """Set an entry of a dict. Refuse any other type."""
        _check_type(self.stack[-3], dict, OrderedDict)
        super().load_setitem()

    def load_setitems(self) -> None:
        """Set entries of a dict. Refuse any other type."""
        _check_type(self.metastack[-1][-1], dict, OrderedDict)
        super().load_setitems()

    def load_binpersid(self) -> None:
        """Let torch load a storage. Refuse other objects, for example the source of a module."""
        asked = self.stack[-1]
        _check_type(asked, tuple)
        if not asked or type(asked[0]) not in (str, bytes) or asked[0] not in STORAGE:
            raise pickle.UnpicklingError('a persistent ID must name a storage')
        super().load_binpersid()


def _check_type(value: Any, *allowed: type) -> None:
    if type(value) not in allowed:
        raise pickle.UnpicklingError(f'expected {allowed[0].__name__}, got {type(value)}')


# getattr by name finds the overriding methods above
Unpickler.dispatch = {
    code[0]: getattr(Unpickler, _Unpickler.dispatch[code[0]].__name__) for code in OPCODES
}


def load(file: IO[bytes], **kwargs: Any) -> Any:
    """Read one pickle. torch.load calls this function of ``pickle_module``."""
    return Unpickler(file, **kwargs).load()
