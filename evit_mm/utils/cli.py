"""Common options and error handling of the command-line tools."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..errors import EvitError
from .utf8 import use_utf8

DEBUG = 'EVIT_MM_DEBUG'


def run_tool(tool: Callable[[], Any], interrupted: str = 'interrupted') -> Any:
    """Call the main function of a tool, and exit with a one-line error message on failure.

    In a locale with another encoding than UTF-8, the program starts again in UTF-8. With
    ``EVIT_MM_DEBUG=1``, the traceback is printed above the message. After Ctrl-C, the message is
    ``interrupted``.
    """
    use_utf8()
    try:
        return tool()
    except (EvitError, OSError) as error:
        lines = [f'error: {error}']
        if os.environ.get(DEBUG, '0') != '0':
            traceback.print_exc()
        elif error.__cause__ or isinstance(error, OSError):
            lines.append(f'set {DEBUG}=1 to print the traceback')
        sys.exit('\n'.join(lines))
    except KeyboardInterrupt:
        sys.exit(interrupted)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: the GPU if available)')


class CfgOptions(argparse.Action):
    """Collect ``KEY=VALUE`` words in a dict. mmengine's ``DictAction`` deletes the spaces."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add the words to the dict, so that the option can be repeated."""
        options = dict(getattr(namespace, self.dest) or {})
        for word in values:
            key, equals, value = word.partition('=')
            if not equals:
                parser.error(f'{option_string} expects KEY=VALUE, got {word!r}')
            try:
                options[key.strip()] = parse_value(value)
            except ValueError as error:
                parser.error(f'{option_string} {key}: {error}')
        setattr(namespace, self.dest, options)


def parse_value(text: str) -> Any:
    """Parse a value of ``--cfg-options`` as mmengine does, but keep the spaces within it.

    Spaces around brackets, commas and the whole value separate. They are part of a string within
    quotes.

    Raises:
        ValueError: Brackets do not match.

    Example:
        >>> parse_value('my data/'), parse_value('[(1, 2), red cell, None]')
        ('my data/', [(1, 2), 'red cell', None])
    """
    inner = text.strip().strip('\'"')
    bare = inner.strip()
    is_tuple = bare.startswith('(') and bare.endswith(')')
    if is_tuple or (bare.startswith('[') and bare.endswith(']')):
        bare = bare[1:-1].strip()
    elif ',' not in bare:
        return _parse_single(inner)
    items = [parse_value(item) for item in _split_at_commas(bare)]
    return tuple(items) if is_tuple else items


def _split_at_commas(text: str) -> list[str]:
    """Split at the commas that are not within brackets; a comma at the end is ignored."""
    items = ['']
    for char in text:
        depth = [items[-1].count(a) - items[-1].count(b) for a, b in ('()', '[]')]
        if char == ',' and depth == [0, 0]:
            items.append('')
        else:
            items[-1] += char
    unequal = any(items[-1].count(a) != items[-1].count(b) for a, b in ('()', '[]'))
    if unequal or (',' in text and items == [text]):
        raise ValueError(f'the brackets in {text!r} do not match')
    return items if items[-1].strip() else items[:-1]


def _parse_single(text: str) -> Any:
    for parse in (int, float):
        with suppress(ValueError):
            return parse(text)
    words = {'true': True, 'false': False}
    if text.strip().lower() in words:
        return words[text.strip().lower()]
    return None if text.strip() == 'None' else text


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``, which overrides config values."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        help='override config values, key.sub_key=value; quote values with spaces',
    )


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher`` and ``--local-rank``, which some launchers pass."""
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def parse_with_rank(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, and set ``LOCAL_RANK``, which mmengine reads."""
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    del args.local_rank
    return args
