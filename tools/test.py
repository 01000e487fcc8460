"""Evaluate a detector or classifier: python tools/test.py CONFIG CHECKPOINT [options]."""

import argparse

from evit_mm.deploy.export.evaluation import evaluate
from evit_mm.utils.cli import add_cfg_options, add_device, add_launcher, parse_with_rank, run_tool


def parse_args() -> argparse.Namespace:
    """Parse the command line, with the flags of mmdet where it has them."""
    parser = argparse.ArgumentParser(description='Evaluate a detector or classifier')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='folder for the log')
    parser.add_argument(
        '--out', help='file for the results: FILE.pkl (all predictions) or FILE.json (COCO format)'
    )
    parser.add_argument(
        '--show-dir', help='folder for pictures with ground truth (left) and detections (right)'
    )
    parser.add_argument('--fuse', action='store_true', help='evaluate the fused model')
    text = 'test-time augmentation by tta_model and tta_pipeline of the config, by default flips; '
    text += 'numbers such as 0.75 1 1.25 also scale the image'
    parser.add_argument('--tta', nargs='*', type=float, metavar='SCALE', help=text)
    add_device(parser)
    add_cfg_options(parser)
    add_launcher(parser)
    return parse_with_rank(parser)


def main() -> None:
    """Run the evaluation."""
    args = parse_args()
    evaluate(**vars(args))
    if args.show_dir:
        print(f'pictures (left: ground truth, right: detections): {args.show_dir}')


if __name__ == '__main__':
    run_tool(main)
