"""What each head attends to: python tools/visualize_attention.py CONFIG CHECKPOINT IMAGE -o DIR."""

import argparse

from evit_mm.inference.attention_maps import visualize_attention
from evit_mm.utils.cli import add_cfg_options, run_tool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Draw each head's attention on an image, and measure how alike the heads are"
    )
    parser.add_argument('config', help='config of a detector or a classifier')
    parser.add_argument('checkpoint', help="its checkpoint, a backbone's, or the word random")
    parser.add_argument('image', help='image file')
    parser.add_argument('-o', '--out', dest='out_dir', required=True, help='folder to write to')
    parser.add_argument(
        '--point',
        nargs=2,
        type=float,
        metavar=('X', 'Y'),
        help='draw where this point of the image looks (0 to 1), not the mean over all',
    )
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    """Draw and measure."""
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
