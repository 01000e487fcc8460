"""Write ``docs/stacks.md`` from ``docs/stacks/*.json``: python -m tests.smoke.table."""

import json
from pathlib import Path

from evit_mm.utils.environment import version_numbers

DOCS = Path(__file__).resolve().parents[2] / 'docs'
PAGE = DOCS / 'stacks.md'
HEADER = """\
# Tested combinations

Each row is one run of the smoke tests on a CPU. They cover import, every operator, loss, gradients
and prediction of each family of configs, training, resuming, testing, checkpoints, export, and
mmdet's own `tools/train.py`. A test is skipped if the stack does not support its feature. The
summary of pytest shows the reason. Other combinations may also work.

"""
FOOTER = """
To add a row:

1. Run `tox -e NAME -- --stack-report FILE.json`. In an existing environment, run
   `pytest tests/smoke --stack-report FILE.json`.
2. Move the file to the folder `docs/stacks`. Its name becomes the name of the row.
3. Run `python -m tests.smoke.table`, which writes this page.
"""
COLUMNS = (
    ('stack', 'name'),
    ('Python', 'python'),
    ('torch', 'torch'),
    ('torchvision', 'torchvision'),
    ('numpy', 'numpy'),
    ('opencv', 'opencv'),
    ('mmcv', 'mmcv'),
    ('operators', 'operators'),
    ('mmengine', 'mmengine'),
    ('mmdet', 'mmdet'),
    ('mmpretrain', 'mmpretrain'),
    ('passed', 'passed'),
    ('failed', 'failed'),
    ('skipped', 'skipped'),
    ('date', 'date'),
    ('commit', 'commit'),
)


def page() -> str:
    """Return the page, with rows sorted by Python and torch."""
    rows = [
        {'name': file.stem, **json.loads(file.read_text())} for file in DOCS.glob('stacks/*.json')
    ]
    rows.sort(
        key=lambda row: (version_numbers(row['python']), version_numbers(row['torch']), row['name'])
    )
    lines = ['| ' + ' | '.join(title for title, _ in COLUMNS) + ' |', '|---' * len(COLUMNS) + '|']
    for row in rows:
        cells = ('-' if row[key] is None else str(row[key]) for _, key in COLUMNS)
        lines.append('| ' + ' | '.join(cells) + ' |')
    return HEADER + '\n'.join(lines) + '\n' + FOOTER


if __name__ == '__main__':
    PAGE.write_text(page())
