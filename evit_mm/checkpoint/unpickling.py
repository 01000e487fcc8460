"""A weights-only unpickler for torch before 2.6, whose own knows too few types and takes no more.

``torch.load`` takes this module in the place of ``pickle``. A file can name what stands in one
table, call only functions and a few types of it, and change only objects of the types that
:mod:`~evit_mm.checkpoint.allowed_types` lists: the rules of torch's weights-only unpickler.
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

# the instructions of pickle protocol 2, which torch.save writes, but for those that build objects
# in older ways, call methods or take a length in four bytes
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
STORAGE = ('storage', b'storage')  # in the two formats of torch.save


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, with which protocol 2 writes bytes."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'encoding {encoding!r} is not allowed')
    return text.encode('latin1')


def _dtype(kind: Any, *_: Any) -> np.dtype[Any]:
    """Stand in for ``np.dtype``; a file gets copies, since it may change them."""
    found = np.dtype(kind, copy=True)
    if type(found) not in DTYPES:
        raise pickle.UnpicklingError(f'dtype {type(found)} is not allowed')
    return found


@cache
def _table() -> dict[str, Any]:
    """Return all that a file can name: torch's own list, torch's dtypes, and the types we allow."""
    # private, and the one place that says which functions of torch rebuild a tensor
    table = dict(torch._weights_only_unpickler._get_allowed_globals())
    table.update((f'torch.{k}', v) for k, v in vars(torch).items() if isinstance(v, torch.dtype))
    table['_codecs.encode'] = _latin1
    for allowed in (*MMENGINE_TYPES, *AUTHORS_TYPES):
        named = isinstance(allowed, tuple)
        value, name = allowed if named else (allowed, f'{allowed.__module__}.{allowed.__name__}')
        table[name] = value
    table['numpy.dtype'] = _dtype
    return table


# private, but the C unpickler lets no one decide what is called and changed, only what is named
_Unpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class Unpickler(_Unpickler):
    """Read a pickle of tensors, plain Python values and the allowed types.

    Raises:
        pickle.UnpicklingError: It asks for anything else.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands in the table under a name; nothing is imported."""
        full_name = f'{module}.{name}'
        if full_name not in _table():
            raise pickle.UnpicklingError(f'GLOBAL {full_name} is not allowed')
        return _table()[full_name]

    def load_reduce(self) -> None:
        """Call a function of the table, or one of two types."""
        function = self.stack[-2]
        in_table = any(function is known for known in _table().values())
        if not in_table or (isinstance(function, type) and function not in CALLED_TYPES):
            raise pickle.UnpicklingError(f'reduce for {function!r} is not allowed')
        arguments = self.stack.pop()
        self.stack[-1] = function(*arguments)

    def load_newobj(self) -> None:
        """Make an empty object of one of two types."""
        arguments, made = self.stack.pop(), self.stack.pop()
        if not (made is HistoryBuffer or made is Namespace) or arguments:
            raise pickle.UnpicklingError(f'creating {made!r} is not allowed')
        self.append(made.__new__(made))

    def load_build(self) -> None:
        """Give an object of an allowed type its state, by the type's own means."""
        state, target = self.stack.pop(), self.stack[-1]
        kind = type(target)
        if kind in (OrderedDict, Namespace) and type(state) is dict:
            vars(target).update(state)
        elif kind in (np.ndarray, *DTYPES) or (kind is HistoryBuffer and type(state) is dict):
            kind.__setstate__(target, state)  # type: ignore[attr-defined]
        else:
            raise pickle.UnpicklingError(f'setting the state of {kind} is not allowed')

    def load_append(self) -> None:
        """Append to a list and nothing else, whose method would be called."""
        _check_type(self.stack[-2], list)
        super().load_append()

    def load_appends(self) -> None:
        """Extend a list and nothing else."""
        _check_type(self.metastack[-1][-1], list)
        super().load_appends()

    def load_setitem(self) -> None:
        """Put an entry into a dict and nothing else."""
        _check_type(self.stack[-3], dict, OrderedDict)
        super().load_setitem()

    def load_setitems(self) -> None:
        """Put entries into a dict and nothing else."""
        _check_type(self.metastack[-1][-1], dict, OrderedDict)
        super().load_setitems()

    def load_binpersid(self) -> None:
        """Let torch load a storage and nothing else, such as a module's source."""
        asked = self.stack[-1]
        _check_type(asked, tuple)
        if not asked or type(asked[0]) not in (str, bytes) or asked[0] not in STORAGE:
            raise pickle.UnpicklingError('a persistent ID must name a storage')
        super().load_binpersid()


def _check_type(value: Any, *allowed: type) -> None:
    if type(value) not in allowed:
        raise pickle.UnpicklingError(f'expected {allowed[0].__name__}, got {type(value)}')


# by name, so that the methods above take the place of those that they override
Unpickler.dispatch = {
    code[0]: getattr(Unpickler, _Unpickler.dispatch[code[0]].__name__) for code in OPCODES
}


def load(file: IO[bytes], **kwargs: Any) -> Any:
    """Read one pickle; the name by which torch asks for it."""
    return Unpickler(file, **kwargs).load()
