"""Files that a stranger might hand over as a checkpoint: bombs, broken ones, and other things.

:func:`hostile_files` makes them; :func:`loads` is what a user does with them. A bomb leaves a
folder behind (:func:`trace`) if anything in it is run; loaded unsafely, each of them does.
"""

import copy
import gzip
import importlib
import io
import json
import marshal
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
from argparse import Namespace
from collections import OrderedDict

import numpy as np
import safetensors.torch
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

from evit_mm.checkpoint import load_pretrained
from evit_mm.errors import CheckpointError
from evit_mm.models import EfficientViT
from tests.conftest import TINY, randomise

STEM = 'patch_embed.0.c.weight'
BOMB = 'bomb: '


def hostile_files(folder):
    """Make the corpus in a folder; yield a name and a path for each of its files."""
    makers = (bombs, tricks, torn, unfolding, wrong_tensors, odd_contents, bad_safetensors, others)
    for maker in makers:
        for number, (name, write) in enumerate(maker()):
            suffix = '.safetensors' if 'safetensors' in name else '.pth'
            path = folder / f'{maker.__name__}_{number}{suffix}'
            write(path)
            yield name, path


def loads(path):
    """Load a file as a config's ``init_cfg`` does; return the error that refuses it, if one does.

    Whatever else is raised is not caught: it would be a crash.
    """
    model = EfficientViT(TINY)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        load_pretrained(model, path)
    except CheckpointError as error:
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        return error
    return None


def trace(path):
    """Return the folder that a bomb makes when it goes off."""
    return path.with_name(f'{path.name}.went_off')


def go_off(path):
    """Load a bomb without any protection: the control, which shows that it is one."""
    if not zipfile.is_zipfile(path) and b'l\xfc\x9cF\xf9 j\xa8P\x19' not in path.read_bytes()[:32]:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)


def good_state():
    return dict(randomise(EfficientViT(TINY)).state_dict())


class Call:
    """Pickles as a call, of a function or of what another call returns."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced

    def __call__(self):
        """Pickle insists that a function can be called."""


def payloads(target):
    """Return ways to make a folder."""
    target = str(target)
    program = f'import os; os.mkdir({target!r})'
    code = marshal.dumps(compile(program, '', 'exec'))
    return {
        'os.mkdir': Call(os.mkdir, target),
        'os.system': Call(os.system, f'mkdir {target}'),
        'subprocess': Call(subprocess.call, ['mkdir', target]),
        'exec': Call(exec, program),
        'eval': Call(eval, f'__import__("os").mkdir({target!r})'),
        'marshal': Call(exec, Call(marshal.loads, code)),
        'import': Call(Call(getattr, Call(importlib.import_module, 'os'), 'mkdir'), target),
        'getattr': reached_from_history(program),
    }


def reached_from_history(program):
    """Return a call of exec, reached by attributes from a type that checkpoints may hold."""
    scope = Call(getattr, Call(getattr, HistoryBuffer, '__init__'), '__globals__')
    known = Call(Call(getattr, scope, 'get'), '__builtins__')
    return Call(Call(Call(getattr, known, 'get'), 'exec'), program)


def placements(bomb):
    """Return ways to hide something in a checkpoint."""
    state = good_state()
    attribute = OrderedDict(state)
    attribute.hidden = bomb
    history = HistoryBuffer([1.0], [1])
    history.hidden = bomb
    tensor = torch.ones(2)
    tensor.hidden = bomb
    return {
        'alone': bomb,
        'beside the weights': {'model': state, 'args': bomb},
        'in the state dict': {'state_dict': {**state, 'extra': bomb}},
        'in place of a weight': {**state, STEM: bomb},
        'in an attribute of an OrderedDict': {'model': attribute},
        'in an attribute of a Namespace': {'model': state, 'args': Namespace(x=bomb)},
        'in an attribute of a HistoryBuffer': {'state_dict': state, 'hub': history},
        'in an attribute of a tensor': {**state, 'extra': tensor},
        'in a numpy array of objects': {'model': state, 'x': np.array([bomb], dtype=object)},
        'deep in lists': {'model': state, 'x': [[[[(bomb,)]]]]},
        'as a key': {'model': state, 'x': {('a', bomb): 1}},
    }


def bombs():
    """Every payload and every place, in both formats of torch.save and as bare pickles."""
    for payload in payloads(''):
        for legacy in (False, True):

            def write(path, payload=payload, legacy=legacy):
                content = {'model': good_state(), 'x': payloads(trace(path))[payload]}
                torch.save(content, path, _use_new_zipfile_serialization=not legacy)

            yield f'{BOMB}{payload}, {"legacy" if legacy else "zip"}', write
    for place in placements(None):

        def write(path, place=place):
            torch.save(placements(payloads(trace(path))['os.mkdir'])[place], path)

        yield f'{BOMB}{place}', write
    for protocol in range(6):

        def write(path, protocol=protocol):
            bomb = payloads(trace(path))['os.mkdir']
            path.write_bytes(pickle.dumps({'model': {'w': 1}, 'x': bomb}, protocol))

        yield f'{BOMB}bare pickle, protocol {protocol}', write
    for protocol in (3, 4, 5):
        for legacy in (False, True):

            def write(path, protocol=protocol, legacy=legacy):
                bomb = payloads(trace(path))['os.mkdir']
                zipped = not legacy
                torch.save(
                    bomb, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped
                )

            kind = 'legacy' if legacy else 'zip'
            yield f'{BOMB}{kind}, pickle protocol {protocol}', write


def archive(path, program, members=()):
    """Write an archive as torch.save does, around a pickle of one's own."""
    with zipfile.ZipFile(path, 'w') as file:
        entries = (('data.pkl', program), ('version', '3\n'), ('byteorder', 'little'), *members)
        for name, content in entries:
            file.writestr(f'archive/{name}', content)


def text(value):
    """Return the opcode of a string."""
    encoded = str(value).encode()
    return b'X' + struct.pack('<I', len(encoded)) + encoded


def tricks():
    """Pickles by hand: other opcodes for the same, and names that reach further than they seem."""
    programs = {
        'INST': lambda p: b'(' + text(p) + b'ios\nmkdir\n.',
        'OBJ': lambda p: b'(cos\nmkdir\n' + text(p) + b'o.',
        'STACK_GLOBAL': lambda p: (
            b'\x80\x04' + text('os') + text('mkdir') + b'\x93' + text(p) + b'\x85R.'
        ),
        'a dotted name': lambda p: (
            b'\x80\x04' + text('shutil') + text('os.mkdir') + b'\x93' + text(p) + b'\x85R.'
        ),
        'a dotted name from an allowed module': lambda p: (
            b'\x80\x04'
            + text('torch.serialization')
            + text('os.mkdir')
            + b'\x93'
            + text(p)
            + b'\x85R.'
        ),
        'GLOBAL from a module that torch allows': lambda p: (
            b'\x80\x04ctorch.serialization\n' + b'os.mkdir\n' + text(p) + b'\x85R.'
        ),
        'BUILD of a Namespace': lambda p: (
            b'\x80\x02cargparse\nNamespace\n)\x81}'
            + text('__setstate__')
            + b'cos\nmkdir\nsb'
            + text(p)
            + b'b.'
        ),
        'memo': lambda p: b'\x80\x02cos\nmkdir\nq\x000h\x00' + text(p) + b'\x85R.',
        'REDUCE of a bound method': lambda p: b'\x80\x02cos\nmkdir\n' + text(p) + b'\x85RN\x85.',
    }
    for name, program in programs.items():
        yield f'{BOMB}{name}', lambda path, program=program: archive(path, program(trace(path)))


def good_bytes(**kwargs):
    buffer = io.BytesIO()
    torch.save(good_state(), buffer, **kwargs)
    return buffer.getvalue()


def torn():
    """Transfers that broke off, and disks that lied."""
    legacy = {'_use_new_zipfile_serialization': False}
    for part in (0.0005, 0.1, 0.5, 0.9, 0.999):
        for name, kwargs in (('zip', {}), ('legacy', legacy)):

            def write(path, part=part, kwargs=kwargs):
                whole = good_bytes(**kwargs)
                path.write_bytes(whole[: int(len(whole) * part)])

            yield f'{name} cut after {part:.2%}', write

    def zeroed(path):
        whole = good_bytes()
        path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))

    yield 'second half zero', zeroed

    def directory(path):
        whole = bytearray(good_bytes())
        whole[whole.rindex(b'PK\x01\x02') + 20] ^= 0xFF
        path.write_bytes(whole)

    yield 'directory damaged', directory

    def lost(path):
        with zipfile.ZipFile(io.BytesIO(good_bytes())) as old, zipfile.ZipFile(path, 'w') as new:
            for name in old.namelist():
                if not name.endswith('/data/3'):
                    new.writestr(name, old.read(name))

    yield 'a tensor lost', lost


def unfolding():
    """Small files that become large."""

    def compressed(path):
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
            file.writestr('archive/data.pkl', pickle.dumps({}, 2))
            file.writestr('archive/data/0', bytes(1 << 25))

    yield 'compressed zeros', compressed

    def declared(path):
        archive(path, pickle.dumps({}, 2), [('data/0', b'0' * 64)])
        content = bytearray(path.read_bytes())
        entry = content.rindex(b'PK\x01\x02', 0, content.rindex(b'data/0'))
        content[entry + 24 : entry + 28] = struct.pack('<I', 0xFFFFFFF0)
        path.write_bytes(content)

    yield 'a size that is not there', declared

    def overlapping(path):
        with zipfile.ZipFile(path, 'w') as file:
            file.writestr('archive/data.pkl', pickle.dumps({}, 2))
            file.writestr('archive/data/0', bytes(4096))
            for number in range(1, 9):
                again = copy.copy(file.getinfo('archive/data/0'))
                again.filename = f'archive/data/{number}'
                file.filelist.append(again)

    yield 'members over each other', overlapping

    def twice(path):
        archive(path, pickle.dumps({}, 2), [('data/0', b'0' * 64), ('data/0', b'1' * 64)])

    yield 'a member twice', twice
    claims = {
        'an expanded tensor': lambda: torch.ones(1).expand(1 << 40),
        'a tensor without numbers': lambda: torch.empty(1 << 40, device='meta'),
        'a sparse tensor': lambda: torch.sparse_coo_tensor([[0]], [1.0], (1 << 40,)),
    }
    for name, make in claims.items():
        yield name, lambda path, make=make: torch.save({**good_state(), STEM: make()}, path)
    numbers = {
        'bytearray': b'c__builtin__\nbytearray\n',
        'numpy array': b'cnumpy\nndarray\n',
    }
    for name, callee in numbers.items():
        program = b'\x80\x02' + callee + b'\x8a\x07' + (10**15).to_bytes(7, 'little') + b'\x85R.'
        yield f'a {name} of 10**15', lambda path, program=program: archive(path, program)
    yield 'a string of 4 GB', lambda path: archive(path, b'\x80\x02X\xff\xff\xff\xff.')
    yield 'a number of 2 GB', lambda path: archive(path, b'\x80\x02\x8b\xff\xff\xff\x7f.')
    yield (
        'nested 100,000 deep',
        lambda path: archive(path, b'\x80\x02' + b']' * 100_000 + b'a' * 99_999 + b'.'),
    )
    yield (
        'tuples doubled 64 times',
        lambda path: archive(path, b'\x80\x02)' + b'q\x00h\x00\x86' * 64 + b'.'),
    )

    def storage(path):
        whole = good_bytes(_use_new_zipfile_serialization=False)
        mark = b'cpuq'
        assert mark in whole
        # the number of elements of the first storage, behind its place
        at = whole.index(b'K', whole.index(mark))
        path.write_bytes(
            whole[:at] + b'\x8a\x07' + (10**15).to_bytes(7, 'little') + whole[at + 2 :]
        )

    yield 'legacy storage of 10**15', storage


def changed(**entries):
    """Return a writer of good weights with some entries exchanged; None leaves one out."""

    def write(path):
        state = good_state()
        for name, change in entries.items():
            name = STEM if name == 'stem' else name
            state[name] = change(state[name]) if callable(change) else change
        torch.save({key: value for key, value in state.items() if value is not None}, path)

    return write


def wrong_tensors():
    """Weights of the wrong type, shape and value."""
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.float64, torch.complex64):
        yield f'{dtype} weights', changed(stem=lambda w, dtype=dtype: w.to(dtype))
    if digit_version(torch.__version__) >= digit_version('2.2.0'):  # before, they are not saved
        yield 'float8 weights', changed(stem=lambda w: w.to(torch.float8_e4m3fn))
    shapes = {
        'flat': lambda w: w.flatten(),
        'one dimension more': lambda w: w[None],
        'a scalar': lambda w: w.sum(),
        'empty': lambda w: w[:0],
        'swapped dimensions': lambda w: w.transpose(0, 1).contiguous(),
    }
    for name, change in shapes.items():
        yield f'{name} weight', changed(stem=change)
    for value in (float('nan'), float('inf'), float('-inf')):
        yield (
            f'{value} in a weight',
            changed(stem=lambda w, v=value: w.clone().index_fill_(0, torch.tensor(0), v)),
        )
    biases = 'blocks3.3.mixer.m.attn.attention_biases'
    odd = {
        'nan in resized biases': lambda b: torch.full((2, 16), float('nan')),
        'biases over no square': lambda b: torch.ones(2, 50),
        'biases in one dimension': lambda b: torch.ones(98),
        'biases of complex numbers': lambda b: torch.ones(2, 16, dtype=torch.complex64),
        'biases of no head': lambda b: torch.ones(0, 16),
        'biases of an empty window': lambda b: torch.ones(2, 0),
        'whole numbers as biases': lambda b: torch.ones(2, 16, dtype=torch.int64),
    }
    for name, change in odd.items():
        yield name, changed(**{biases: change})
    yield 'an entry missing', changed(stem=None)
    yield 'an entry too many', changed(more=torch.ones(1))
    yield 'a list for a weight', changed(stem=[1.0, 2.0])
    yield (
        'numpy weights',
        lambda path: torch.save({k: v.numpy() for k, v in good_state().items()}, path),
    )

    def quantized(path):
        weight = torch.quantize_per_tensor(good_state()[STEM], 0.1, 0, torch.qint8)
        torch.save({**good_state(), STEM: weight}, path)

    yield 'a quantized weight', quantized
    wide = {**TINY, 'embed_dims': (24, 24, 32)}
    yield 'another architecture', lambda path: torch.save(EfficientViT(wide).state_dict(), path)


def odd_contents():
    """Whole files of torch.save that hold something else than they should."""
    state = good_state()
    contents = {
        'nothing': {},
        'a number': 5,
        'a list of weights': list(state.values()),
        'one tensor': torch.ones(3),
        'numbers for names': dict(enumerate(state.values())),
        'bytes for names': {key.encode(): value for key, value in state.items()},
        'an escape sequence as a name': {**state, '\x1b]0;owned\x07': torch.ones(1)},
        'a model in itself': {'model': {'model': {'model': state}}},
        'an optimizer alone': {'optimizer': {'state': {}, 'param_groups': []}},
    }
    for name, content in contents.items():
        yield name, lambda path, content=content: torch.save(content, path)

    class Shadowed:
        def __reduce__(self):
            entries = {key: value for key, value in state.items() if key != STEM}
            return (
                OrderedDict,
                (),
                dict.fromkeys(('get', 'items', 'keys'), 5),
                None,
                iter(entries.items()),
            )

    yield 'methods of a dict written over', lambda path: torch.save(Shadowed(), path)

    def methods(path):
        weight = torch.ones(3)
        weight.numel = weight.shape_ = 5
        torch.save({**state, STEM: weight}, path)

    yield 'methods of a tensor written over', methods


def bad_safetensors():
    """Headers that lie."""
    good = safetensors.torch.save({STEM: torch.ones(2, 3, 3, 3)})
    size = struct.unpack('<Q', good[:8])[0]
    header, data = json.loads(good[8 : 8 + size]), good[8 + size :]

    def packed(changed_header, content=data):
        encoded = (
            changed_header
            if isinstance(changed_header, bytes)
            else json.dumps(changed_header).encode()
        )
        return struct.pack('<Q', len(encoded)) + encoded + content

    entry = header[STEM]
    variants = {
        'cut': good[:-20],
        'cut in the header': good[:40],
        'header of 2**63 bytes': struct.pack('<Q', 1 << 63) + good[8:],
        'header of 99 MB': struct.pack('<Q', 99_000_000) + good[8:],
        'header that is no JSON': packed(b'{"a": '),
        'header nested deep': packed(b'{"a":' * 100_000),
        'unknown type': packed({STEM: {**entry, 'dtype': 'PICKLE'}}),
        'whole numbers': packed({STEM: {**entry, 'dtype': 'I32'}}),
        'offsets beyond the end': packed({STEM: {**entry, 'data_offsets': [0, 10**12]}}),
        'negative offsets': packed({STEM: {**entry, 'data_offsets': [-8, 216]}}),
        'overlapping offsets': packed({STEM: entry, 'other': entry}),
        'shape that does not fit': packed({STEM: {**entry, 'shape': [1 << 40, 1 << 40]}}),
        'more bytes than tensors': packed(header, data + bytes(64)),
        'metadata nested deep': packed({**header, '__metadata__': {'evit_mm': '[' * 100_000}}),
        'metadata that is no JSON': packed({**header, '__metadata__': {'evit_mm': '{'}}),
    }
    for name, content in variants.items():
        yield f'safetensors, {name}', lambda path, content=content: path.write_bytes(content)


def others():
    """What is no checkpoint at all."""
    page = '<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not Found</body></html>'
    contents = {
        'empty': b'',
        'a text file': b'weights will follow\n' * 100,
        'an error page': page.encode(),
        'an error page with a byte order mark': '\ufeff\n'.encode() + page.encode(),
        'JSON': b'{"a": 1}',
        'a pointer of Git LFS': b'version https://git-lfs.github.com/spec/v1\noid sha256:00\n',
        'a picture': b'\x89PNG\r\n\x1a\n' + bytes(200),
        'noise': np.random.default_rng(0).bytes(5000),
        'zeros': bytes(5000),
        'a compressed checkpoint': gzip.compress(good_bytes()),
    }
    for name, content in contents.items():
        yield name, lambda path, content=content: path.write_bytes(content)
    yield 'a folder', lambda path: path.mkdir()
    yield 'a link to nothing', lambda path: path.symlink_to('nowhere')
    yield 'a link to itself', lambda path: path.symlink_to(path.name)
    yield 'a pipe', os.mkfifo
    yield 'a device', lambda path: path.symlink_to('/dev/zero')
    yield 'nothing there', lambda path: None

    def tar(path):
        with tarfile.open(path, 'w') as file:
            info = tarfile.TarInfo('storages')
            file.addfile(info, io.BytesIO())

    yield 'a tar archive', tar

    def program(path):
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), path)

    yield 'a TorchScript program', program
    yield 'numpy arrays', lambda path: np.savez(path.open('wb'), **{STEM: np.ones(3)})
