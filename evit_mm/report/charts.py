"""The page's charts, as Vega-Lite specifications made by altair; data are written into them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from ..evaluation.statistics import Figures, rounded
from ..evaluation.tide import KINDS

MAX_POINTS = 400  # of a curve; more than a screen shows
MAX_CURVES = 80  # of classes, on a page
MAX_CONFUSED = 30  # classes in a confusion matrix
HEIGHT = 260
INK, MUTED, GRID = '#1b2733', '#5b6b7a', '#e4e9ee'
# Okabe and Ito's colours, which colour-blind people tell apart; yellow is too pale on white
COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#7A5195', '#444444']
KIND_COLOURS = dict(
    zip(KINDS, ('#CC79A7', '#E69F00', '#7A5195', '#56B4E9', '#D55E00', '#0072B2'), strict=True)
)
DASHES = [[1, 0], [6, 3], [2, 2], [1, 0]]
THEME = {
    'font': 'system-ui, sans-serif',
    'background': 'white',
    'view': {'stroke': None},
    'axis': {
        'labelColor': MUTED,
        'titleColor': INK,
        'titleFontWeight': 'normal',
        'labelFontSize': 12,
        'titleFontSize': 12,
        'gridColor': GRID,
        'domainColor': '#9aa7b3',
        'tickColor': '#9aa7b3',
        'labelLimit': 160,
        'labelFlush': False,
        'labelPadding': 5,
    },
    'legend': {'orient': 'top', 'labelFontSize': 12, 'labelColor': INK, 'labelLimit': 300},
}

Spec = dict[str, Any]


def curve(series: Mapping[str, Sequence[tuple[int, float]]], x: str, y: str, points: bool) -> Spec:
    """Draw one line per run.

    Args:
        series: ``(x, y)`` by run.
        x: Title of the axis.
        y: Title of the axis.
        points: Mark each value.
    """
    rows = [
        {'run': run, 'x': step, 'y': _plain(value)}
        for run, values in series.items()
        for step, value in _thinned(values)
    ]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=points, strokeWidth=2)
        .encode(
            x=alt.X(
                'x:Q',
                title=x,
                axis=alt.Axis(grid=False, format='~s', tickMinStep=1),
                scale=alt.Scale(zero=True, nice=False),
            ),
            y=alt.Y('y:Q', title=y, scale=alt.Scale(zero=points)),
            color=_run_colour(series),
            tooltip=[
                alt.Tooltip('run:N'),
                alt.Tooltip('x:Q', title=x),
                alt.Tooltip('y:Q', title=y, format='.4~g'),
            ],
        )
    )
    return _spec(chart)


def class_bars(rows: Sequence[Mapping[str, Any]], runs: Sequence[str]) -> Spec:
    """Draw the AP of classes.

    Args:
        rows: ``name`` and ``values``: AP and AP50 in each run, in the order of the bars.
        runs: Names.
    """
    names = unique_names([row['name'] for row in rows])
    bars = [
        {'run': run, 'class': name, 'AP': ap, 'AP50': ap50}
        for name, row in zip(names, rows, strict=True)
        for run, ap, ap50 in zip(
            runs, rounded(row['values'][::2]), rounded(row['values'][1::2]), strict=True
        )
        if ap is not None
    ]
    return _bars(bars, 'class', names, 'AP', ['AP', 'AP50'])


def groups(
    runs: Mapping[str, Sequence[tuple[str, float, int]]], title: str, names: Sequence[str]
) -> Spec:
    """Draw AP by ranges of the objects' size or shape."""
    rows = [
        {'run': run, title: name, 'AP': _plain(value), 'objects': number}
        for run, values in runs.items()
        for name, value, number in values
        if number
    ]
    return _bars(rows, title, list(names), 'AP', ['AP', 'objects'])


def costs(runs: Mapping[str, Sequence[float]]) -> Spec:
    """Draw the AP50 lost to each kind of error, in points."""
    rows = [
        {'run': run, 'error': kind, 'lost': round(100 * cost, 2)}
        for run, values in runs.items()
        for kind, cost in zip(KINDS, values, strict=True)
        if math.isfinite(cost)
    ]
    return _bars(rows, 'error', list(KINDS), 'lost', ['lost'], 'AP50 points lost')


def precision_recall(
    figures: Figures, classes: Sequence[str], objects: np.ndarray, limit: int
) -> Spec:
    """Draw precision over recall: means over the classes, and one class that is chosen.

    Of the classes the ``limit`` with most objects can be chosen.
    """
    names = unique_names(classes)
    recall = [round(x, 2) for x in np.linspace(0, 1, 101)[::2]]
    curves = {f'IoU {name}': values for name, values in figures.mean_curves.items()}
    known = [i for i in np.argsort(-objects, kind='stable') if objects[i]][:limit]
    rows = [
        {'curve': f'all classes, {name}', 'kind': name, 'recall': r, 'precision': p}
        for name, values in curves.items()
        for r, p in zip(recall, rounded(values[::2], 3), strict=True)
    ]
    rows += [
        {'curve': names[i], 'kind': 'one class, IoU 0.50', 'recall': r, 'precision': p}
        for i in known
        for r, p in zip(recall, rounded(figures.curves[i][::2], 3), strict=True)
    ]
    options = [names[i] for i in known]
    chosen = alt.param(
        name='shown',
        value=options[0] if options else '',
        bind=alt.binding_select(options=options, name='class '),
    )
    kinds = [*curves, 'one class, IoU 0.50']
    chart = (
        alt.Chart(alt.Data(values=rows))
        .transform_filter("datum.kind != 'one class, IoU 0.50' || datum.curve == shown")
        .mark_line(strokeWidth=2, interpolate='step-before')
        .encode(
            x=alt.X(
                'recall:Q',
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(grid=False, format='.1f', tickCount=10),
            ),
            y=alt.Y('precision:Q', scale=alt.Scale(domain=[0, 1])),
            color=alt.Color(
                'kind:N', title=None, scale=alt.Scale(domain=kinds, range=COLOURS), sort=None
            ),
            strokeDash=alt.StrokeDash(
                'kind:N', title=None, scale=alt.Scale(domain=kinds, range=DASHES), sort=None
            ),
            tooltip=['curve:N', 'recall:Q', 'precision:Q'],
        )
        .add_params(chosen)
    )
    return _spec(chart)


def confusion_matrix(table: np.ndarray, classes: Sequence[str]) -> tuple[Spec, int]:
    """Draw how often each class was taken for each; return how many classes are shown too."""
    shown = _most_confused(table)
    nothing = len(classes)
    places = [*shown, nothing]
    unique = unique_names(classes)
    truths = [unique[i] for i in shown] + ['(background)']
    rows = []
    for name, place in zip(truths, places, strict=True):
        total = int(table[place].sum())
        for other_name, other in zip(truths, places, strict=True):
            number = int(table[place, other])
            if number:
                share = round(number / total, 4)
                rows.append(
                    {'there is': name, 'detected': other_name, 'number': number, 'share': share}
                )
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            'detected:N', sort=truths, scale=alt.Scale(domain=truths), axis=alt.Axis(labelAngle=-40)
        ),
        y=alt.Y('there is:N', sort=truths, scale=alt.Scale(domain=truths)),
        tooltip=[
            'there is:N',
            'detected:N',
            'number:Q',
            alt.Tooltip('share:Q', title='share of the row', format='.1%'),
        ],
    )
    shade = base.mark_rect().encode(
        color=alt.Color(
            'share:Q',
            scale=alt.Scale(scheme='blues', domain=[0, 1]),
            legend=None,
        )
    )
    size = min(44, max(16, 560 // len(truths)))
    chart: Any = shade
    if len(truths) <= 16:
        numbers = base.mark_text(fontSize=11).encode(
            text='number:Q',
            color=alt.condition('datum.share > 0.55', alt.value('white'), alt.value(INK)),
        )
        chart = shade + numbers
    chart = chart.properties(width=size * len(truths), height=size * len(truths))
    return _spec(chart, fixed=True), len(shown)


def reliability(runs: Mapping[str, Mapping[str, Any]]) -> Spec:
    """Draw the share of right detections over their score, beside what it should be.

    Args:
        runs: hotcoco's calibration by run.
    """
    rows = [
        {
            'run': run,
            'score': round(part['avg_confidence'], 4),
            'right': round(part['avg_accuracy'], 4),
            'detections': part['count'],
        }
        for run, found in runs.items()
        for part in found['bins']
        if part['count']
    ]
    ideal = [{'score': 0, 'right': 0}, {'score': 1, 'right': 1}]
    unit = alt.Scale(domain=[0, 1])
    line = (
        alt.Chart(alt.Data(values=ideal))
        .mark_line(color='#9aa7b3', strokeDash=[5, 4])
        .encode(x=alt.X('score:Q', scale=unit), y=alt.Y('right:Q', scale=unit))
    )
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X('score:Q', title='mean score', scale=unit, axis=alt.Axis(grid=False)),
        y=alt.Y('right:Q', title='share that is right', scale=unit),
        color=_run_colour(runs),
        tooltip=['run:N', 'score:Q', alt.Tooltip('right:Q', format='.1%'), 'detections:Q'],
    )
    points = base.mark_circle(opacity=0.9).encode(
        size=alt.Size('detections:Q', scale=alt.Scale(type='sqrt', range=[30, 500]), legend=None)
    )
    return _spec(line + base.mark_line(strokeWidth=2) + points)


def comparison_scatter(rows: Sequence[Mapping[str, Any]], x: str, title: str) -> Spec:
    """Draw AP of a comparison's backbones against their latency or FLOPs.

    Args:
        rows: ``name``, ``AP``, ``low`` and ``high`` over the seeds, and the quantity.
        x: Key of the quantity.
        title: Title of its axis.
    """
    shown = [row for row in rows if row.get(x) is not None and row['AP'] is not None]
    values = [row[x] for row in shown] or [0.0]
    middle = (min(values) + max(values)) / 2
    shown = [{**row, 'left': row[x] <= middle} for row in shown]
    pad = {'zero': False, 'padding': 30}
    base = alt.Chart(alt.Data(values=shown)).encode(
        x=alt.X(f'{x}:Q', title=title, scale=alt.Scale(**pad)),
        y=alt.Y('AP:Q', title='AP, %', scale=alt.Scale(**pad)),
        tooltip=['name:N', alt.Tooltip('AP:Q', format='.1f'), alt.Tooltip(f'{x}:Q', format='.3~g')],
    )
    spread = base.mark_rule(color=MUTED).encode(y=alt.Y('low:Q', title='AP, %'), y2='high:Q')
    points = base.mark_circle(size=110, opacity=1).encode(
        color=alt.Color(
            'family:N',
            title=None,
            scale=alt.Scale(domain=['EfficientViT', 'other'], range=COLOURS),
        )
    )
    layers = [spread, points]
    for left, align, offset in ((True, 'left', 9), (False, 'right', -9)):
        layers.append(
            base.transform_filter(f'datum.left == {str(left).lower()}')
            .mark_text(align=align, dx=offset, dy=-9, fontSize=11, color=INK)
            .encode(text='name:N')
        )
    return _spec(alt.layer(*layers))


def unique_names(classes: Sequence[str]) -> list[str]:
    """Return short names that differ, since charts tell classes apart by them."""
    names: list[str] = []
    seen: set[str] = set()
    for name in classes:
        short = name if len(name) <= 40 else f'{name[:38]}…'
        unique, number = short, 2
        while unique in seen:
            unique, number = f'{short} ({number})', number + 1
        seen.add(unique)
        names.append(unique)
    return names


def _bars(
    rows: Sequence[Mapping[str, Any]],
    group: str,
    order: Sequence[str],
    value: str,
    shown: Sequence[str],
    title: str | None = None,
) -> Spec:
    """Draw horizontal bars, one per group and run."""
    runs = list(dict.fromkeys(row['run'] for row in rows))
    present = {row[group] for row in rows}
    order = [name for name in order if name in present]
    thickness, gap = (20 if len(runs) == 1 else 13, 8) if len(order) <= 20 else (11, 4)
    # room for the figure at a bar's end
    longest = 1.12 * max((row[value] for row in rows), default=0) or 1
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        y=alt.Y(
            f'{group}:N',
            sort=order,
            title=None,
            axis=alt.Axis(ticks=False, domain=False, labelPadding=8),
        ),
        x=alt.X(
            f'{value}:Q',
            title=title or value,
            axis=alt.Axis(tickCount=6),
            scale=alt.Scale(domain=[0, longest], nice=False),
        ),
        yOffset=alt.YOffset('run:N', sort=runs),
        tooltip=['run:N', f'{group}:N', *(alt.Tooltip(f'{name}:Q') for name in shown)],
    )
    bars = base.mark_bar(cornerRadiusEnd=2).encode(color=_run_colour(runs))
    labels = base.mark_text(align='left', dx=4, fontSize=11, color=MUTED).encode(
        text=alt.Text(f'{value}:Q', format='.1f' if title else '.3f')
    )
    height = (thickness * len(runs) + gap) * max(len(order), 1)
    return _spec((bars + labels).properties(height=height))


def _run_colour(runs: Collection[str]) -> alt.Color:
    """Return a colour for each run, in the page's order; one alone needs no legend."""
    scale = alt.Scale(domain=list(runs), range=COLOURS)
    legend = alt.Undefined if len(runs) > 1 else None
    return alt.Color('run:N', scale=scale, sort=None, title=None, legend=legend)


def _spec(chart: Any, fixed: bool = False) -> Spec:
    """Return a chart's specification, as wide as its place unless it has a size of its own."""
    spec: Spec = chart.configure(**THEME).to_dict()
    spec.pop('$schema', None)  # an address, which nothing needs
    if not fixed:
        spec['width'] = 'container'
        spec.setdefault('height', HEIGHT)
        spec['autosize'] = {'type': 'fit-x', 'contains': 'padding'}
    return spec


def _most_confused(table: np.ndarray) -> list[int]:
    """Return the classes of a large table that most mistakes are about, in their order."""
    count = len(table) - 1
    if count <= MAX_CONFUSED:
        return list(range(count))
    wrong = table * (1 - np.eye(len(table), dtype=int))
    between = wrong[:count, :count]
    chosen = np.argsort(-(between.sum(0) + between.sum(1)), kind='stable')[:MAX_CONFUSED]
    return sorted(chosen.tolist())


def _thinned(values: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    if len(values) <= MAX_POINTS:
        return list(values)
    places = np.linspace(0, len(values) - 1, MAX_POINTS).round().astype(int)
    return [values[place] for place in places]


def _plain(value: float) -> float | None:
    return float(f'{value:.5g}') if math.isfinite(value) else None
