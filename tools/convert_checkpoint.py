"""Convert a checkpoint: python tools/convert_checkpoint.py IN OUT [--to KIND]."""

import argparse

from evit_mm.checkpoint.conversion import TARGETS, convert_file
from evit_mm.utils.cli import run_tool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Convert a checkpoint; its format is detected automatically'
    )
    parser.add_argument('source', metavar='IN', help='file, URL, timm://NAME or hf-hub:OWNER/NAME')
    parser.add_argument('target', metavar='OUT', help='.pth, .bin or .safetensors file to write')
    parser.add_argument(
        '--to',
        choices=TARGETS,
        help='target format (default: detector if IN is a detector, otherwise backbone)',
    )
    return parser.parse_args()


def main() -> None:
    """Convert the checkpoint and print a summary."""
    print(convert_file(**vars(parse_args())).summary())


if __name__ == '__main__':
    run_tool(main)
