"""Detect objects: python tools/predict.py CONFIG CHECKPOINT IMAGE|DIR|VIDEO|CAMERA --out DIR."""

import argparse
import sys

from mmengine.config import DictAction

from evit_mm.errors import EvitError
from evit_mm.inference import predict


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Detect objects in an image, a folder of them, a video, or before a camera'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('source', help='image, folder of images, video, camera (0, 1, ...)')
    parser.add_argument(
        '--out', dest='out_dir', required=True, help='folder for pictures or video, results.json'
    )
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score that is drawn')
    parser.add_argument('--batch-size', type=int, default=1, help='images at once (default: 1)')
    parser.add_argument('--half', action='store_true', help='float16 on a GPU, bfloat16 on a CPU')
    parser.add_argument('--fuse', action='store_true', help='take the fast form of the network')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: a GPU if there is one)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='overrides, key.sub_key=value'
    )
    return parser.parse_args()


if __name__ == '__main__':
    args = parse_args()
    try:
        found = predict(**vars(args))
    except EvitError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('interrupted')
    print(f'{len(found.detections)} detections; pictures and results.json: {args.out_dir}')
    print(found.speed)
    if found.faults:
        sys.exit('error: ' + '\n  '.join(found.faults))
