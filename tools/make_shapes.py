"""Draw the built-in data set: python tools/make_shapes.py DIR [options]."""

import argparse

from evit_mm.data import make_shapes
from evit_mm.utils.cli import run_tool


def parse_size(text: str) -> tuple[int, int]:
    """Parse ``WxH``."""
    try:
        width, height = text.lower().split('x')
        return int(width), int(height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not WxH, such as 256x256") from None


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description='Draw a small COCO-format data set of shapes')
    parser.add_argument('root', metavar='DIR', help='folder to create')
    parser.add_argument(
        '--train', dest='num_train', type=int, default=480, help='number of training images'
    )
    parser.add_argument(
        '--val', dest='num_val', type=int, default=120, help='number of validation images'
    )
    parser.add_argument('--size', type=parse_size, default=(256, 256), help='WxH in pixels')
    parser.add_argument('--seed', type=int, default=0, help='random seed')
    return parser.parse_args()


def main() -> None:
    """Draw the data set."""
    print(f'shapes data set: {make_shapes(**vars(parse_args()))}')


if __name__ == '__main__':
    run_tool(main)
