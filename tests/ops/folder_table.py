"""The table of ``mmdet_folders.py``: the differences between two kinds of operators."""

from __future__ import annotations

import math
from collections import Counter

TOLERANCE = 1e-4
SMALL_SHARE = 1e-3  # of the norm of all values; differences of smaller parts are relative to it


def distance(first: object, second: object, scale: float = 0.0) -> float:
    """Return the largest difference of two values, relative to the larger one or to ``scale``."""
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return math.inf
        return max((distance(first[key], second[key], scale) for key in first), default=0.0)
    if isinstance(first, list):
        if len(first) != len(second):
            return math.inf
        scale = max([scale, *(abs(x) for x in first if math.isfinite(x))])
        return max(
            (distance(*pair, scale) for pair in zip(first, second, strict=True)), default=0.0
        )
    if first == second or (first != first and second != second):
        return 0.0
    gap = abs(first - second) / max(abs(first), abs(second), scale)
    return gap if math.isfinite(gap) else math.inf


def differences(first: dict, second: dict) -> dict[str, float | str]:
    """Return the largest difference of loss, gradients and prediction, or what failed."""
    found: dict[str, float | str] = {}
    for stage, parts in (('train', ('losses', 'gradients')), ('predict', ('found',))):
        one, two = (result.get(stage, result) for result in (first, second))
        for part in parts:
            if part in one and part in two and not any(one[part].values()):
                found[part] = 'nothing found'
            elif part in one and part in two:
                sizes = one[part].values() if stage == 'train' else ()
                whole = math.hypot(*(x[0] if isinstance(x, list) else x for x in sizes))
                found[part] = distance(one[part], two[part], SMALL_SHARE * whole)
            elif part in one or part in two:
                found[part] = f'only {(first if part in one else second)["provided"]}'
            else:
                found[part] = 'neither'
    return found


def compare(first: dict[str, dict], others: list[dict[str, dict]]) -> str:
    """Return a table of differences, and the number of configs by state.

    Args:
        first: Results by folder.
        others: Results with other operators or with noise. The states compare the first of them.
    """
    rows, states = [], Counter()
    for folder, result in first.items():
        if folder not in others[0]:
            continue
        both = (result, others[0][folder])
        state = _state(differences(*both))
        states[state] += 1
        stages = [one[stage] for one in both for stage in ('train', 'predict') if stage in one]
        used = sorted({name for stage in stages for name in stage['operators']})
        errors = sorted({part['error'] for part in (*both, *stages) if 'error' in part})
        cells = [
            f'{x:.0e}' if isinstance(x, float) else x
            for other in others
            if folder in other
            for x in differences(result, other[folder]).values()
        ]
        name = result['config'] or folder
        rows.append([name, state, *cells, ', '.join(used), '; '.join(errors)])
    heads = ['config', 'state', *('loss', 'gradients', 'prediction') * len(others)]
    heads += ['operators', 'errors']
    table = [heads, ['---'] * len(heads), *rows]
    lines = ['| ' + ' | '.join(row) + ' |' for row in table]
    counts = [f'- {state}: {count}' for state, count in states.items()]
    return '\n'.join([*lines, '', 'Configs by state:', '', *counts])


def _state(found: dict[str, float | str]) -> str:
    numbers = [x for x in found.values() if isinstance(x, float)]
    words = sorted({x for x in found.values() if isinstance(x, str)})
    if numbers:
        words.insert(0, 'equal' if max(numbers) <= TOLERANCE else 'different')
    return ', '.join(words)
