"""Evaluate a detector or classifier: python tools/test.py CONFIG CHECKPOINT [options]."""

import argparse
import os
import sys

from mmengine.config import DictAction

from evit_mm.errors import EvitError
from evit_mm.runner.engine import test


def parse_args() -> argparse.Namespace:
    """Read the command line; flags and meanings are mmdet's where it has them."""
    parser = argparse.ArgumentParser(description='Evaluate a detector or classifier')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='where the log goes')
    parser.add_argument('--out', help='FILE.pkl: all predictions; FILE.json: COCO-style results')
    parser.add_argument('--show-dir', help='folder for pictures, truth beside detections')
    parser.add_argument('--fuse', action='store_true', help='test the fast form of the network')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: a GPU if there is one)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='overrides, key.sub_key=value'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    del args.local_rank
    return args


if __name__ == '__main__':
    args = parse_args()
    try:
        test(**vars(args))
    except EvitError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('interrupted')
    if args.show_dir:
        print(f'pictures (left: ground truth, right: detections): {args.show_dir}')
