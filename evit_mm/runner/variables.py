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
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import ConfigError
from ..models.variants import VARIANTS
from ..utils.text import did_you_mean

ABSENT = object()
# nodes whose names are not variables of the config, and statements that end with a block
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
SCOPES = (ast.FunctionDef, ast.ClassDef, ast.Lambda, *COMPREHENSIONS)
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try)


@dataclass(frozen=True)
class Source:
    """One Python file of a config.

    Attributes:
        file: Its path.
        text: Its content.
        bases: The files in ``_base_`` that this module can evaluate again.
        assigned: The names that are assigned at the top level, with their statements.
        read: The names that the file reads.
        read_of_bases: The names that the file reads from ``_base_``.
    """

    file: Path
    text: str
    bases: list[Source] = field(default_factory=list)
    assigned: list[tuple[str, ast.stmt]] = field(default_factory=list)
    read: set[str] = field(default_factory=set)
    read_of_bases: set[str] = field(default_factory=set)

    def chain(self) -> Iterator[Source]:
        """Yield this file and all files below it."""
        yield self
        for base in self.bases:
            yield from base.chain()

    def literals(self, name: str) -> list[Any]:
        """Return the values that the files assign to a name, from the top down.

        ``ABSENT`` stands for an expression.
        """
        return [
            _literal(node) for file in self.chain() for key, node in file.assigned if key == name
        ]


def read_source(file: Path) -> Source:
    """Parse a config file and its bases. A base of another package (``mmdet::``) is left out."""
    file = file.absolute()
    # mmengine replaces this name with the folder of the file
    text = re.sub(r'\{\{\s*fileDirname\s*\}\}', str(file.parent), file.read_text(encoding='utf-8'))
    source = Source(file, text)
    if file.suffix != '.py':
        return source
    tree = ast.parse(text)
    source.assigned.extend((name, node) for node in tree.body for name in _assigned(node))
    source.read_of_bases.update(re.findall(r'\b_base_(?:\.|\[[\'"])(\w+)', text))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            source.read.add(node.id)
    for base in _base_names(source):
        if '::' not in base:
            source.bases.append(read_source(_beside(source, base)))
    return source


def evaluate(source: Source, values: Mapping[str, Any]) -> Config:
    """Evaluate a config as mmengine does, with other values of top-level variables.

    Args:
        source: The config file.
        values: Every top-level assignment to one of these names gets this value, also in bases.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = _write_copy(source, values, Path(folder))
        cfg = Config.fromfile(copy, import_custom_modules=False)
    return Config(cfg.to_dict(), cfg.text, str(source.file), cfg.env_variables)


def follow_variables(cfg: Config) -> Config:
    """Return a config whose bases follow the variables of the config.

    Explicit settings of other keys stay. A config from
    :func:`~evit_mm.runner.config.load_config` does not change.

    Args:
        cfg: The result of ``Config.fromfile``, perhaps with other values since then.

    Raises:
        ConfigError: A variable has a value that the bases cannot use.
    """
    if not cfg.get('variables') or not cfg.filename or not Path(cfg.filename).is_file():
        return cfg
    source = read_source(Path(cfg.filename))
    values = variables_of(cfg, source)
    if not _pending(source, values):
        return cfg
    read = Config.fromfile(cfg.filename, import_custom_modules=False)
    changes = list(differences(read.to_dict(), evaluate_checked(source, values).to_dict()))
    changes = [change for change in changes if change[0][0] not in values]
    if not any(_value_at(cfg, path) == new for path, _, new in changes):
        for path, old, new in changes:
            if _value_at(cfg, path) == old:
                _set_at(cfg, path, new)
    return cfg


def set_variables(
    cfg: Config, source: Source, chosen: Mapping[str, Any], known: Collection[str]
) -> tuple[Config, list[str]]:
    """Return a config whose bases follow its variables, and the variables without an effect.

    Args:
        cfg: The result of ``Config.fromfile``.
        source: Its files.
        chosen: Values of variables that replace those of the config.
        known: Top-level keys that are read after the config has been loaded.
    """
    values = variables_of(cfg, source)
    values.update({name: _checked(name, value, source) for name, value in chosen.items()})
    if _pending(source, values):
        cfg = evaluate_checked(source, values)
    keys = set(known) - set(values)
    return cfg, [name for name in values if not _has_effect(name, cfg, source, values, keys)]


def variables_of(cfg: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Return the values of the variables that a config names in ``variables``."""
    names = [name for name in cfg.get('variables') or () if name in cfg]
    return {name: _checked(name, cfg[name], source) for name in names}


def evaluate_checked(source: Source, values: Mapping[str, Any]) -> Config:
    """Evaluate a config with other values, and name them if the bases cannot use them."""
    try:
        return evaluate(source, values)
    except Exception as error:  # a config is a Python program and can raise any exception
        given = ', '.join(f'{name}={value!r}' for name, value in values.items())
        reason = f'{type(error).__name__}: {error}'
        raise ConfigError(
            f'{source.file}: the bases cannot be evaluated with {given} ({reason})'
        ) from error


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


def differences(
    before: Any, after: Any, path: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Yield path, old and new value of all values that differ between two nested values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            pair = before.get(key, ABSENT), after.get(key, ABSENT)
            yield from differences(*pair, (*path, key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, (*path, index))
    elif before is not after and before != after:
        yield path, before, after


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield all values in nested values with their paths, without the outermost."""
    if path:
        yield path, tree
    if isinstance(tree, (dict, list)):
        for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(part, (*path, key))


def _checked(name: str, value: Any, source: Source) -> Any:
    """Return a value of a variable if it is of the kind of the variable's default."""
    default = (source.literals(name) or [ABSENT])[-1]
    fix = None
    if name == 'classes':
        is_names = isinstance(value, (list, tuple)) and all(isinstance(x, str) for x in value)
        if value is not None and not (is_names and value):
            fix = "must be a tuple of names, such as ('cell',)"
    elif isinstance(default, str) and default in VARIANTS:
        if not isinstance(value, str) or value not in VARIANTS:
            fix = f'must be one of {", ".join(VARIANTS)}{did_you_mean(value, VARIANTS, cutoff=0.4)}'
    elif _is_positive(default) and not _is_positive(value):
        fix = f'must be a positive integer, such as {default}'
    elif isinstance(default, tuple) and all(map(_is_positive, default)):
        value = tuple(value) if isinstance(value, list) else value  # of --cfg-options scale=1,2
        is_like = isinstance(value, tuple) and len(value) == len(default)
        if not (is_like and all(map(_is_positive, value))):
            fix = f'must be {len(default)} positive integers, such as {default}'
    elif isinstance(default, str) and not isinstance(value, str):
        fix = f'must be a string, such as {default!r}'
    if fix:
        raise ConfigError(f"{source.file}: variable '{name}' {fix}, got {value!r}")
    return value


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _has_effect(
    name: str, cfg: Config, source: Source, values: Mapping[str, Any], keys: Collection[str]
) -> bool:
    """Return whether a value under one of the top-level keys depends on a variable."""
    files = [file for file in source.chain() if name in dict(file.assigned)]
    if not files or name in files[0].read:
        return True  # not assigned by a file that can be evaluated, or used there
    if not _pending(source, {name: values[name]}):
        return len(files) > 1 or not source.bases
    if source.literals(name)[1:2] == [values[name]]:
        return True  # the base has the same value
    others = {key: value for key, value in values.items() if key != name}
    changes = differences(evaluate_checked(source, others).to_dict(), cfg.to_dict())
    return any(path[0] in keys for path, _, _ in changes)


def _pending(source: Source, values: Mapping[str, Any]) -> bool:
    """Return whether some file assigns another value to a variable."""
    return any(
        literal != value for name, value in values.items() for literal in source.literals(name)
    )


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


def _base_names(source: Source) -> list[str]:
    for name, node in source.assigned:
        if name == '_base_' and isinstance(node, ast.Assign):
            code = compile(ast.Expression(node.value), str(source.file), 'eval')
            bases = eval(code, {})  # noqa: S307 - mmengine, too, executes the whole file
            return bases if isinstance(bases, list) else [bases]
    return []


def _beside(source: Source, base: str) -> Path:
    return (source.file.parent / base).absolute()


def _write_copy(source: Source, values: Mapping[str, Any], folder: Path) -> Path:
    """Write a config and its bases to a new folder, and return the path of the config."""
    if source.file.suffix != '.py':
        return source.file
    folder.mkdir(exist_ok=True)
    bases = [base for base in _base_names(source) if '::' in base]
    for index, base in enumerate(source.bases):
        bases.append(str(_write_copy(base, values, folder / str(index))))
    lines = source.text.encode().splitlines(keepends=True)
    for name, node in reversed(source.assigned):
        if name in values and node.end_lineno and node.end_col_offset:
            line, column = node.end_lineno - 1, node.end_col_offset  # bytes of UTF-8
            between = '\n' if isinstance(node, BLOCKS) else '; '
            # mmengine would replace {{ fileDirname }} in a value
            value = repr(values[name]).replace('{{', '{\\x7b')
            added = f'{between}{name} = {value}'.encode()
            lines[line] = lines[line][:column] + added + lines[line][column:]
    copy = folder / source.file.name
    # mmengine uses the first assignment to _base_
    copy.write_bytes(f'_base_ = {bases}\n'.encode() + b''.join(lines))
    return copy


def _value_at(cfg: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        try:
            cfg = cfg[key]
        except (KeyError, IndexError, TypeError):
            return ABSENT
    return cfg


def _set_at(cfg: Any, path: tuple[Any, ...], value: Any) -> None:
    parent = _value_at(cfg, path[:-1])
    if value is ABSENT:
        parent.pop(path[-1])
    else:
        parent[path[-1]] = value
