"""Common options and error handling of the command-line tools."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import EvitError
from .package_files import project_path
from .utf8 import use_utf8

TOOLS = project_path('tools')
DEBUG = 'EVIT_MM_DEBUG'


class Terminated(KeyboardInterrupt):
    """SIGTERM, for example from a scheduler. It ends a tool as Ctrl-C does."""


def run_tool(tool: Callable[[], Any], then: str | Callable[[], str] = '') -> Any:
    """Call the main function of a tool, and exit with a one-line error message on failure.

    In a locale with another encoding than UTF-8, the program starts again in UTF-8. With
    ``EVIT_MM_DEBUG=1``, the traceback is printed above the message. After Ctrl-C and SIGTERM, the
    message is ``interrupted`` or ``terminated``, followed by ``then`` or its result, and the exit
    status is 130 or 143, as in a shell. An empty argument ends the program with the exit status 2.
    """
    use_utf8()
    if '' in sys.argv[1:]:  # as a path, it would mean the current folder
        before = sys.argv[sys.argv.index('', 1) - 1]
        sys.stderr.write(
            f"error: the argument after '{before}' is empty; if it is a shell variable, set it\n"
        )
        sys.exit(2)
    with _signals():
        try:
            return tool()
        except BaseException as error:
            interrupt = _interrupt_behind(error)
            if interrupt is not None:
                ended = isinstance(interrupt, Terminated)
                what = 'terminated' if ended else 'interrupted'
                advice = then() if callable(then) else then
                sys.stderr.write(f'{what}; {advice}\n' if advice else f'{what}\n')
                sys.exit(128 + (signal.SIGTERM if ended else signal.SIGINT))
            if not isinstance(error, (EvitError, OSError)):
                raise
            lines = [f'error: {error}']
            if os.environ.get(DEBUG, '0') != '0':
                traceback.print_exc()
            elif error.__cause__ or isinstance(error, OSError):
                lines.append(f'set {DEBUG}=1 to print the traceback')
            sys.exit('\n'.join(lines))


def _interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the interrupt that led to an exception. mmengine makes a SyntaxError of some."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def _signals() -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM and KeyboardInterrupt on Ctrl-C inside this context."""
    process = os.getpid()

    def terminate(number: int, _: Any) -> None:
        if os.getpid() == process:
            raise Terminated
        os._exit(128 + number)  # a forked child, such as a data loader worker

    before = signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see end_quietly_while_loading
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_quietly_while_loading() -> None:
    """End one of our tools without a traceback if Ctrl-C comes while its modules load.

    The modules take seconds to load. :func:`run_tool` handles Ctrl-C afterwards. Other programs,
    and programs that run in the background without Ctrl-C, are not changed.
    """
    arguments = sys.orig_argv[1:3]
    own = arguments == ['-m', 'evit_mm'] or Path(sys.argv[0]).absolute().parent == TOOLS
    if own and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


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
