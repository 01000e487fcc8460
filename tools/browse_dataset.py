"""Draw the input of a model after augmentation: python tools/browse_dataset.py CONFIG -o DIR."""

import argparse

from evit_mm.inference.browse import SPLITS, browse
from evit_mm.utils.cli import add_cfg_options, run_tool
from evit_mm.utils.text import counted


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Draw annotated images beside samples of their augmentation'
    )
    parser.add_argument('config', help='config of a detector or a classifier')
    parser.add_argument('-o', '--out', dest='out_dir', required=True, help='output folder')
    parser.add_argument('--split', choices=SPLITS, default='train', help='split (default: train)')
    parser.add_argument('--number', type=int, default=8, help='number of images (default: 8)')
    parser.add_argument(
        '--draws', type=int, help='samples per image (default: 3 for train, 1 for val and test)'
    )
    parser.add_argument('--classes', nargs='+', help='only images that contain one of these')
    parser.add_argument(
        '--stages', action='store_true', help='also draw each image after each pipeline step'
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='random seed of images and samples (default: 0)'
    )
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    """Draw the images."""
    args = parse_args()
    pictures = counted(len(browse(**vars(args))), 'picture')
    print(f'{pictures} written to {args.out_dir}')


if __name__ == '__main__':
    run_tool(main)
