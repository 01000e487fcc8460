"""Write an HTML report on trainings: python tools/report.py WORK_DIR [WORK_DIR ...] [options]."""

import argparse

from evit_mm.report import write_report
from evit_mm.utils.cli import add_cfg_options, add_device, run_tool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Write an HTML report on finished or running trainings'
    )
    parser.add_argument(
        'work_dirs', nargs='+', metavar='WORK_DIR', help='work dirs of tools/train.py'
    )
    parser.add_argument(
        '-o', '--out', default='report', help='folder for index.html (default: report)'
    )
    parser.add_argument(
        '--compare', action='store_true', help='show the changes from the first run to the second'
    )
    add_device(parser)
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    """Write the page."""
    print(f'written: {write_report(**vars(parse_args()))}')


if __name__ == '__main__':
    run_tool(main, 'no report was written')
