"""The unpickler before torch 2.6: whatever a pickle asks for beyond weights is refused by name."""

import io
import pickle
import struct
from collections import OrderedDict

import pytest
import torch
from mmengine.logging import HistoryBuffer

from evit_mm.checkpoint import unpickling

HISTORY = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'
SETATTR = (
    b'N}X\x04\x00\x00\x00meanK\x01s\x86b.'  # (None, {'mean': 1}), which pickle sets one by one
)


def read(program):
    return unpickling.load(io.BytesIO(b'\x80\x02' + program), encoding='utf-8')


def text(value):
    return b'X' + struct.pack('<I', len(value)) + value.encode()


REFUSED = {
    'a function': (b'cos\nmkdir\n.', 'GLOBAL os.mkdir'),
    'a function by a dotted name': (b'ctorch\nserialization.os.mkdir\n.', 'GLOBAL torch.ser'),
    'pickle itself': (b'cpickle\nloads\n.', 'GLOBAL pickle.loads'),
    'an attribute of a class': (HISTORY + SETATTR, "setting the state of <class 'type'>"),
    'an attribute of a function': (
        b'ctorch._utils\n_rebuild_tensor_v2\n' + SETATTR,
        "setting the state of <class 'function'>",
    ),
    'an attribute beside the dict of a history': (
        HISTORY + b')\x81' + SETATTR,
        "setting the state of .*HistoryBuffer'>",
    ),
    'an array of any size': (b'cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.', 'reduce for'),
    'a tensor of any size': (b'ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R.', 'reduce for'),
    'a module': (b'ctorch\nTensor\n)\x81.', 'creating .* is not allowed'),
    'a type with arguments': (HISTORY + b']\x85\x81.', 'creating .* is not allowed'),
    'objects in an array': (b'cnumpy\ndtype\n' + text('O8') + b'\x85R.', 'dtype .* is not allowed'),
    'another codec': (
        b'c_codecs\nencode\n' + text('a') + text('rot13') + b'\x86R.',
        "encoding 'rot13'",
    ),
    'a result that is called': (
        b'c__builtin__\ngetattr\n' + HISTORY + text('mean') + b'\x86R)R.',
        'reduce for',
    ),
    'append': (b'ccollections\nOrderedDict\n)RK\x01a.', 'expected list'),
    'extend': (b'ccollections\nOrderedDict\n)R(K\x01e.', 'expected list'),
    'an entry of a list': (b']K\x01K\x02s.', 'expected dict'),
    'entries of a list': (b'](K\x01K\x02u.', 'expected dict'),
    'the source of a module': (
        b'(' + text('module') + HISTORY + text('x') + text('y') + b'tQ.',
        'must name a storage',
    ),
}
OTHER_OPCODES = {
    'an old way to make an object': b'(ios\nmkdir\n.',
    'protocol 4': b'\x95' + bytes(8) + b'.',
    'a named place': text('x')[:1] + b'\x01\x00\x00\x00xP1\n.',
}


@pytest.mark.parametrize(('program', 'said'), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_by_name(program, said):
    with pytest.raises(pickle.UnpicklingError, match=said):
        read(program)
    assert callable(HistoryBuffer.mean)


@pytest.mark.parametrize('program', OTHER_OPCODES.values(), ids=OTHER_OPCODES)
def test_what_torch_save_does_not_write_is_not_known(program):
    with pytest.raises(KeyError):
        read(program)


def test_attributes_of_an_ordered_dict_are_kept():
    """Modules' state dicts have ``_metadata``."""
    state = OrderedDict(a=1)
    state._metadata = {'version': 2}
    found = read(pickle.dumps(state, 2)[2:])
    assert found == state and found._metadata == {'version': 2}


def test_torch_lists_what_rebuilds_a_tensor():
    """Its list is private; this is where a torch without it would be noticed."""
    table = unpickling._table()
    assert table['torch._utils._rebuild_tensor_v2'] is torch._utils._rebuild_tensor_v2
    assert table['torch._utils._rebuild_parameter'] is torch._utils._rebuild_parameter
    assert table['torch.bool'] is torch.bool
    assert not any(name.startswith(('os.', 'sys.', 'subprocess.')) for name in table)
