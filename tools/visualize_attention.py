"""Draw attention maps: python tools/visualize_attention.py CONFIG CHECKPOINT IMAGE -o DIR."""

import argparse

from evit_mm.inference.attention_maps import visualize_attention
from evit_mm.utils.cli import add_cfg_options, run_tool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Draw the attention of each head on an image, and measure their similarity'
    )
    parser.add_argument('config', help='config of a detector or a classifier')
    parser.add_argument(
        'checkpoint', help='checkpoint of the model or its backbone, or "random" (untrained)'
    )
    parser.add_argument('image', help='image file')
    parser.add_argument('-o', '--out', dest='out_dir', required=True, help='output folder')
    parser.add_argument(
        '--point',
        nargs=2,
        type=float,
        metavar=('X', 'Y'),
        help='draw the attention of this point, from 0 to 1 (default: mean over all points)',
    )
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    """Draw the maps and print the similarities."""
    args = parse_args()
    measured = visualize_attention(**vars(args))
    print('mean over pairs of heads: attention divergence (bits), attention cosine, output CKA')
    for stage in measured['stages']:
        print(
            f'stage {stage["stage"]}:',
            *('-' if value is None else f'{value:.3f}' for value in list(stage.values())[1:]),
        )
    print(f'pictures and similarity.json written to {args.out_dir}')


if __name__ == '__main__':
    run_tool(main)
