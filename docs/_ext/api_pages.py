"""Write one page per room of the package before Sphinx reads its sources: ``docs/api/*.rst``.

What is public is read from the sources, so that a new room has its page without being listed.
"""

from __future__ import annotations

import ast
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evit_mm

PACKAGE = Path(evit_mm.__file__).parent
LONGEST_VALUE = 60  # characters of a constant's value that are still worth printing
Constants = dict[str, tuple[str, str]]  # name -> (value, the comment above it)


def read_module(source: Path) -> tuple[list[str], Constants, list[str] | None]:
    """Return a module's functions and classes, its constants, and its ``__all__``."""
    text = source.read_text(encoding='utf-8')
    described, constants, offered = [], {}, None
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith('_'):
            described.append(node.name)
        for target in getattr(node, 'targets', [getattr(node, 'target', None)]):
            name = getattr(target, 'id', '_')
            if name == '__all__':
                offered = ast.literal_eval(node.value)
            elif name.isupper() and not name.startswith('_'):
                constants[name] = ast.unparse(node.value), comment_above(text, node.lineno)
    return described, constants, offered


def comment_above(text: str, line: int) -> str:
    """Return what the comment that ends above a line (counted from 1) says."""
    above = itertools.takewhile(
        lambda x: x.startswith('#'), reversed(text.splitlines()[: line - 1])
    )
    return ' '.join(reversed([x.lstrip('# ') for x in above]))


def rooms() -> Iterator[tuple[str, dict[str, tuple[list[str], Constants]]]]:
    """Yield each room's name and what its modules describe, the room itself first.

    What a package offers in its ``__all__`` stands there and not at its modules.
    """
    for path in sorted(PACKAGE.glob('[!_]*')):
        room = f'evit_mm.{path.stem}'
        if path.suffix == '.py':
            yield path.stem, {room: read_module(path)[:2]}
        elif (path / '__init__.py').is_file():
            offered = read_module(path / '__init__.py')[2] or []
            modules: dict[str, tuple[list[str], Constants]] = {
                room: ([name for name in offered if not name.isupper()], {})
            }
            for inner in sorted(path.glob('[!_]*.py')):
                described, constants, _ = read_module(inner)
                for name in set(offered) & set(constants):
                    modules[room][1][name] = constants.pop(name)
                own = [name for name in described if name not in offered]
                modules[f'{room}.{inner.stem}'] = own, constants
            yield path.name, modules


def page_of(room: str, modules: dict[str, tuple[list[str], Constants]]) -> str:
    """Return the text of a room's page: the room's own docstring, then module after module."""
    lines = [f'evit_mm.{room}', '=' * (len(room) + 8), '']
    for module, (described, constants) in modules.items():
        if module != f'evit_mm.{room}':
            if not described and not constants:
                continue
            lines += [module, '-' * len(module), '']
        lines += [f'.. automodule:: {module}', '   :show-inheritance:']
        lines += [f'   :members: {", ".join(described)}', ''] if described else ['']
        for name, (value, comment) in sorted(constants.items()):
            shown = [f'   :value: {value}'] if len(value) <= LONGEST_VALUE else []
            lines += [f'.. py:data:: {name}', f'   :module: {module}', *shown, '']
            lines += [f'   {comment}', ''] if comment else []
    return '\n'.join(lines)


def write_pages(app: Any) -> None:
    """Write the pages that have changed; remove those of rooms that are gone."""
    folder = Path(app.srcdir) / 'api'
    folder.mkdir(exist_ok=True)
    pages = {f'{room}.rst': page_of(room, modules) for room, modules in rooms()}
    for path in folder.glob('*.rst'):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        # an unchanged file keeps its time, so that Sphinx does not read it again
        if not path.is_file() or path.read_text(encoding='utf-8') != text:
            path.write_text(text, encoding='utf-8')


def find_in_room(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Let a docstring name what its own room has without saying in which module.

    A type variable or an alias of a signature has no page and stays a word.
    """
    python, target = env.domains.python_domain, node.get('reftarget', '')
    module, _, name = target.rpartition('.')
    room = '.'.join((module or node.get('py:module') or '').split('.')[:2])
    if node.get('refdomain') != 'py' or not room.startswith('evit_mm.'):
        return None
    found = [x for x in python.objects if x.startswith(f'{room}.') and x.endswith(f'.{name}')]
    if len(found) == 1:
        where, kind = node['refdoc'], node['reftype']
        return python.resolve_xref(env, where, app.builder, kind, found[0], node, contnode)
    if node['reftype'] == 'class' and module in sys.modules:
        thing = getattr(sys.modules[module], name, None)
        is_public_class = isinstance(thing, type) and not name.startswith('_')
        return None if thing is None or is_public_class else contnode
    return None


def leave_out(*event: Any) -> bool | None:
    """Leave out what a NamedTuple says of its fields; their docstring stands at the class."""
    thing = event[3]  # after the application, its kind and its name
    alias = (getattr(thing, '__doc__', None) or '').startswith('Alias for field number')
    return True if alias else None


def setup(app: Any) -> dict[str, bool]:
    """Tell Sphinx when to call what stands above."""
    app.connect('builder-inited', write_pages)
    app.connect('missing-reference', find_in_room)
    app.connect('autodoc-skip-member', leave_out)
    return {'parallel_read_safe': True}
