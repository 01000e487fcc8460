"""Draw the network with its shapes: python tools/draw_architecture.py [ARCH] [options]."""

import argparse
import sys
from pathlib import Path

from evit_mm.architecture import draw
from evit_mm.models import VARIANTS


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Draw the network with its shapes, as SVG')
    parser.add_argument('arch', nargs='?', choices=VARIANTS, default='m4')
    parser.add_argument(
        '--size', type=int, nargs=2, default=(512, 512), metavar=('H', 'W'), help='image in pixels'
    )
    parser.add_argument('-o', '--out', type=Path, required=True, help='FILE.svg')
    args = parser.parse_args()
    if min(args.size) < 16:
        parser.error(f'--size must be at least 16 16, got {args.size}')
    return args


if __name__ == '__main__':
    args = parse_args()
    try:
        args.out.write_text(draw(args.arch, tuple(args.size)), encoding='utf-8')
    except OSError as error:
        sys.exit(f'error: {error}')
    print(args.out)
