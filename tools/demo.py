"""A local page to try detectors on: python tools/demo.py CONFIG CHECKPOINT [CONFIG CHECKPOINT]."""

import argparse
import sys

from mmengine.config import DictAction

from evit_mm.errors import EvitError
from evit_mm.inference.demo import HOST, PORT, build_page, load_detectors, serve


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Drop a picture on a local page, see detections')
    parser.add_argument(
        'pairs', nargs='+', metavar='CONFIG CHECKPOINT', help='one detector or several'
    )
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score at first')
    parser.add_argument(
        '--host', default=HOST, help=f'address to listen on (default: {HOST}, this machine alone)'
    )
    parser.add_argument('--port', type=int, default=PORT, help=f'port (default: {PORT})')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: a GPU if there is one)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='overrides, key.sub_key=value'
    )
    return parser.parse_args()


if __name__ == '__main__':
    args = parse_args()
    try:
        detectors = load_detectors(args.pairs, args.device, args.cfg_options)
        page = build_page(detectors, args.score_thr)
        print(f'{serve(page, args.host, args.port)} (Ctrl-C ends it)', flush=True)
    except EvitError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('interrupted')
    page.block_thread()
