"""A suite's figures as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .rows import Row, ratio_of
from .timing import median_and_quartiles


def markdown(
    title: str,
    rows: Sequence[Row],
    about: Mapping[str, Any],
    notes: Sequence[str],
    limit: float | None,
    unit: str,
) -> str:
    """Return the table for people.

    Args:
        title: Heading.
        rows: What was timed.
        about: Circumstances.
        notes: Sentences below the table.
        limit: Floating point operations per second of the machine, for the share of it.
        unit: ``'flop'``: ``work`` is shown as GFLOP/s and share of the limit; ``'images'``: as
            images per second; ``''``: not shown.
    """
    columns = ['', 'form', 'calls', 'ms, median (quartiles)', 'times faster (quartiles)']
    columns += {'flop': ['GFLOP/s', 'share of limit'], 'images': ['images/s']}.get(unit, [])
    lines = [f'# {title}', '', f'| {" | ".join(columns)} |', f'|{"---|" * len(columns)}']
    for row in rows:
        cells = [row.group, row.name, str(len(row.seconds))]
        if not row.seconds:
            lines.append(f'| {" | ".join([*cells, f"not run: {row.note}"])} |')
            continue
        middle, low, high = median_and_quartiles(row.seconds)
        cells.append(f'{middle * 1e3:.1f} ({low * 1e3:.1f} to {high * 1e3:.1f})')
        ratio = ratio_of(row, rows)
        cells.append('-' if ratio is None else f'{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})')
        if unit == 'flop':
            rate = row.work / middle if row.work else None
            cells.append(f'{rate / 1e9:.0f}' if rate else '-')
            cells.append(f'{rate / limit:.0%}' if rate and limit else '-')
        elif unit == 'images':
            cells.append(f'{row.work / middle:.1f}' if row.work else '-')
        if row.note:
            cells[1] += f' ({row.note})'
        lines.append(f'| {" | ".join(cells)} |')
    facts = '; '.join(f'{key}: {value}' for key, value in about.items())
    return '\n'.join([*lines, '', *(f'{note}\n' for note in notes), f'Measured with {facts}.', ''])


def draw_bars(title: str, rows: Sequence[Row], path: Path) -> None:
    """Draw medians and quartiles as bars, one colour per group."""
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
    """Write ``PATH.md``, ``PATH.json`` with every timed call, and ``PATH.png``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix('.md').write_text(text, encoding='utf-8')
    records = [{**asdict(row), 'seconds': [round(x, 6) for x in row.seconds]} for row in rows]
    content = json.dumps({'about': dict(about), 'rows': records}, indent=1) + '\n'
    path.with_suffix('.json').write_text(content, encoding='utf-8')
    draw_bars(title, rows, path.with_suffix('.png'))
