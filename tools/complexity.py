"""Count parameters and FLOPs: python tools/complexity.py [CONFIG ...] [options]."""

import argparse
import csv
import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from rich.progress import track

from evit_mm.compare.complexity import as_markdown, as_records, measure
from evit_mm.utils.cli import run_tool
from evit_mm.utils.package_files import project_path


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Count parameters and FLOPs (multiply-adds)')
    configs = 'config files (default: all RetinaNet and Mask R-CNN configs for COCO)'
    parser.add_argument('configs', nargs='*', metavar='CONFIG', help=configs)
    size = {'nargs': 2, 'default': [1333, 800], 'metavar': ('W', 'H')}
    parser.add_argument('--size', type=int, **size, help='image size (default: 1333 800)')
    parser.add_argument('--format', choices=['markdown', 'csv', 'json'], default='markdown')
    parser.add_argument('-o', '--out', type=Path, help='output file (default: print the table)')
    args = parser.parse_args()
    if min(args.size) < 32:
        parser.error(f'--size must be at least 32 32, got {args.size}')
    found = sorted(project_path('configs').glob('*_coco.py'))
    args.configs = args.configs or [p for p in found if p.stem.startswith(('retina', 'mask'))]
    return args


def main() -> None:
    """Count, and print or write the table."""
    args = parse_args()
    # progress bar and logs of libraries go to stderr, so that stdout contains only the table
    configs = track(args.configs, 'counting', disable=not sys.stderr.isatty())
    with redirect_stdout(sys.stderr):
        rows = [measure(config, tuple(args.size)) for config in configs]
    if args.format == 'markdown':
        text = as_markdown(rows)
    elif args.format == 'json':
        text = json.dumps(as_records(rows), indent=1)
    else:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, as_records(rows)[0])
        writer.writeheader()
        writer.writerows(as_records(rows))
        text = buffer.getvalue().rstrip()
    if args.out:
        args.out.write_text(text + '\n', encoding='utf-8')
    else:
        print(text)


if __name__ == '__main__':
    run_tool(main)
