"""What the charts draw, read from matplotlib's figures and from the SVG."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from evit_mm.report import charts

NAN = float('nan')


def test_lines_go_through_their_points_in_the_colours_of_their_runs(drawn):
    series = {'one': [(1, 5), (2, 7)], 'none': None, 'three': [(0, -1)]}
    colours = ['#ff0000', '#00ff00', '#0000ff']
    svg = charts.lines(series, 'step', 'height', colours, marker='o', diagonal=True)
    axis = drawn[0].axes[0]
    dashed, one, three = axis.get_lines()
    assert dashed.get_xydata().tolist() == [[0, 0], [1, 1]] and dashed.get_linestyle() == '--'
    assert one.get_xydata().tolist() == [[1, 5], [2, 7]] and one.get_marker() == 'o'
    assert three.get_xydata().tolist() == [[0, -1]]
    assert [one.get_color(), three.get_color()] == ['#ff0000', '#0000ff']
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ['one', 'three']
    assert (axis.get_xlabel(), axis.get_ylabel()) == ('step', 'height')
    assert axis.get_ylim()[0] < -1  # what is below 0 is seen
    assert svg.startswith('<svg') and '>three</text>' in svg and 'Matplotlib' not in svg

    charts.lines({'a': [(0, 5), (1, 6)]}, 'x', 'y')
    axis = drawn[1].axes[0]
    assert axis.get_ylim()[0] == 0 < 6 < axis.get_ylim()[1]
    assert axis.get_legend() is None and len(axis.get_lines()) == 1
    assert axis.get_lines()[0].get_marker() == '' and len(set(charts.COLOURS)) == 8
    charts.lines({f'{i}': [(0, i)] for i in range(9)}, 'x', 'y')  # colours are used again
    assert [line.get_color() for line in drawn[2].axes[0].get_lines()] == [
        *charts.COLOURS, charts.COLOURS[0],
    ]  # fmt: skip


def test_bars_of_a_name_lie_side_by_side_from_the_top(drawn):
    long = 'a name that is much too long ' * 3
    series = {'before': [0.5, NAN, 0.25], 'after': [0.125, 1.0, 0.75]}
    svg = charts.bars(['cat', '$dog$ & $', long], series, 'AP', 2, ['#ff0000', '#00ff00'])
    axis = drawn[0].axes[0]
    low = -0.4
    for container, (name, values), colour in zip(
        axis.containers, series.items(), ['#ff0000', '#00ff00'], strict=True
    ):
        assert container.get_label() == name
        for place, (bar, value) in enumerate(zip(container, values, strict=True)):
            assert np.array_equal(bar.get_width(), value, equal_nan=True)
            assert bar.get_y() == pytest.approx(place + low) and bar.get_height() == 0.4
            assert to_hex(bar.get_facecolor()) == colour
        low = 0
    bottom, top = axis.get_ylim()
    assert bottom > 2.4 and top < -0.4  # the first name is on top and no bar is cut
    assert axis.get_yticks().tolist() == [0, 1, 2] and axis.get_xlabel() == 'AP'
    assert [t.get_text() for t in axis.texts] == ['0.50', '', '0.25', '0.12', '1.00', '0.75']
    assert axis.get_yticklabels()[2].get_text() == charts.short(long, 28)
    assert '>$dog$ &amp; $</text>' in svg  # no formula, and escaped
    assert len(axis.get_legend().get_texts()) == 2
    charts.bars(['a'], {'run': [1.0]}, 'AP', 3)
    assert drawn[1].axes[0].get_legend() is None
    assert drawn[1].get_figheight() < drawn[0].get_figheight()


def test_a_confusion_matrix_has_true_classes_as_rows_and_shares_of_them(drawn):
    table = np.array([[6, 3, 1], [0, 2, 0], [4, 0, 0]])
    charts.confusion_matrix(table, ['cat', 'dog'])
    axis = drawn[0].axes[0]
    mesh = axis.collections[0]
    share = [[0.6, 0.3, 0.1], [0, 1, 0], [1, 0, 0]]
    np.testing.assert_allclose(mesh.get_array(), share)
    assert mesh.get_clim() == (0, 1) and axis.yaxis_inverted()
    numbers = {t.get_position(): (t.get_text(), t.get_color()) for t in axis.texts}
    white, ink = 'white', charts.INK
    assert numbers == {
        (0.5, 0.5): ('6', white), (1.5, 0.5): ('3', ink), (2.5, 0.5): ('1', ink),
        (1.5, 1.5): ('2', white), (0.5, 2.5): ('4', white),
    }  # fmt: skip
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [t.get_text() for t in labels] == ['cat', 'dog', '(background)']
    assert axis.get_xticks().tolist() == axis.get_yticks().tolist() == [0.5, 1.5, 2.5]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ('detected class', 'true class')


def test_of_many_classes_the_most_confused_are_drawn(drawn):
    table = np.eye(41, dtype=int) * 90
    table[3, 35] = table[36, 5] = 2  # both classes of a confusion count
    table[7, 40] = table[40, 8] = 50  # but the background is no confusion
    charts.confusion_matrix(table, [f'class {i}' for i in range(40)])
    axis = drawn[0].axes[0]
    names = [t.get_text() for t in axis.get_yticklabels()]
    rest = [i for i in range(40) if i not in (3, 5, 35, 36)][:26]
    assert names == [*(f'class {i}' for i in sorted([3, 5, 35, 36, *rest])), '(background)']
    assert not axis.texts
    charts.confusion_matrix(table[:16, :16], [f'{i}' for i in range(15)])
    charts.confusion_matrix(table[:17, :17], [f'{i}' for i in range(16)])
    assert [len(figure.axes[0].texts) for figure in drawn[1:]] == [16 + 0, 0]


def test_a_long_text_is_shortened_in_its_middle():
    assert charts.short('abcdefghij', 10) == 'abcdefghij'
    assert charts.short('abcdefghijk', 10) == 'abcd…ghijk'
    assert charts.short('x' * 80) == 'x' * 80 and len(charts.short('x' * 81)) == 80
