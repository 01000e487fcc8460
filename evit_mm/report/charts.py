"""The page's charts, as Vega-Lite specifications made by altair; data are written into them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, count
from typing import Any

import altair as alt
import numpy as np

from ..evaluation.statistics import Figures

MAX_POINTS = 400  # of a curve; more than a screen shows
MAX_CURVES = 80  # of classes, on a page
MAX_CONFUSED = 30  # classes in a confusion matrix
MAX_NUMBERED = 16  # classes up to which its cells have their numbers
ONE_CLASS = 'one class, IoU 0.50'
HEIGHT = 260
INK, MUTED, GRID, DOMAIN = '#1b2733', '#5b6b7a', '#e4e9ee', '#9aa7b3'
# Okabe and Ito's colours, which colour-blind people tell apart; yellow is too pale on white
COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#7A5195', '#444444']
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
        'domainColor': DOMAIN,
        'tickColor': DOMAIN,
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
        {'run': run, 'x': step, 'y': value}
        for run, values in series.items()
        for step, value in _thinned(values)
    ]
    chart = (
        _chart(rows)
        .mark_line(point=points, strokeWidth=2)
        .encode(
            alt.X('x:Q', title=x)
            .axis(grid=False, format='~s', tickMinStep=1)
            .scale(zero=True, nice=False),
            alt.Y('y:Q', title=y).scale(zero=points),
            _run_colour(series),
            tooltip=['run:N', alt.Tooltip('x:Q', title=x), alt.Tooltip('y:Q', title=y)],
        )
    )
    return _spec(chart)


def bars(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    group: str,
    value: str,
    form: str,
    title: str | None = None,
) -> Spec:
    """Draw horizontal bars, one per group and run.

    Args:
        runs: Rows by run, each with ``group``, ``value`` and what else is read on pointing at its
            bar. Groups stand in the order in which they come; those of which no run has a value,
            as NaN is none, are left out.
        group: Key of the name beside the bars.
        value: Key of their length.
        form: Format of the figure at a bar's end.
        title: Title of the axis; None for the key of the value.
    """
    rows = [
        {'run': run} | {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        for run, own in runs.items()
        for row in own
        if math.isfinite(row[value])
    ]
    present = {row[group] for row in rows}
    every = dict.fromkeys(row[group] for own in runs.values() for row in own)
    order = [name for name in every if name in present]
    thickness, gap = (20 if len(runs) == 1 else 13, 8) if len(order) <= 20 else (11, 4)
    # room for the figure at a bar's end
    longest = 1.12 * max((row[value] for row in rows), default=0) or 1
    extra = dict.fromkeys(key for row in rows for key in row if key not in ('run', group))
    base = _chart(rows).encode(
        alt.Y(f'{group}:N', sort=order, title=None).axis(ticks=False, domain=False, labelPadding=8),
        alt.X(f'{value}:Q', title=title or value)
        .axis(tickCount=6)
        .scale(domain=[0, longest], nice=False),
        yOffset=alt.YOffset('run:N', sort=list(runs)),
        tooltip=['run:N', f'{group}:N', *(f'{key}:Q' for key in extra)],
    )
    labels = base.mark_text(align='left', dx=4, fontSize=11, color=MUTED)
    chart = base.mark_bar(cornerRadiusEnd=2).encode(_run_colour(runs)) + labels.encode(
        alt.Text(f'{value}:Q', format=form)
    )
    return _spec(chart.properties(height=(thickness * len(runs) + gap) * max(len(order), 1)))


def precision_recall(
    figures: Figures, classes: Sequence[str], objects: np.ndarray, limit: int
) -> Spec:
    """Draw precision over recall: means over the classes, and one class that is chosen.

    Of the classes the ``limit`` with most objects can be chosen.
    """
    names = unique_names(classes)
    known = [i for i in np.argsort(-objects, kind='stable') if objects[i]][:limit]
    means = {f'IoU {name}': values for name, values in figures.mean_curves.items()}
    curves = [(f'all classes, {kind}', kind, values) for kind, values in means.items()]
    curves += [(names[i], ONE_CLASS, figures.curves[i]) for i in known]
    rows = [
        {'curve': name, 'kind': kind, 'recall': recall / 100, 'precision': precision}
        for name, kind, values in curves
        for recall, precision in zip(range(0, 101, 2), rounded(values[::2], 3), strict=True)
    ]
    options = [names[i] for i in known]
    select = alt.binding_select(options=options, name='class ')
    kinds = [*means, ONE_CLASS]
    chart = (
        _chart(rows)
        .add_params(alt.param(name='shown', value=(*options, '')[0], bind=select))
        .transform_filter(f"datum.kind != '{ONE_CLASS}' || datum.curve == shown")
        .mark_line(strokeWidth=2, interpolate='step-before')
        .encode(
            alt.X('recall:Q').scale(domain=[0, 1]).axis(grid=False, format='.1f', tickCount=10),
            alt.Y('precision:Q').scale(domain=[0, 1]),
            alt.Color('kind:N', title=None, sort=None).scale(domain=kinds, range=COLOURS),
            alt.StrokeDash('kind:N', title=None, sort=None).scale(domain=kinds, range=DASHES),
            tooltip=['curve:N', 'recall:Q', 'precision:Q'],
        )
    )
    return _spec(chart)


def confusion_matrix(table: np.ndarray, classes: Sequence[str]) -> tuple[Spec, int]:
    """Draw how often each class was taken for each; return how many classes are shown too."""
    shown = _most_confused(table)
    unique = [*unique_names(classes), '(background)']
    places = [*shown, len(classes)]
    names = [unique[i] for i in places]
    rows = [
        {
            'there is': unique[i],
            'detected': unique[j],
            'number': int(table[i, j]),
            'share': round(table[i, j] / table[i].sum(), 4),
        }
        for i in places
        for j in places
        if table[i, j]
    ]
    base = _chart(rows).encode(
        alt.X('detected:N', sort=names).scale(domain=names).axis(labelAngle=-40),
        alt.Y('there is:N', sort=names).scale(domain=names),
        tooltip=[
            'there is:N',
            'detected:N',
            'number:Q',
            alt.Tooltip('share:Q', title='share of the row', format='.1%'),
        ],
    )
    shade = alt.Color('share:Q', legend=None).scale(scheme='blues', domain=[0, 1])
    chart: Any = base.mark_rect().encode(shade)
    if len(names) <= MAX_NUMBERED:
        ink = alt.condition('datum.share > 0.55', alt.value('white'), alt.value(INK))
        chart += base.mark_text(fontSize=11).encode(text='number:Q', color=ink)
    side = min(44, max(16, 560 // len(names))) * len(names)
    return _spec(chart.properties(width=side, height=side), fixed=True), len(shown)


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
    x = alt.X('score:Q', title='mean score').scale(domain=[0, 1]).axis(grid=False)
    y = alt.Y('right:Q', title='share that is right').scale(domain=[0, 1])
    ideal = _chart([{'score': 0, 'right': 0}, {'score': 1, 'right': 1}])
    base = _chart(rows).encode(
        x,
        y,
        _run_colour(runs),
        tooltip=['run:N', 'score:Q', alt.Tooltip('right:Q', format='.1%'), 'detections:Q'],
    )
    size = alt.Size('detections:Q', legend=None).scale(type='sqrt', range=[30, 500])
    return _spec(
        ideal.mark_line(color=DOMAIN, strokeDash=[5, 4]).encode(x, y)
        + base.mark_line(strokeWidth=2)
        + base.mark_circle(opacity=0.9).encode(size)
    )


def comparison_scatter(rows: Sequence[Mapping[str, Any]], x: str, title: str) -> Spec:
    """Draw AP of a comparison's backbones against their latency or FLOPs.

    Args:
        rows: ``name``, ``AP``, ``low`` and ``high`` over the seeds, and the quantity.
        x: Key of the quantity.
        title: Title of its axis.
    """
    shown = [row for row in rows if row[x] is not None and row['AP'] is not None]
    values = [row[x] for row in shown] or [0.0]
    middle = (min(values) + max(values)) / 2
    base = _chart(shown).encode(
        alt.X(f'{x}:Q', title=title).scale(zero=False, padding=30),
        alt.Y('AP:Q', title='AP, %').scale(zero=False, padding=30),
        tooltip=['name:N', alt.Tooltip('AP:Q', format='.1f'), alt.Tooltip(f'{x}:Q', format='.3~g')],
    )
    family = alt.Color('family:N', title=None).scale(
        domain=['EfficientViT', 'other'], range=COLOURS
    )
    spread = base.mark_rule(color=MUTED).encode(alt.Y('low:Q', title='AP, %'), alt.Y2('high:Q'))
    # names stand towards the middle, where there is room
    text = {'dy': -9, 'fontSize': 11, 'color': INK}
    left = base.transform_filter(f'datum.{x} <= {middle}').mark_text(align='left', dx=9, **text)
    right = base.transform_filter(f'datum.{x} > {middle}').mark_text(align='right', dx=-9, **text)
    return _spec(
        spread
        + base.mark_circle(size=110, opacity=1).encode(family)
        + left.encode(text='name:N')
        + right.encode(text='name:N')
    )


def unique_names(classes: Sequence[str]) -> list[str]:
    """Return short names that differ, since charts tell classes apart by them."""
    names: dict[str, None] = {}
    for name in classes:
        short = name if len(name) <= 40 else f'{name[:38]}…'
        numbered = (f'{short} ({number})' for number in count(2))
        names[next(n for n in chain([short], numbered) if n not in names)] = None
    return list(names)


def rounded(values: Any, digits: int = 4) -> list[float | None]:
    """Return numbers for JSON: rounded, None for what is not finite."""
    array = np.array(values, float)  # of None it makes NaN
    return [round(x, digits) if np.isfinite(x) else None for x in array.tolist()]


def _chart(rows: Sequence[Mapping[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.Data(values=list(rows)))


def _run_colour(runs: Collection[str]) -> alt.Color:
    """Return a colour for each run, in the page's order; one alone needs no legend."""
    colour = alt.Color('run:N', sort=None, title=None).scale(domain=list(runs), range=COLOURS)
    return colour if len(runs) > 1 else colour.legend(None)


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
    between = table[:-1, :-1] * (1 - np.eye(len(table) - 1, dtype=int))
    mistakes = between.sum(0) + between.sum(1)
    return sorted(np.argsort(-mistakes, kind='stable')[:MAX_CONFUSED].tolist())


def _thinned(values: Sequence[tuple[int, float]]) -> list[tuple[int, float | None]]:
    """Return at most as many points as a screen shows, NaN as None."""
    number = min(len(values), MAX_POINTS)
    places = np.linspace(0, len(values) - 1, number).round().astype(int)
    chosen = [values[place] for place in places]
    return [
        (step, float(f'{value:.5g}') if math.isfinite(value) else None) for step, value in chosen
    ]
