"""The charts of the page, drawn by matplotlib as inline SVG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from cycler import cycler
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

WIDTH = 5  # inches; the text of a wider chart is too small on a phone
MAX_CONFUSED = 30  # classes in a confusion matrix
MAX_NUMBERED = 16  # largest number of classes with numbers in the cells
NO_METADATA = dict.fromkeys(['Creator', 'Date', 'Format', 'Type'])
INK, MUTED, GRID = '#1b2733', '#5b6b7a', '#e4e9ee'
# Okabe and Ito's colours for colour-blind readers, without yellow, which is too pale on white
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#7A5195', '#444444')
STYLE: dict[Any, Any] = {
    'axes.axisbelow': True,
    'axes.edgecolor': MUTED,
    'axes.labelcolor': INK,
    'axes.prop_cycle': cycler(color=COLOURS),
    'axes.spines.right': False,
    'axes.spines.top': False,
    'font.family': 'sans-serif',
    'font.size': 9,
    'grid.color': GRID,
    'legend.frameon': False,
    'svg.fonttype': 'none',  # keep text as text elements
    'text.parse_math': False,  # class names can contain '$'
    'xtick.color': MUTED,
    'ytick.color': MUTED,
}


@rc_context(STYLE)
def lines(
    series: Mapping[str, Sequence[tuple[float, float]] | None],
    x: str,
    y: str,
    colours: Sequence[str] = COLOURS,
    marker: str = '',
    diagonal: bool = False,
) -> Markup:
    """Draw one line per series through its ``(x, y)`` points.

    ``diagonal`` adds the line x = y. A series without points is skipped together with its colour.
    """
    figure = Figure(figsize=(WIDTH, 2.8), layout='constrained')
    axis = figure.subplots()
    if diagonal:
        axis.plot([0, 1], [0, 1], '--', color=MUTED)
    for (name, points), colour in zip(series.items(), cycle(colours), strict=False):
        if points:
            x_y = zip(*points, strict=True)
            axis.plot(*x_y, marker=marker, color=colour, label=short(name, 40))
    axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(axis='y')
    if len(series) > 1:
        axis.legend()
    return _svg(figure)


@rc_context(STYLE)
def bars(
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    x: str,
    digits: int,
    colours: Sequence[str] = COLOURS,
) -> Markup:
    """Draw horizontal bars, one group per name; NaN draws no bar."""
    figure = Figure(figsize=(WIDTH, 0.8 + len(names) * (0.12 + 0.16 * len(series))))
    figure.set_layout_engine('constrained')
    axis = figure.subplots()
    thickness = 0.8 / len(series)
    for place, (name, values) in enumerate(series.items()):
        height = np.arange(len(names)) + (place + 0.5) * thickness - 0.4
        bar = axis.barh(height, values, thickness, color=colours[place], label=short(name, 40))
        axis.bar_label(bar, [_number(value, digits) for value in values], padding=3, color=MUTED)
    axis.set_yticks(range(len(names)), [short(name, 28) for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.margins(x=0.08)
    axis.set_xlabel(x)
    axis.grid(axis='x')
    if len(series) > 1:
        axis.legend()
    return _svg(figure)


@rc_context(STYLE)
def confusion_matrix(table: np.ndarray, classes: Sequence[str]) -> Markup:
    """Draw the confusion matrix of the most confused classes."""
    between = table[:-1, :-1] * (1 - np.eye(len(classes), dtype=int))
    mistakes = between.sum(0) + between.sum(1)
    shown = sorted(np.argsort(-mistakes, kind='stable')[:MAX_CONFUSED])
    places = [*shown, len(classes)]
    names = [*(short(classes[place], 30) for place in shown), '(background)']
    part = table[np.ix_(places, places)]
    share = part / np.maximum(table[places].sum(1, keepdims=True), 1)
    # square cells, and room for the names on the left
    height = 2 + 0.24 * len(names)
    width = height + 0.07 * max(map(len, names))
    figure = Figure(figsize=(width, height), layout='constrained')
    axis = figure.subplots()
    axis.pcolormesh(share, cmap='Blues', vmin=0, vmax=1, edgecolors='white', linewidth=0.5)
    axis.set_aspect('equal')
    axis.invert_yaxis()
    ticks = np.arange(len(names)) + 0.5
    axis.set_xticks(ticks, names, rotation=40, ha='right', rotation_mode='anchor')
    axis.set_yticks(ticks, names)
    axis.set_xlabel('detected class')
    axis.set_ylabel('true class')
    if len(names) <= MAX_NUMBERED:
        for row, column in np.argwhere(part):
            ink = 'white' if share[row, column] > 0.55 else INK
            number = str(part[row, column])
            axis.text(column + 0.5, row + 0.5, number, color=ink, ha='center', va='center')
    return _svg(figure)


def short(text: str, length: int = 80) -> str:
    """Return a text, shortened in the middle to at most ``length`` characters."""
    half = length // 2
    return text if len(text) <= length else f'{text[: half - 1]}…{text[-half:]}'


def _number(value: float, digits: int) -> str:
    return f'{value:.{digits}f}' if np.isfinite(value) else ''


def _svg(figure: Figure) -> Markup:
    file = io.StringIO()
    with warnings.catch_warnings():  # matplotlib's font lacks glyphs that browsers have
        warnings.simplefilter('ignore')
        figure.savefig(file, format='svg', metadata=NO_METADATA)
    text = file.getvalue()
    return Markup(text[text.index('<svg') :])
