"""Train a detector or classifier: python tools/train.py CONFIG [options]."""

import argparse
import os
import sys

from evit_mm.runner.train import train
from evit_mm.utils.cli import add_cfg_options, add_device, add_launcher, parse_with_rank, run_tool


def parse_args() -> argparse.Namespace:
    """Parse the command line, with the flags of mmdet where it has them."""
    parser = argparse.ArgumentParser(description='Train a detector or classifier')
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from the given checkpoint, by default the last one in the work dir',
    )
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate to the batch size'
    )
    parser.add_argument(
        '--deterministic', action='store_true', help='use deterministic algorithms only'
    )
    parser.add_argument(
        '--track',
        nargs='+',
        default=(),
        metavar='NAME',
        help='also log scalars and pictures of predictions to tensorboard, mlflow or wandb',
    )
    parser.add_argument('--seed', type=int, help='random seed')
    add_device(parser)
    add_cfg_options(parser)
    add_launcher(parser)
    return parse_with_rank(parser)


def main() -> None:
    """Run the training."""
    train(**vars(parse_args()))


if __name__ == '__main__':
    again = 'the same command' if '--resume' in sys.argv else 'the same command with --resume'
    # the Makefile gives the command that its user has typed
    run_tool(main, f'run {os.environ.get("EVIT_MM_CONTINUE", again)} to continue')
