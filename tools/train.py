"""Train a detector or classifier: python tools/train.py CONFIG [options]."""

import argparse

from evit_mm.runner.train import train
from evit_mm.utils.cli import add_cfg_options, add_device, add_launcher, parse_with_rank, run_tool


def parse_args() -> argparse.Namespace:
    """Read the command line; flags and meanings are mmdet's where it has them."""
    parser = argparse.ArgumentParser(description='Train a detector or classifier')
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='where logs and checkpoints go')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from the last checkpoint in the work dir, or from the one given',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate to the batch size'
    )
    parser.add_argument(
        '--deterministic', action='store_true', help='the same bits in each run on one machine'
    )
    parser.add_argument(
        '--track',
        nargs='+',
        default=(),
        metavar='NAME',
        help='tensorboard, mlflow, wandb: scalars and pictures of predictions go there too',
    )
    parser.add_argument('--seed', type=int, help='seed of everything random')
    add_device(parser)
    add_cfg_options(parser)
    add_launcher(parser)
    return parse_with_rank(parser)


def main() -> None:
    """Train."""
    train(**vars(parse_args()))


if __name__ == '__main__':
    run_tool(main, 'interrupted; the same command with --resume goes on from the last checkpoint')
