"""Run a tool from any folder, for example python -m evit_mm train CONFIG."""

from __future__ import annotations

import runpy
import sys

from .utils.package_files import project_path


def main() -> None:
    """Run ``tools/NAME.py`` with the arguments after its name."""
    tools = {file.stem: file for file in sorted(project_path('tools').glob('*.py'))}
    usage = (
        f'usage: python -m evit_mm TOOL [options]\ntools: {", ".join(tools)}\n'
        f'configs (give a name or a path): {project_path("configs")}\n'
    )
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help'):
        sys.stdout.write(usage)
        return
    if sys.argv[1] not in tools:
        sys.exit(f"error: unknown tool '{sys.argv[1]}'\n{usage.rstrip()}")
    tool = str(tools[sys.argv[1]])
    sys.argv = [tool, *sys.argv[2:]]
    runpy.run_path(tool, run_name='__main__')


if __name__ == '__main__':
    main()
