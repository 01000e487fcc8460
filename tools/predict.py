"""Detect objects in images: python tools/predict.py CONFIG CHECKPOINT IMAGE_OR_DIR --out DIR."""

import argparse
import sys

from mmengine.config import DictAction

from evit_mm.engine import predict
from evit_mm.errors import EvitError


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Detect objects in an image or a folder of them')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('source', metavar='IMAGE_OR_DIR', help='image, or folder of images')
    parser.add_argument(
        '--out', dest='out_dir', required=True, help='folder for pictures and results.json'
    )
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score that is drawn')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: a GPU if there is one)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='overrides, key.sub_key=value'
    )
    return parser.parse_args()


if __name__ == '__main__':
    args = parse_args()
    try:
        results, faults = predict(**vars(args))
    except EvitError as error:
        sys.exit(f'error: {error}')
    print(f'{len(results)} detections; pictures and results.json: {args.out_dir}')
    if faults:
        sys.exit('error: ' + '\n  '.join(faults))
