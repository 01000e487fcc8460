"""Write a trained detector for ONNX Runtime or OpenVINO: python tools/export.py CONFIG CHECKPOINT.

Example: python tools/export.py CONFIG CHECKPOINT --format onnx -o model.onnx
"""

import argparse

from evit_mm.deploy.export import export
from evit_mm.deploy.export.formats import BY_SUFFIX, FORMATS
from evit_mm.utils.cli import add_cfg_options, run_tool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Export a detector, checked against PyTorch')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--format', dest='file_format', choices=list(FORMATS), default='onnx')
    files = ' or '.join(f'FILE{suffix}' for suffix in BY_SUFFIX)
    parser.add_argument('-o', '--out', required=True, help=files)
    parser.add_argument(
        '--no-nms', dest='with_nms', action='store_false', help='all boxes and scores come out'
    )
    parser.add_argument(
        '--static', dest='dynamic', action='store_false', help="one image of the check images' size"
    )
    parser.add_argument('--half', action='store_true', help='float16')
    parser.add_argument('--int8', action='store_true', help='quantise; reports the AP lost')
    parser.add_argument('--calibration', help='images for --int8 (default: the training images)')
    parser.add_argument('--check', help='images to check on (default: the test images)')
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    """Export, and say how the file compares."""
    exported = export(**vars(parse_args()))
    print(f'{exported.file}: {exported.agreement or "all boxes and scores agree with PyTorch"}')
    for name, ap in exported.ap.items():
        print(f'AP {name}: {ap:.4f}')


if __name__ == '__main__':
    run_tool(main)
