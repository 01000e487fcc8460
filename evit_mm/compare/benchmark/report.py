"""Output of a suite as a table, a JSON file and a chart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...utils.files import write_atomically
from ...utils.text import markdown_table
from .timing import Row, median_and_quartiles, ratio_of

# unit of a row's work, and its columns; the limit is the rate of the machine's large convolution
UNITS = {'flop': ('GFLOP/s', 'share of limit'), 'images': ('images/s',), '': ()}


def markdown(
    title: str, rows: Sequence[Row], about: Mapping[str, Any], notes: Sequence[str], unit: str
) -> str:
    """Return the table, the notes and the facts about the machine as Markdown."""
    columns = ['', 'form', 'calls', 'ms, median (quartiles)', 'times faster (quartiles)']
    table = markdown_table([*columns, *UNITS[unit]], [_cells(row, rows, unit) for row in rows])
    facts = '; '.join(f'{key}: {value}' for key, value in about.items())
    lines = [f'# {title}', '', '## Times', '', *table, '', '## Method', '']
    lines += [f'{note}\n' for note in notes]
    return '\n'.join([*lines, f'Measured with {facts}.', ''])


def _cells(row: Row, rows: Sequence[Row], unit: str) -> list[str]:
    if not row.seconds:
        return [row.group, row.name, '0', f'not run: {row.note}']
    middle, low, high = (1e3 * x for x in median_and_quartiles(row.seconds))
    ratio = ratio_of(row, rows)
    cells = [
        row.group,
        f'{row.name} ({row.note})' if row.note else row.name,
        str(len(row.seconds)),
        f'{middle:.1f} ({low:.1f} to {high:.1f})',
        '-' if ratio is None else f'{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})',
    ]
    rate = _rate(row)
    if rate is None:
        return cells + ['-'] * len(UNITS[unit])
    if unit == 'flop':
        limit = next((_rate(other) for other in rows if other.name == 'convolution'), None)
        return [*cells, f'{rate / 1e9:.0f}', f'{rate / limit:.0%}' if limit else '-']
    return [*cells, f'{rate:.1f}'] if unit else cells


def _rate(row: Row) -> float | None:
    """Return the work per second of a row."""
    return row.work / median_and_quartiles(row.seconds)[0] if row.work and row.seconds else None


def draw_bars(title: str, rows: Sequence[Row], path: Path) -> None:
    """Draw the medians as bars with the quartiles, one colour per group."""
    from matplotlib.figure import Figure

    timed = [row for row in rows if row.seconds]
    groups = list(dict.fromkeys(row.group for row in timed))
    figure = Figure(figsize=(9, 1 + 0.28 * len(timed)), layout='constrained')
    axes = figure.subplots()
    for place, row in enumerate(timed):
        middle, low, high = (1e3 * x for x in median_and_quartiles(row.seconds))
        error = [[middle - low], [high - middle]]
        color = f'C{groups.index(row.group) % 10}'
        axes.barh(place, middle, xerr=error, color=color, ecolor='0.3')
        axes.text(high, place, f' {middle:.1f}', va='center', fontsize=8)
    axes.set_yticks(range(len(timed)), [f'{row.group}: {row.name}' for row in timed], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel('ms, median and quartiles')
    axes.set_title(title)
    figure.savefig(path, dpi=100)


def write(path: Path, title: str, text: str, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """Write ``PATH.md``, ``PATH.json`` with all timed calls, and ``PATH.png``."""
    write_atomically(path.with_suffix('.md'), text.encode())
    records = [{**asdict(row), 'seconds': [round(x, 6) for x in row.seconds]} for row in rows]
    content = json.dumps({'about': dict(about), 'rows': records}, indent=1) + '\n'
    write_atomically(path.with_suffix('.json'), content.encode())
    draw_bars(title, rows, path.with_suffix('.png'))
