"""Serve a local demo page: python tools/demo.py [CONFIG] MODEL [[CONFIG] MODEL ...]."""

import argparse

from evit_mm.inference.demo import HOST, PORT, build_page, load_detectors, serve
from evit_mm.utils.cli import add_cfg_options, add_device, run_tool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Serve a local web page that shows the detections in uploaded pictures'
    )
    parser.add_argument(
        'models',
        nargs='+',
        metavar='[CONFIG] MODEL',
        help='checkpoint or exported file, after its config if that is elsewhere; once or more',
    )
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='initial score threshold (default: 0.3)'
    )
    parser.add_argument(
        '--host', default=HOST, help=f'address to listen on (default: {HOST}, only this machine)'
    )
    parser.add_argument('--port', type=int, default=PORT, help=f'port (default: {PORT})')
    add_device(parser)
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    """Serve the page until Ctrl-C."""
    args = parse_args()
    detectors = load_detectors(args.models, args.device, args.cfg_options)
    page = build_page(detectors, args.score_thr)
    print(f'{serve(page, args.host, args.port)} (press Ctrl-C to stop)', flush=True)
    page.block_thread()


if __name__ == '__main__':
    run_tool(main)
