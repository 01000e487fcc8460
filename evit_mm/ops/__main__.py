"""Provide mmcv's operators, then run a program: ``python -m evit_mm.ops PROGRAM.py ...``.

Some programs import mmdet's models or data sets before they read the config, for example mmdet's
``tools/test.py``. For these programs, ``custom_imports`` in the config is too late.
"""

import os
import runpy
import sys


def main() -> None:
    """Run the program with the arguments that follow its name."""
    if len(sys.argv) < 2 or not os.path.isfile(sys.argv[1]):
        name = f"'{sys.argv[1]}' is not a file; " if len(sys.argv) > 1 else ''
        sys.exit(f'{name}usage: python -m evit_mm.ops PROGRAM.py [arguments of the program]')
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))  # as Python does for a script
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
