"""Reproduce the paper's table on COCO: python tools/reproduce.py --data data/coco [options]."""

import argparse
import sys
from pathlib import Path

from evit_mm.compare.reproduction import (
    DEFAULT_CONFIGS,
    Settings,
    evaluate_released,
    reproduce,
)
from evit_mm.utils.cli import add_cfg_options, run_tool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Reproduce the paper's table on COCO 2017")
    text = 'folder of COCO 2017 in its own layout (default: data/coco)'
    parser.add_argument('--data', default='data/coco', metavar='DIR', help=text)
    text = 'number of GPUs; 0 is the CPU (default: all GPUs of the machine)'
    parser.add_argument('--gpus', type=int, metavar='N', help=text)
    text = f'configs to train (default: {", ".join(DEFAULT_CONFIGS)}) or to evaluate (default: all)'
    parser.add_argument('--configs', nargs='+', default=(), metavar='NAME', help=text)
    text = 'folder for trainings and table (default: work_dirs/reproduce)'
    parser.add_argument('--out', type=Path, default=Path('work_dirs/reproduce'), help=text)
    text = "train nothing, evaluate the authors' released detectors"
    parser.add_argument('--evaluate', action='store_true', help=text)
    text = 'only say what the command costs, after measuring it'
    parser.add_argument('--estimate', action='store_true', help=text)
    text = 'accept other data than COCO 2017; the table then says so'
    parser.add_argument('--rehearsal', action='store_true', help=text)
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    """Train or evaluate, and print the table."""
    args = parse_args()
    options = args.cfg_options or {}
    settings = Settings(args.data, args.out, args.gpus, options, args.rehearsal)
    if args.evaluate:
        rows, out = evaluate_released(settings, args.configs, args.estimate), args.out / 'released'
    else:
        names = args.configs or DEFAULT_CONFIGS
        rows, out = reproduce(settings, names, args.estimate), args.out
    if args.estimate:
        return
    print((out / 'table.md').read_text(encoding='utf-8'))
    print(f'written: {", ".join(map(str, sorted(out.glob("table.*"))))}')
    if any(row.failures for row in rows):
        sys.exit('some trainings failed (see above); run the same command to try them again')


if __name__ == '__main__':
    run_tool(main, 'run the same command to continue')
