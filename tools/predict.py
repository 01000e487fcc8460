"""Detect objects: python tools/predict.py [CONFIG] MODEL IMAGE|DIR|VIDEO|CAMERA --out DIR."""

import argparse
import sys

from evit_mm.inference import predict
from evit_mm.utils.cli import add_cfg_options, add_device, run_tool
from evit_mm.utils.text import counted


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Detect objects in an image, a folder of images, a video or a camera stream'
    )
    parser.add_argument(
        'config', nargs='?', help='config file (default: the one in the folder of a checkpoint)'
    )
    parser.add_argument('model', help='checkpoint or exported file')
    parser.add_argument('source', help='image, folder of images, video, camera (0, 1, ...)')
    parser.add_argument(
        '--out', dest='out_dir', required=True, help='folder for results.json and pictures or video'
    )
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='lowest score of a drawn box (default: 0.3)'
    )
    parser.add_argument('--batch-size', type=int, default=1, help='images per batch (default: 1)')
    parser.add_argument(
        '--tile', type=int, metavar='SIZE', help='cut larger images into tiles of SIZE pixels'
    )
    parser.add_argument(
        '--half', action='store_true', help='use float16 on a GPU, bfloat16 on a CPU'
    )
    parser.add_argument('--fuse', action='store_true', help='fuse the detector, which is faster')
    add_device(parser)
    add_cfg_options(parser)
    return parser.parse_intermixed_args()  # the options can stand between CONFIG, MODEL and SOURCE


def main() -> None:
    """Detect objects, and report skipped images."""
    args = parse_args()
    found = predict(**vars(args))
    number = counted(len(found.detections), 'detection')
    print(f'{number} written to {args.out_dir} (results.json, pictures)')
    print(found.speed)
    if found.faults:
        sys.exit('error: ' + '\n  '.join(found.faults))


if __name__ == '__main__':
    run_tool(main)
