"""Export a detector or classifier: python tools/export.py CONFIG CHECKPOINT -o FILE.

Example: python tools/export.py CONFIG CHECKPOINT --format onnx -o model.onnx
"""

import argparse

from evit_mm.deploy.export import export
from evit_mm.deploy.export.formats import BY_SUFFIX, FORMATS
from evit_mm.utils.cli import add_cfg_options, run_tool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Export a detector or classifier, and compare the file with PyTorch'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--format', dest='file_format', choices=list(FORMATS), default='onnx')
    files = ' or '.join(f'FILE{suffix}' for suffix in BY_SUFFIX)
    parser.add_argument('-o', '--out', required=True, help=files)
    nms, precision = (parser.add_mutually_exclusive_group() for _ in range(2))
    for group, flag, value, text in (
        (nms, '--no-nms', 'none', 'return all boxes and scores'),
        (nms, '--tensorrt-nms', 'tensorrt', 'end with EfficientNMS_TRT, for TensorRT only'),
        (precision, '--half', 'float16', 'use float16'),
        (precision, '--bfloat16', 'bfloat16', 'use bfloat16'),
        (precision, '--int8', 'int8', 'quantise to int8 and report the AP or accuracy'),
    ):
        dest, default = ('nms', 'standard') if group is nms else ('precision', 'float32')
        group.add_argument(
            flag, dest=dest, action='store_const', const=value, default=default, help=text
        )
    parser.add_argument(
        '--static',
        dest='dynamic',
        action='store_false',
        help='accept only one image, of the size of the first check image',
    )
    parser.add_argument(
        '--calibration', metavar='DIR', help='images for --int8 (default: the training images)'
    )
    parser.add_argument(
        '--check', metavar='DIR', help='images for the comparison (default: the test images)'
    )
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    """Export the model and print the agreement with PyTorch."""
    exported = export(**vars(parse_args()))
    print(f'{exported.file}: {exported.agreement or "all boxes and scores agree with PyTorch"}')
    for name, ap in exported.ap.items():
        print(f'{exported.metric} {name}: {ap:.4f}')


if __name__ == '__main__':
    run_tool(main)
