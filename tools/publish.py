"""Write a detector for the Hugging Face hub: python tools/publish.py CONFIG CHECKPOINT -o FOLDER.

Example: python tools/publish.py CONFIG CHECKPOINT -o my-cells --license cc-by-4.0
"""

import argparse
import shlex

from evit_mm.deploy.hub import publish
from evit_mm.utils.cli import add_cfg_options, add_device, run_tool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Write a trained detector as a folder for the Hugging Face hub; '
        'nothing is uploaded'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '-o', '--out', metavar='FOLDER', required=True, help='new or empty folder to write'
    )
    parser.add_argument(
        '--license',
        dest='license_id',
        metavar='ID',
        default='unknown',
        help='licence of the weights, such as apache-2.0 or cc-by-4.0 (default: unknown)',
    )
    add_device(parser)
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    """Write the folder, and print the figures and the command that uploads it."""
    folder, figures, reason = publish(**vars(parse_args()))
    if figures is None:
        print(f'not measured: {reason}')
    else:
        for name, value in figures.metrics.items():
            print(f'{name}: {value:.4g}')
    upload = shlex.join(['hf', 'upload', 'OWNER/NAME', str(folder)])
    print(f"'{folder}' is written; look at its README.md, then: {upload}")


if __name__ == '__main__':
    run_tool(main)
