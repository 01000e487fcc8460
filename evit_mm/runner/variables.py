"""Top-level variables of a base config that a child config can set.

mmengine evaluates a base file before the file that inherits from it. ``max_epochs = 3`` in a child
config therefore changes nothing on its own: the base has already computed its schedule. The configs
of this project name the variables for which this is different in ``variables``. This module
evaluates the bases again with the values of the child, as if the lines in the bases had these
values. :class:`~evit_mm.runner.build.CheckedRunner` calls it, so mmdet's own tools give the same
run as the tools of this project.
"""

from __future__ import annotations

import ast
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import ConfigError
from ..models.variants import VARIANTS

ABSENT = object()
# nodes with a scope of their own
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
SCOPES = (ast.FunctionDef, ast.ClassDef, ast.Lambda, *COMPREHENSIONS)


@dataclass(frozen=True)
class Source:
    """One file of a config. Only Python files have names and bases.

    Attributes:
        file: Its path.
        text: Its content.
        bases: The files in ``_base_`` that this module can evaluate again.
        others: The names in ``_base_`` of configs of other packages (``mmdet::``).
        assigned: The names that are assigned at the top level, with their statements.
        read: The names that the file reads.
        read_of_bases: The names that the file reads from ``_base_``.
    """

    file: Path
    text: str
    bases: list[Source]
    others: list[str]
    assigned: list[tuple[str, ast.stmt]]
    read: set[str]
    read_of_bases: set[str]

    def chain(self) -> Iterator[Source]:
        """Yield this file and all files below it."""
        yield self
        for base in self.bases:
            yield from base.chain()

    def literals(self, name: str) -> list[Any]:
        """Return the values that the files assign to a name, from the top down.

        ``ABSENT`` stands for an expression.
        """
        files = list(self.chain())
        return [_literal(node) for file in files for key, node in file.assigned if key == name]

    def uses(self, name: str) -> bool:
        """Return whether the top file that assigns a name, or a file above it, reads the name."""
        if name in dict(self.assigned):
            return name in self.read
        return name in self.read_of_bases or any(base.uses(name) for base in self.bases)


def read_source(file: Path) -> Source:
    """Parse a config file and its bases."""
    file = Path(os.path.abspath(file))
    # mmengine replaces this name with the folder of the file
    text = re.sub(r'\{\{\s*fileDirname\s*\}\}', str(file.parent), file.read_text(encoding='utf-8'))
    tree = ast.parse(text if file.suffix == '.py' else '')
    names: Any = []
    for node in reversed(tree.body):  # mmengine uses the first assignment
        if isinstance(node, ast.Assign) and '_base_' in _assigned(node):
            code = compile(ast.Expression(node.value), str(file), 'eval')
            names = eval(code, {})  # noqa: S307 - mmengine, too, executes the whole file
    names = [names] if isinstance(names, str) else list(names)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return Source(
        file,
        text,
        bases=[read_source(file.parent / name) for name in names if '::' not in name],
        others=[name for name in names if '::' in name],
        assigned=[(name, node) for node in tree.body for name in _assigned(node)],
        read={node.id for node in nodes if isinstance(node.ctx, ast.Load)},
        read_of_bases=set(re.findall(r'\b_base_(?:\.|\[[\'"])(\w+)', text)),
    )


class Followed(Config):
    """A config whose bases follow its variables."""


def evaluate(source: Source, values: Mapping[str, Any]) -> Config:
    """Evaluate a config as mmengine does, with other values of top-level variables.

    Args:
        source: The config file.
        values: Every top-level assignment to one of these names gets this value, also in bases.

    Raises:
        ConfigError: The files cannot be evaluated with these values.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            copy = _write_copy(source, values, Path(folder))
            cfg = Config.fromfile(copy, import_custom_modules=False)
    except Exception as error:  # a config is a Python program and can raise any exception
        given = ', '.join(f'{name}={value!r}' for name, value in values.items())
        reason = f'{type(error).__name__}: {error}'
        raise ConfigError(
            f'{source.file}: the bases cannot be evaluated with {given} ({reason})'
        ) from error
    return Followed(cfg.to_dict(), cfg.text, str(source.file), cfg.env_variables)


def follow_variables(cfg: Config) -> Config:
    """Return a config whose bases follow the variables of the config.

    Other keys that have been set since the file was read stay. A config from
    :func:`~evit_mm.runner.config.load_config` does not change.

    Args:
        cfg: The result of ``Config.fromfile``, perhaps with other values since then.

    Raises:
        ConfigError: A variable has a value that the bases cannot use.
    """
    file = Path(cfg.filename or '')
    if isinstance(cfg, Followed) or not cfg.get('variables') or not file.is_file():
        return cfg
    source = read_source(file)
    values = _pending(cfg, source)
    if not values:
        return cfg
    read = Config.fromfile(cfg.filename, import_custom_modules=False)
    followed = evaluate(source, values)
    merged = _merge(read.to_dict(), followed.to_dict(), cfg.to_dict())
    return Followed(merged, cfg.text, cfg.filename, cfg.env_variables)


def set_variables(
    cfg: Config, source: Source, chosen: Mapping[str, Any], known: Collection[str]
) -> tuple[Config, list[str]]:
    """Return a config whose bases follow its variables, and the variables without an effect.

    Args:
        cfg: The result of ``Config.fromfile``.
        source: Its files.
        chosen: Values of variables that replace those of the config.
        known: Top-level keys that are read after the config has been loaded.

    Raises:
        ConfigError: A variable has a value that the bases cannot use.
    """
    values = _pending({**cfg, **chosen}, source)
    if not values:
        return cfg, []
    followed = evaluate(source, values)
    keys = set(known) - {*cfg.variables}
    changed = _changes(cfg, followed, keys)

    def has_effect(name: str) -> bool:
        below = source.literals(name)[1:2]  # also if the bases have this value
        if source.uses(name) or values[name] in [*changed, *below]:
            return True
        others = {key: value for key, value in values.items() if key != name}
        return bool(changed and _changes(evaluate(source, others), followed, keys))

    return followed, [name for name in values if not has_effect(name)]


def unread(
    source: Source, known: Collection[str], above: tuple[Source, ...] = ()
) -> Iterator[tuple[Source, str]]:
    """Yield files with the names that they assign at the top level and that no file reads.

    Args:
        source: The config file.
        known: Names that are read after the config has been loaded.
        above: The files that inherit from ``source``.
    """
    read = source.read.union(*(file.read_of_bases for file in above))
    for name in dict.fromkeys(name for name, _ in source.assigned):
        if name not in read and name not in known and not name.startswith('_'):
            yield source, name
    for base in source.bases:
        yield from unread(base, known, (*above, source))


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield all values in nested values with their paths, without the outermost."""
    if path:
        yield path, tree
    if isinstance(tree, (dict, list)):
        for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(part, (*path, key))


def _pending(cfg: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Return the variables to which some file assigns another value than the config has."""
    values = {}
    for name in cfg.get('variables') or ():
        literals = source.literals(name)
        if name in cfg and any(literal != cfg[name] for literal in literals):
            values[name] = _checked(name, cfg[name], literals[-1], source)
    return values


def _checked(name: str, value: Any, default: Any, source: Source) -> Any:
    """Return a value of a variable if it is of the kind of the variable's default."""
    if isinstance(value, list) and isinstance(default, tuple):
        value = tuple(value)  # of --cfg-options scale=1,2
    kind = _kind(name, default)
    if kind is not None and _kind(name, value) != kind:
        example = ('cell',) if default is None else default
        raise ConfigError(
            f"{source.file}: variable '{name}' must be {kind}, such as {example!r}, got {value!r}"
        )
    return value


def _kind(name: str, value: Any) -> str | None:
    """Return in words what a value is, or None if any other value can replace it."""
    if isinstance(value, str):
        is_arch = name == 'arch' and value in VARIANTS
        return f'one of {", ".join(VARIANTS)}' if is_arch else 'a string'
    items = value if isinstance(value, (list, tuple)) else (value,)
    if name == 'classes' and (value is None or (items and {*map(type, items)} == {str})):
        return 'a tuple of names'
    if items and all(type(item) is int and item > 0 for item in items):
        return f'{len(items)} positive integers' if items is value else 'a positive integer'
    return None


def _changes(before: Config, after: Config, keys: Collection[str]) -> list[Any]:
    """Return the values under the top-level keys that have changed."""
    old = dict(leaves(before.to_dict()))
    return [
        value
        for path, value in leaves(after.to_dict())
        if path[0] in keys and old.get(path, ABSENT) != value
    ]


def _merge(read: Any, followed: Any, current: Any) -> Any:
    """Return ``followed`` with the changes from ``read`` to ``current``, in nested values."""
    if current == read:
        return followed
    parts = (read, followed, current)
    if all(isinstance(part, dict) for part in parts):
        items = {
            key: _merge(*(part.get(key, ABSENT) for part in parts))
            for key in {**followed, **current}
        }
        return {key: value for key, value in items.items() if value is not ABSENT}
    if all(isinstance(part, list) for part in parts) and len({*map(len, parts)}) == 1:
        return [_merge(*items) for items in zip(*parts, strict=True)]
    return current


def _literal(node: ast.stmt) -> Any:
    if isinstance(node, ast.Assign) and all(isinstance(x, ast.Name) for x in node.targets):
        with suppress(ValueError):
            return ast.literal_eval(node.value)
    return ABSENT


def _assigned(node: ast.AST) -> Iterator[str]:
    """Yield the names that a statement assigns in its own scope."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    if not isinstance(node, SCOPES):
        for child in ast.iter_child_nodes(node):
            yield from _assigned(child)


def _write_copy(source: Source, values: Mapping[str, Any], folder: Path) -> Path:
    """Write a config and its bases to a new folder, and return the path of the config."""
    if source.file.suffix != '.py':
        return source.file
    folder.mkdir(exist_ok=True)
    copies = [_write_copy(base, values, folder / str(k)) for k, base in enumerate(source.bases)]
    lines = source.text.encode().splitlines(keepends=True)
    for name, node in reversed(source.assigned):
        if name in values and node.end_lineno:
            line, column = node.end_lineno - 1, node.end_col_offset  # bytes of UTF-8
            # mmengine would replace {{ fileDirname }} in a value
            value = repr(values[name]).replace('{{', '{\\x7b')
            added = f'\n{name} = {value}'.encode()
            lines[line] = lines[line][:column] + added + lines[line][column:]
    copy = folder / source.file.name
    # mmengine uses the first assignment to _base_
    bases = [*source.others, *map(str, copies)]
    copy.write_bytes(f'_base_ = {bases}\n'.encode() + b''.join(lines))
    return copy
