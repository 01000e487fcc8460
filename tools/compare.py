"""Compare backbones on your data: python tools/compare.py --data DIR [options]."""

import argparse
import sys

from mmengine.config import DictAction

from evit_mm.compare import Budget, available_models, collect, compare
from evit_mm.errors import EvitError

DEFAULT = ['evit_m0', 'evit_m2', 'evit_m4', 'mobilenetv2', 'spos', 'spnasnet']


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Compare backbones under one budget')
    parser.add_argument('--data', help='data set in COCO format: annotations/instances_{train,val}')
    names = f'of {", ".join(available_models())}'
    parser.add_argument('--models', nargs='+', default=DEFAULT, metavar='NAME', help=names)
    parser.add_argument('--epochs', type=int, default=12)
    parser.add_argument('--seeds', type=int, default=1, help='runs per backbone')
    parser.add_argument('--scale', default='320x240', metavar='WxH', help='images fit into this')
    parser.add_argument('--head', choices=['light', 'full'], default='light')
    parser.add_argument('--pretrained', action='store_true', help='start from ImageNet weights')
    parser.add_argument('--out', default='work_dirs/compare', help='folder for runs and table')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: a GPU if there is one)')
    parser.add_argument('--published', action='store_true', help="the papers' COCO figures beside")
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='overrides for all runs'
    )
    parser.add_argument('--collect', nargs='+', metavar='WORK_DIR', help='finished trainings')
    args = parser.parse_args()
    if (args.data is None) == (args.collect is None):
        parser.error('give either --data or --collect')
    if not all(part.isdecimal() for part in args.scale.split('x')) or args.scale.count('x') != 1:
        parser.error(f"--scale must be WIDTHxHEIGHT such as 320x240, got '{args.scale}'")
    args.scale = tuple(map(int, args.scale.split('x')))
    return args


def main(args: argparse.Namespace) -> None:
    """Compare or collect, and print the table."""
    if args.collect:
        collect(args.collect, args.out, args.published)
    else:
        options = args.cfg_options or {}
        budget = Budget(args.data, args.epochs, args.scale, args.head, args.pretrained, options)
        compare(budget, args.models, args.seeds, args.out, args.device, args.published)
    with open(f'{args.out}/table.md', encoding='utf-8') as table:
        print(table.read())
    print(f'written: {args.out}/table.md, table.json, table.png')


if __name__ == '__main__':
    try:
        main(parse_args())
    except EvitError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('interrupted; the same command goes on where it was')
