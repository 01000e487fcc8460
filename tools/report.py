"""One HTML page on trainings: python tools/report.py WORK_DIR [WORK_DIR ...] [options]."""

import argparse

from evit_mm.report import write_report
from evit_mm.utils.cli import add_cfg_options, add_device, run_tool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='One HTML page on finished or running trainings')
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='of tools/train.py')
    parser.add_argument('-o', '--out', default='report', help='folder for index.html')
    parser.add_argument(
        '--compare', action='store_true', help='say what changed from the first to the second'
    )
    add_device(parser)
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    """Write the page."""
    print(f'written: {write_report(**vars(parse_args()))}')


if __name__ == '__main__':
    run_tool(main, 'interrupted; no page was written')
