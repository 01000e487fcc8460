"""Write configs/metafile.yml, the list of models for OpenMMLab's tools."""

import argparse
import sys

from evit_mm.errors import EvitError
from evit_mm.model_index import FILE, metafile
from evit_mm.utils.package_files import project_path

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='only say whether it is up to date')
    args = parser.parse_args()
    try:
        text = metafile()
    except EvitError as error:
        sys.exit(f'error: {error}')
    if not args.check:
        project_path(FILE).write_text(text, encoding='utf-8')
    elif project_path(FILE).read_text(encoding='utf-8') != text:
        sys.exit(f'error: {FILE} is out of date; python {sys.argv[0]} writes it')
