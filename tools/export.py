"""Write a trained detector for ONNX Runtime or OpenVINO: python tools/export.py CONFIG CHECKPOINT.

Example: python tools/export.py CONFIG CHECKPOINT --format onnx --with-nms --dynamic -o model.onnx
"""

import argparse
import sys

from mmengine.config import DictAction

from evit_mm.deploy.export import export
from evit_mm.errors import EvitError


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Export a detector, checked against PyTorch')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--format', dest='file_format', choices=['onnx', 'openvino'], default='onnx'
    )
    parser.add_argument('-o', '--out', required=True, help='FILE.onnx or FILE.xml')
    parser.add_argument('--with-nms', action='store_true', help='end with NMS: 100 detections')
    parser.add_argument(
        '--dynamic', action='store_true', help='any batch, sizes that are multiples of 32'
    )
    parser.add_argument('--half', action='store_true', help='float16')
    parser.add_argument('--int8', action='store_true', help='quantise; reports the AP lost')
    parser.add_argument('--calibration', help='images for --int8 (default: the training images)')
    parser.add_argument('--check', help='images to check on (default: the test images)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='overrides, key.sub_key=value'
    )
    return parser.parse_args()


if __name__ == '__main__':
    try:
        exported = export(**vars(parse_args()))
    except EvitError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('interrupted')
    print(f'{exported.file}: {exported.agreement or "all boxes and scores as in PyTorch"}')
    for name, ap in exported.ap.items():
        print(f'AP {name}: {ap:.4f}')
