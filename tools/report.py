"""One HTML page on trainings: python tools/report.py WORK_DIR [WORK_DIR ...] [options]."""

import argparse
import sys

from mmengine.config import DictAction

from evit_mm.errors import EvitError
from evit_mm.report import report


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='One HTML page on finished or running trainings')
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='of tools/train.py')
    parser.add_argument('-o', '--out', default='report', help='folder for index.html')
    parser.add_argument(
        '--compare', action='store_true', help='say what changed from the first to the second'
    )
    parser.add_argument('--table', help="a comparison's table.json (default: one beside the runs)")
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: a GPU if there is one)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='overrides, key.sub_key=value'
    )
    return parser.parse_args()


if __name__ == '__main__':
    try:
        print(f'written: {report(**vars(parse_args()))}')
    except EvitError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('interrupted; no page was written')
