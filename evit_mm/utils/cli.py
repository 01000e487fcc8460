"""Common options and error handling of the command-line tools."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
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
