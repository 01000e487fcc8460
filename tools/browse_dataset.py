"""What the model is fed: python tools/browse_dataset.py CONFIG -o DIR."""

import argparse

from evit_mm.inference.browse import SPLITS, browse
from evit_mm.utils.cli import add_cfg_options, run_tool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Draw images as annotated and, beside them, after augmentation'
    )
    parser.add_argument('config', help='config of a detector or a classifier')
    parser.add_argument('-o', '--out', dest='out_dir', required=True, help='folder to write to')
    parser.add_argument('--split', choices=SPLITS, default='train', help='default: train')
    parser.add_argument('--number', type=int, default=8, help='images (default: 8)')
    parser.add_argument('--draws', type=int, help='of each image (default: 3 in train, else 1)')
    parser.add_argument('--classes', nargs='+', help='only images with one of these')
    parser.add_argument(
        '--stages', action='store_true', help='also each image after each step of the pipeline'
    )
    parser.add_argument('--seed', type=int, default=0, help='another one, other images and draws')
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    """Draw."""
    args = parse_args()
    print(f'{len(browse(**vars(args)))} pictures written to {args.out_dir}')


if __name__ == '__main__':
    run_tool(main)
