"""Compare backbones or recipes on your data: python tools/compare.py --data DIR [options]."""

import argparse
import re
import sys
from pathlib import Path

from evit_mm.compare import DEFAULT_MODELS, RECIPES, Budget, available_models, collect, compare
from evit_mm.utils.cli import add_cfg_options, add_device, run_tool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Compare backbones with the same budget')
    parser.add_argument('--data', help='data folder, as for tools/train.py --data')
    add = parser.add_argument
    names = f'backbones, from {", ".join(available_models())}, or timm:NAME'
    add('--models', nargs='+', default=DEFAULT_MODELS, metavar='NAME', help=names)
    names = f'recipes for each backbone, from {", ".join(RECIPES)}'
    add('--recipes', nargs='+', default=(), metavar='NAME', help=names)
    add('--epochs', type=int, default=12, help='training epochs (default: 12)')
    add('--seeds', type=int, default=1, help='runs per backbone (default: 1)')
    rates = 'search the learning rate of each backbone; without values: 1e-3 3e-3 1e-2'
    add('--lr-search', nargs='*', type=float, metavar='LR', help=rates)
    add('--scale', default='320x240', metavar='WxH', help='default: 320x240')
    add('--head', choices=['light', 'full'], default='light')
    add('--pretrained', action='store_true', help='start from ImageNet weights')
    add('--out', default='work_dirs/compare', help='folder for runs and table')
    add_device(parser)
    parser.add_argument('--published', action='store_true', help='add the published COCO figures')
    add_cfg_options(parser)
    parser.add_argument('--collect', nargs='+', metavar='WORK_DIR', help='tabulate these trainings')
    args = parser.parse_args()
    if (args.data is None) == (args.collect is None):
        parser.error('give either --data or --collect')
    if not re.fullmatch(r'\d+x\d+', args.scale):
        parser.error(f"--scale must be WIDTHxHEIGHT, for example 320x240, got '{args.scale}'")
    args.scale = tuple(map(int, args.scale.split('x')))
    return args


def main() -> None:
    """Run or collect the trainings, and print the table."""
    args = parse_args()
    if args.collect:
        rows = collect(args.collect, args.out, args.published)
    else:
        shared = (args.epochs, args.scale, args.head, args.pretrained, args.cfg_options or {})
        options = (args.seeds, args.out, args.device, args.published, args.recipes, args.lr_search)
        rows = compare(Budget(args.data, *shared), args.models, *options)
    print(Path(args.out, 'table.md').read_text(encoding='utf-8'))
    print(f'written: {", ".join(map(str, sorted(Path(args.out).glob("table.*"))))}')
    if any(row.failures for row in rows):
        again = 'finish trainings with tools/train.py --resume, then ' if args.collect else ''
        sys.exit(f'some runs failed (see above); {again}run the same command to try them again')


if __name__ == '__main__':
    run_tool(main, 'run the same command to continue')
