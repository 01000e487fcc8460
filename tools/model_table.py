"""Write the table of all configs: python tools/model_table.py [-o docs/models.md]."""

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path

from rich.progress import track

from evit_mm.errors import EvitError
from evit_mm.model_table import as_page, read_row
from evit_mm.utils.package_files import project_path

DOCS = project_path('docs')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Write the table of all configs')
    parser.add_argument('-o', '--out', type=Path, default=DOCS / 'models.md', help='page to write')
    return parser.parse_args()


def main(out: Path) -> None:
    """Count every config, then write."""
    configs = sorted(project_path('configs').glob('*.py'))
    with redirect_stdout(sys.stderr):  # the libraries' logs
        rows = [read_row(path) for path in track(configs, 'counting', disable=None)]
    out.write_text(as_page(rows, DOCS), encoding='utf-8')
    print(out)


if __name__ == '__main__':
    try:
        main(parse_args().out)
    except (EvitError, OSError) as error:
        sys.exit(f'error: {error}')
