"""Write ``docs/stacks.md`` from ``docs/stacks/*.json``: python -m tests.smoke.table."""

import json
from pathlib import Path

from evit_mm.utils.environment import version_numbers

DOCS = Path(__file__).resolve().parents[2] / 'docs'
PAGE = DOCS / 'stacks.md'
HEADER = """\
# Tested combinations

Each row is one run of the smoke suite on a CPU: import, every operator, a loss with gradients and
a prediction of each family of configs, training, resuming, testing, checkpoints, export, and
mmdet's own training tool. What a stack cannot do is skipped; pytest's summary has the reasons.

"""
FOOTER = """
A row is a file in the folder `docs/stacks`, which `tox -e NAME -- --stack-report FILE.json` writes
or, in an environment that is there already, `pytest tests/smoke --stack-report FILE.json`;
`python -m tests.smoke.table` makes this page of them. Other combinations may work as well; these
have been run.
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
    """Return the page, rows by Python and torch."""
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
