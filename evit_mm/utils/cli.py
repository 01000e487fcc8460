"""Common options and error handling of the command-line tools."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import EvitError
from .package_files import project_path

TOOLS = project_path('tools')
DEBUG = 'EVIT_MM_DEBUG'


class Terminated(KeyboardInterrupt):
    """SIGTERM, for example from a scheduler. It ends a tool as Ctrl-C does."""


def run_tool(tool: Callable[[], Any], then: str = '') -> Any:
    """Call the main function of a tool, and exit with a one-line error message on failure.

    With ``EVIT_MM_DEBUG=1``, the traceback is printed above the message. After Ctrl-C and SIGTERM,
    the message is ``interrupted`` or ``terminated``, followed by ``then``, and the exit status is
    130 or 143, as in a shell.
    """
    with _signals():
        try:
            return tool()
        except BaseException as error:
            interrupt = _interrupt_behind(error)
            if interrupt is not None:
                ended = isinstance(interrupt, Terminated)
                what = 'terminated' if ended else 'interrupted'
                sys.stderr.write(f'{what}; {then}\n' if then else f'{what}\n')
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


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``, which overrides config values as in mmengine."""
    from mmengine.config import DictAction

    class CfgOptions(DictAction):
        def __call__(self, parser: Any, namespace: Any, values: Any, *rest: Any) -> None:
            for value in values:
                if '=' not in value:
                    parser.error(f'--cfg-options expects KEY=VALUE, got {value!r}')
            super().__call__(parser, namespace, values, *rest)

    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        help='override config values, key.sub_key=value',
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
