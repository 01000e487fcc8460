"""PyTorch format: a ``torch.export`` program, which runs without this package and without mmdet."""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ...checkpoint.reading import METADATA_KEY
from ...errors import EvitError
from ...utils.provenance import need_torch
from .files import BFLOAT16, FLOAT16, FLOAT32, Format, Run
from .graph import Size, export_program

# what a file of TorchFormat.write contains; torch.export.load can run code of anything else
MEMBERS = re.compile(
    r'[^/]+/(\.data/\w+|archive_\w+|byteorder|version|models/model\.json|extra/evit_mm'
    r'|data/(constants|weights)/(model_\w+_config\.json|(tensor|weight)_\d+))'
)
GUARDS = '2.9'  # first version with check_guards
EMPTY = '/data/sample_inputs/model.pt'  # otherwise a pickle
OPERATORS = 'add|sub|mul|floordiv|truediv|mod|neg|eq|ne|ge|gt|le|lt|getitem'
TARGETS = re.compile(
    rf'torch\.ops\.aten\.(?!from_file)\w+\.\w+|_operator\.({OPERATORS})|torch\.sym_(min|max)'
    r'|torch\.ops\.higher_order\.wrap_with_autocast'
)
FUNCTIONS = 'Symbol|Integer|Add|Mul|Pow|Mod|PythonMod|Min|Max|FloorDiv|CleanDiv|CeilDiv'
EXPRESSION = re.compile(
    rf"(({FUNCTIONS})\(|Symbol\('[su]\d+'|(positive|integer|evaluate)=(True|False)|-?\d+|[), ])*"
)
TREE_TYPES = (None, 'builtins.tuple', 'builtins.list', 'builtins.dict')


class TorchFormat(Format):
    """A ``.pt2`` file of ``torch.export.save``, which ends before NMS."""

    suffixes = ('.pt2',)
    dtypes: ClassVar = {
        FLOAT32: torch.float32,
        FLOAT16: torch.float16,
        BFLOAT16: torch.bfloat16,
    }
    has_nms = False  # PyTorch has no NMS; the operator is in torchvision

    def write(self, graph: nn.Module, file: Path, metadata: dict, size: Size) -> None:
        """Write the program, with the metadata as an extra file."""
        need_torch(GUARDS, 'A .pt2 file')
        program = export_program(graph, metadata['in_channels'], size)
        program.example_inputs = None  # they would be a pickle
        with warnings.catch_warnings():
            # torch warns about weights in channels-last order, but saves them correctly
            warnings.simplefilter('ignore', UserWarning)
            torch.export.save(program, file, extra_files={METADATA_KEY: json.dumps(metadata)})

    def load(self, file: Path, threads: int | None) -> tuple[str | None, Run]:
        """Open a file in PyTorch, on the CPU."""
        need_torch(GUARDS, 'A .pt2 file')
        archive = _checked_archive(file)
        if threads:
            torch.set_num_threads(threads)
        extra = {METADATA_KEY: ''}
        program = torch.export.load(archive, extra_files=extra)
        # the guards of the example image refuse sizes that the program computes correctly
        module = program.module(check_guards=False)

        @torch.inference_mode()
        def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [x.numpy() for x in module(*map(torch.from_numpy, inputs.values()))]

        return extra[METADATA_KEY] or None, run


def _checked_archive(file: Path) -> io.BytesIO:
    """Return a copy of an archive that contains only what :meth:`TorchFormat.write` writes.

    ``torch.export.load`` unpickles some entries, loads libraries and evaluates expressions. It
    reads the copy, because its zip reader can find other entries in a manipulated file than
    Python's, which checks them.
    """
    copied = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copied, 'w') as checked:
        foreign = []
        for name in dict.fromkeys(archive.namelist()):
            content = archive.read(name)
            if not MEMBERS.fullmatch(name) and not (name.endswith(EMPTY) and not content):
                foreign.append(name)
            elif name.endswith('.json'):
                foreign += _foreign(json.loads(content))
            checked.writestr(name, content)
    if foreign:
        raise EvitError(
            f"exported file '{file}' contains {foreign[0][:80]!r}, which tools/export.py does not "
            'write and which could run code; export the model again'
        )
    copied.seek(0)
    return copied


def _foreign(value: Any, key: str = '') -> Iterator[str]:
    """Yield what could run code in a part of the program's description."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _foreign(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _foreign(item, key)
    elif key == 'use_pickle' and value:
        yield key
    elif isinstance(value, str):
        allowed = {'target': TARGETS, 'expr_str': EXPRESSION}.get(key)
        if allowed and not allowed.fullmatch(value):
            yield value
        if key in ('in_spec', 'out_spec') and not _is_plain_tree(value):
            yield value


def _is_plain_tree(text: str) -> bool:
    """Return whether a description of nested tuples, lists and dicts names no other class."""

    def plain(node: Any) -> bool:
        context = node['context'] and json.loads(node['context'])
        return (
            {*node} == {'type', 'context', 'children_spec'}
            and node['type'] in TREE_TYPES
            # keys of a dict, or nothing
            and all(isinstance(key, str) for key in context or [])
            and isinstance(context, (list, type(None)))
            and all(map(plain, node['children_spec']))
        )

    try:
        _, root = json.loads(text)
        return plain(root)
    except (KeyError, RecursionError, TypeError, ValueError):
        return False
