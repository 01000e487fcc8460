"""The backbones' comparison, as ``tools/compare.py`` wrote it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from .runs import Run

TABLE = 'table.json'


class Comparison(NamedTuple):
    """What the page shows of a comparison.

    Attributes:
        rows: Per backbone ``name``, ``family``, ``AP``, ``low`` and ``high`` over its seeds in
            percent, ``latency`` in ms and ``flops`` in G, None where it was not measured.
        about: A sentence about the whole.
    """

    rows: list[dict[str, Any]]
    about: str


def read_found_table(runs: Sequence[Run]) -> Comparison | None:
    """Read the first table that lies in or beside a work dir; a foreign one becomes a run's note.

    ``tools/compare.py`` puts its runs into ``OUT/runs/`` and its table into ``OUT``.
    """
    for run in runs:
        folder = run.folder.resolve()
        for place in (folder, folder.parent, folder.parent.parent):
            if not (place / TABLE).is_file():
                continue
            try:
                return read_table(place / TABLE)
            except DataError as error:  # nobody asked for this file
                note = f'No comparison of backbones is shown: {error}.'
                if not any(note in other.notes for other in runs):
                    run.notes.append(note)
    return None


def read_table(path: Path) -> Comparison:
    """Read a comparison's table.

    Raises:
        DataError: It is not there or not such a table.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        rows = [_row(row) for row in content['rows']]
        about = content['about']
        facts = [f'{key}: {_text(about[key])}' for key in about if key != 'classes']
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise DataError(f"'{path}' is not a table of tools/compare.py ({reason})") from None
    return Comparison(rows, '; '.join(facts))


def _row(row: dict[str, Any]) -> dict[str, Any]:
    found = [100 * float(run['mAP']) for run in row['runs'] if run['mAP'] >= 0]
    latency = row['latency_seconds']
    return {
        'name': str(row['label']),
        'family': 'EfficientViT' if str(row['name']).startswith('evit') else 'other',
        'AP': sum(found) / len(found) if found else None,
        'low': min(found, default=None),
        'high': max(found, default=None),
        'latency': 1000 * float(latency['median']) if latency else None,
        'flops': float(row['macs']) / 1e9 if row['macs'] else None,
    }


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ', '.join(map(str, value))
    return str(value) if value != {} else 'none'
