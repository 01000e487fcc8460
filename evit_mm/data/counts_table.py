"""A table of what a run trains on and evaluates."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table

from .counts import EMPTY, IGNORE, OTHER, OUTSIDE, Counts

MOST_CLASSES = 10  # rows for classes; the smaller classes share one row
SIZES = {'small': ', to 32² px', 'medium': ', 32² to 96² px', 'large': ', from 96² px'}
SKIPPED = {
    IGNORE: 'skipped: "ignore": 1',
    EMPTY: 'skipped: without area, or a side below one pixel',
    OUTSIDE: 'skipped: outside of the image',
    OTHER: 'skipped: other categories',
}


def counts_table(counts: Mapping[str, Counts], shared: Mapping[str, int]) -> str:
    """Return a table with one column for each split.

    Args:
        counts: What each split uses.
        shared: Number of images of a split that are also training images.
    """
    table = Table('', box=box.MARKDOWN)
    for split in counts:
        table.add_column(split, justify='right')
    for name, numbers in _rows(list(counts.values())):
        table.add_row(name, *(f'{number:,}' for number in numbers))
    if shared:
        table.add_row('images that are also in train', *(f'{shared.get(k, 0):,}' for k in counts))
    console = Console(file=io.StringIO(), width=40 + 16 * (1 + len(counts)), color_system=None)
    console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return '\n'.join(line.rstrip() for line in lines if line.strip())


def _rows(splits: list[Counts]) -> list[tuple[str, list[int]]]:
    """Return the rows. A row that explains a difference is left out if there is none."""
    rows = [('images', [len(split.images) for split in splits])]
    for reason in dict.fromkeys(key for split in splits for key in split.skipped_images):
        images = [len(split.skipped_images.get(reason, ())) for split in splits]
        rows += [(f'skipped by {reason}', images)] if any(images) else []
    rows.append(('objects', [len(split.objects) for split in splits]))
    if any(split.objects for split in splits):
        rows += _class_rows(splits)
        sizes = [split.per_size() for split in splits]
        rows += [(f'- {size}{SIZES[size]}', [n[size] for n in sizes]) for size in sizes[0]]
    ignored = [len(split.ignored) for split in splits]
    rows += [('ignored regions (crowds)', ignored)] if any(ignored) else []
    for reason, name in SKIPPED.items():
        skipped = [len(split.skipped.get(reason, ())) for split in splits]
        rows += [(name, skipped)] if any(skipped) else []
    return rows


def _class_rows(splits: list[Counts]) -> list[tuple[str, list[int]]]:
    numbers = [split.per_class() for split in splits]
    total: Counter[str] = Counter()
    for of_split in numbers:
        total.update(of_split)
    names = list(total)
    shown = names
    if len(names) > MOST_CLASSES:
        shown = [name for name, _ in total.most_common(MOST_CLASSES)]
    rows = [(f'- {name}', [n.get(name, 0) for n in numbers]) for name in shown]
    rest = [name for name in names if name not in shown]
    if rest:
        rows.append(
            (f'- {len(rest)} more', [sum(n.get(name, 0) for name in rest) for n in numbers])
        )
    return rows
