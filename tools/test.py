"""Evaluate a detector or classifier: python tools/test.py CONFIG CHECKPOINT [options]."""

import argparse

from evit_mm.deploy.export.evaluation import evaluate
from evit_mm.utils.cli import add_cfg_options, add_device, add_launcher, parse_with_rank, run_tool


def parse_args() -> argparse.Namespace:
    """Read the command line; flags and meanings are mmdet's where it has them."""
    parser = argparse.ArgumentParser(description='Evaluate a detector or classifier')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='where the log goes')
    parser.add_argument('--out', help='FILE.pkl: all predictions; FILE.json: COCO-style results')
    parser.add_argument('--show-dir', help='folder for pictures, truth beside detections')
    parser.add_argument('--fuse', action='store_true', help='test the fast form of the network')
    add_device(parser)
    add_cfg_options(parser)
    add_launcher(parser)
    return parse_with_rank(parser)


def main() -> None:
    """Evaluate."""
    args = parse_args()
    evaluate(**vars(args))
    if args.show_dir:
        print(f'pictures (left: ground truth, right: detections): {args.show_dir}')


if __name__ == '__main__':
    run_tool(main)
