"""Run a program after mmcv was given its operators: ``python -m evit_mm.ops PROGRAM.py ...``.

A config's ``custom_imports`` come too late for a program that imports mmdet's models or data sets
before it reads the config, as mmdet's own ``tools/test.py`` does.
"""

import os
import runpy
import sys


def main() -> None:
    """Run the program that the command line names, with the arguments that follow."""
    if len(sys.argv) < 2 or not os.path.isfile(sys.argv[1]):
        name = f"'{sys.argv[1]}' is not a file; " if len(sys.argv) > 1 else ''
        sys.exit(f'{name}usage: python -m evit_mm.ops PROGRAM.py [arguments of the program]')
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))  # as Python does for a program
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
