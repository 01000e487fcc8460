"""Train a detector or classifier: python tools/train.py CONFIG [options]."""

import argparse
import os
import sys

from mmengine.config import DictAction

from evit_mm.errors import EvitError
from evit_mm.runner.engine import train


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
    try:
        train(**vars(parse_args()))
    except EvitError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('interrupted; the same command with --resume goes on from the last checkpoint')
