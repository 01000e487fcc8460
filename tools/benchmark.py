"""Measure inference and training speed: python tools/benchmark.py [SUITE ...] [options].

Each suite prints its table, and writes the table, a JSON file and a chart to the output folder.
"""

import argparse

from evit_mm.compare.benchmark import SUITES, run_suite
from evit_mm.utils.cli import run_tool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Measure inference and training speed with interleaved runs',
        epilog='suites: ' + '; '.join(f'{name}: {suite.title}' for name, suite in SUITES.items()),
    )
    parser.add_argument(
        'suites',
        nargs='*',
        metavar='SUITE',
        help='suites to run (default: all except operators, which needs a compiled mmcv)',
    )
    parser.add_argument('--threads', type=int, help='CPU threads (default: set by the suite)')
    parser.add_argument('--rounds', type=int, default=10, help='timed calls per row (default: 10)')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, ... (default: cpu)')
    parser.add_argument(
        '-o', '--out', default='docs/performance', help='output folder (default: docs/performance)'
    )
    args = parser.parse_args()
    args.suites = args.suites or [name for name in SUITES if name != 'operators']
    return args


def main() -> None:
    """Run the suites and print their tables."""
    args = parse_args()
    for suite in args.suites:
        _, table = run_suite(suite, args.out, args.threads, args.rounds, args.device)
        print(table)


if __name__ == '__main__':
    run_tool(main)
