"""Train a detector or classifier: python tools/train.py CONFIG, or --data DIR, and options."""

import argparse

from evit_mm.runner.data_config import DEFAULT_MODEL, config_for_data, data_models
from evit_mm.runner.train import how_to_continue, train
from evit_mm.utils.cli import add_cfg_options, add_device, add_launcher, parse_with_rank, run_tool
from evit_mm.utils.distributed import is_first_process


def parse_args() -> argparse.Namespace:
    """Parse the command line, with the flags of mmdet where it has them."""
    parser = argparse.ArgumentParser(description='Train a detector or classifier')
    parser.add_argument('config', nargs='?', help='config file')
    text = 'data folder (COCO, YOLO, VOC, CVAT, LabelMe or Label Studio) instead of a config'
    parser.add_argument('--data', metavar='DIR', help=text)
    names = ', '.join(data_models())
    parser.add_argument('--model', help=f'for --data: {names} (default: {DEFAULT_MODEL})')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    text = 'resume from the given checkpoint, by default the last one in the work dir'
    parser.add_argument('--resume', nargs='?', const='auto', help=text)
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    text = 'images per process (train_dataloader.batch_size), or auto: the most that fit on a GPU'
    parser.add_argument('--batch-size', metavar='N', help=text)
    text = 'scale the learning rate to the batch size'
    parser.add_argument('--auto-scale-lr', action='store_true', help=text)
    text = 'use deterministic algorithms only'
    parser.add_argument('--deterministic', action='store_true', help=text)
    text = (
        'end after N evaluations without an improvement (default_hooks.early_stopping; default: 5)'
    )
    parser.add_argument('--early-stopping', nargs='?', const=5, type=int, metavar='N', help=text)
    text = 'also log scalars and pictures to tensorboard, mlflow or wandb'
    parser.add_argument('--track', nargs='+', default=(), metavar='NAME', help=text)
    parser.add_argument('--seed', type=int, help='random seed')
    add_device(parser)
    add_cfg_options(parser)
    add_launcher(parser)
    args = parse_with_rank(parser)
    if (args.config is None) == (args.data is None) or (args.model and not args.data):
        parser.error('give either a config or --data DIR, and --model only with --data')
    return args


def main() -> None:
    """Run the training."""
    args = vars(parse_args())
    data, model = args.pop('data'), args.pop('model') or DEFAULT_MODEL
    if data:
        args['config'], lines = config_for_data(data, model, args['work_dir'])
        if is_first_process():
            print(*lines, sep='\n', flush=True)
    train(**args)


if __name__ == '__main__':
    run_tool(main, how_to_continue)
