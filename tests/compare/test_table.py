"""The table's figures are those of the runs, in their columns, units and order."""

import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from mmengine.config import Config

from evit_mm.compare.table import Row, difference, markdown, write_tables
from tests.compare.test_runs import NAMES


def row(name, *aps, **facts):
    metrics = [{metric: ap / 100 + place for place, metric in enumerate(NAMES)} for ap in aps]
    return Row(name, Config(), metrics, [2.0] * len(aps), **facts)


def cells(text):
    """Return the cells by heading, for each row of a table."""
    header, *rows = (x.strip('| ').split(' | ') for x in text.splitlines() if x[:2] == '| ')
    return [dict(zip(header, found, strict=True)) for found in rows]


@pytest.fixture
def figures(monkeypatch):
    """The charts that are drawn."""
    drawn = []

    def keep(figure, path, **_):
        drawn.append(figure)
        path.write_text('chart')

    monkeypatch.setattr(Figure, 'savefig', keep)
    return drawn


def test_each_figure_has_its_column_and_unit():
    m4 = row('evit_m4', 30, 32, params=8_804_000, macs=299_300_000_000)
    m4.latency, m4.minutes = (0.0123, 0.011, 0.0146), [3.0, 4.0]
    other = row('spos', 0, params=3_558_000)
    first, second = cells(markdown([m4, other], {}, published=False))
    assert first == {
        'backbone': 'EfficientViT-M4',
        'AP': '31.0 ± 1.4 (2)',
        **{name: f'{31 + 100 * k:.1f}' for k, name in enumerate(('AP50', 'AP75', *'SML'), 1)},
        'params M': '8.80',
        'FLOPs G': '299.30',
        'latency ms': '12.3 (11.0-14.6)',
        'training min': '3.5',
    }
    assert (second['AP'], second['latency ms']) == ('0.0 (1)', '-')  # an AP of 0 is a figure


def test_facts_are_written_plainly():
    about = {'classes': ['a', 'b'], 'scale': (3, 4), 'options': {'x': 1, 'y': 2}, 'more': {}}
    text = markdown([row('evit_m0', 30)], about, published=False)
    assert '\n\nclasses: a, b; scale: 3, 4; options: x=1, y=2; more: none.\n' in text
    assert 'failed' not in text and text.endswith('.\n')


def test_the_verdict_needs_two_seeds_and_an_interval_without_zero():
    better, worse, one = row('evit_m4', 31, 33, 32), row('evit_m0', 30, 31, 32), row('evit_m1', 20)
    found = difference(better, worse)
    assert found['difference'] == 1 and found['verdict'] == 'undecided'
    # Student's t with 4 degrees of freedom, twice a variance of 1 from 3 runs
    assert found['high'] == pytest.approx(1 + 2.776445 * math.sqrt(2 / 3))
    assert found['low'] == pytest.approx(2 - found['high'])
    back = difference(worse, better)
    assert (back['low'], back['high']) == pytest.approx((-found['high'], -found['low']))
    lower = row('evit_m0', 20, 21, 22)
    assert difference(better, lower)['verdict'] == 'leads'
    assert difference(lower, better)['verdict'] == 'is behind'
    for pair in ((better, one), (one, worse)):
        assert difference(*pair)['verdict'] is difference(*pair)['low'] is None
    assert 'A row has one training, so' in markdown([row('evit_m4', 30), one], {}, False)
    assert 'training, so' not in markdown([better], {}, False)
    text = markdown([better, worse, one], {}, False)
    assert "interval over the seeds (by Student's t)." in text and 'Leads:' not in text
    assert 'Undecided:\n\n- EfficientViT-M4 and EfficientViT-M0: +1.0 (-1.3 to +3.3)\n' in text
    unknown = 'Unknown, because a row has one training:\n\n'
    assert f'{unknown}- EfficientViT-M4 and EfficientViT-M1: +12.0\n' in text
    text = markdown([better, lower], {}, False)
    assert 'Leads:\n\n- EfficientViT-M4 leads EfficientViT-M0: +11.0 (+8.7 to +13.3)\n' in text
    assert 'Undecided' not in text and 'Unknown' not in text


def test_detections_make_the_interval_cover_the_images():
    better, worse = row('evit_m4', 31, 32, 33), row('evit_m0', 22, 22.1, 22.2)
    assert difference(better, worse)['verdict'] == 'leads'
    # for the difference, half of the samples are 10 higher and the others 10 lower
    signs = np.where(np.arange(1000) % 2, 10, -10)
    better.samples = [ap + signs for ap in (31, 32, 33)]
    assert difference(better, worse)['verdict'] == 'leads'  # without the samples of the other
    worse.samples = [np.full(1000, ap) for ap in (22, 22.1, 22.2)]
    found = difference(better, worse)
    assert found['verdict'] == 'undecided' and found['low'] < 9.9 - 1.96 * 10
    rows = [better, worse, row('evit_m1', failures=['seed 0: x'])]
    text = markdown(rows, {}, False)
    assert "over the images (by bootstrap) and the seeds (by Student's t)." in text
    for r in (better, worse):
        r.metrics, r.samples = r.metrics[:1], r.samples[:1]
    found = difference(better, worse)
    assert found['verdict'] is None and (found['low'], found['high']) == (-1, 19)


def test_the_search_shows_each_rate_and_the_edges():
    m4, m0 = row('evit_m4', 31), row('evit_m0', 30)
    for r, lr, found in (
        (m4, 0.003, {0.001: 20.0, 0.003: 25.0}),
        (m0, 0.001, {0.0003: math.nan, 0.001: 22.0, 0.003: 1.0}),
    ):
        r.searched = found
        r.config = Config({'optim_wrapper': {'optimizer': {'lr': lr}}})
    text = markdown([m4, m0], {}, False)
    table, _, search = text.partition('Search of')
    assert [c['learning rate'] for c in cells(table)] == ['0.003', '0.001']
    assert cells(search)[1]['0.001'] == '**22.0**'
    assert '| EfficientViT-M4 | - | 20.0 | **25.0** |' in text
    assert '| EfficientViT-M0 | - | **22.0** | 1.0 |' in text
    assert 'so a better rate may exist: EfficientViT-M4.\n' in text
    assert 'Search of' not in markdown([row('evit_m4', 31)], {}, False)


def test_a_loss_against_the_base_counts_the_runs_of_both():
    base = row('evit_m0+train_bn', 30, 31, base='evit_m0+train_bn')
    lower = [
        row(f'evit_m0+{r}', *aps, base=base.name)
        for r, aps in (('ema', (20, 21)), ('drop_path', (29, 30.5)), ('no_decay', (20,)))
    ]
    found = [x['AP against the base'] for x in cells(markdown([base, *lower], {}, False))]
    assert found == [
        'the base',
        '-10.0 (-13.0 to -7.0), is behind',
        '-0.8 (-5.2 to +3.7), undecided',
        '-10.5, one seed',
    ]
    (alone,) = cells(markdown(lower[:1], {}, False))
    assert alone['AP against the base'] == '-'


def test_the_files_have_all_rows_and_the_best_first(tmp_path, figures):
    m0 = row('evit_m0', 20, 22, macs=2e9, params=3, latency=(0.02, 0.01, 0.04))
    spos = row('spos', 30, macs=5e9, latency=(0.05, 0.05, 0.05))
    failed = row('evit_m1', failures=['seed 0: x'])
    rows = write_tables([failed, m0, spos], tmp_path, {'data': 'cells'})
    assert [r.name for r in rows] == ['spos', 'evit_m0', 'evit_m1']
    content = json.loads((tmp_path / 'table.json').read_text())
    assert [r['AP'] for r in content['rows']] == [pytest.approx(30), pytest.approx(21), None]
    second, third = content['rows'][1:]
    assert second['latency_seconds'] == {'median': 0.02, 'q25': 0.01, 'q75': 0.04}
    assert second['runs'] == m0.metrics and second['minutes'] == [2.0, 2.0]
    assert (second['macs'], second['params'], second['label']) == (2e9, 3, 'EfficientViT-M0')
    assert third['latency_seconds'] is None and third['failures'] == ['seed 0: x']
    (pair,) = content['ranking']
    assert (pair['better'], pair['worse'], pair['verdict']) == ('spos', 'evit_m0', None)
    assert pair['difference'] == pytest.approx(9) and content['about'] == {'data': 'cells'}
    left, right = figures[0].axes
    assert left.get_ylabel() == 'AP on cells, %'
    for axis, places in ((left, (50, 20)), (right, (5, 2))):
        points = [(c[0].get_xdata()[0], c[0].get_ydata()[0]) for c in axis.containers]
        assert points == [pytest.approx(p) for p in zip(places, (30, 21), strict=True)]
        assert [c[0].get_marker() for c in axis.containers] == ['s', 'o']  # ours are round
        assert [c.get_label() for c in axis.containers] == ['SPOS', 'EfficientViT-M0']
        (bar,) = axis.containers[1].lines[2]
        assert bar.get_segments()[0][:, 1] == pytest.approx([20, 22])
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ['SPOS', 'EfficientViT-M0']
    # a chart of before does not stay beside a table without figures
    write_tables([failed], tmp_path, {})
    assert len(figures) == 1 and not (tmp_path / 'table.png').exists()


def test_the_chart_of_recipes_shades_the_runs_of_the_base(tmp_path, figures):
    base = row('evit_m0+paper', 20, 22, base='evit_m0+paper')
    ema = row('evit_m0+ema', 30, 31, base=base.name)
    write_tables([base, ema], tmp_path, {'data': 'cells'})
    (axis,) = figures[0].axes
    (shade,) = axis.patches
    assert (shade.get_x(), shade.get_width()) == (pytest.approx(20), pytest.approx(2))
    dots = {line.get_ydata()[0]: line for line in axis.lines if line.get_marker() == 'o'}
    means = {line.get_ydata()[0]: line for line in axis.lines if line.get_marker() == '|'}
    assert list(dots) == [base.label, ema.label]  # drawn from below, so the best is on top
    assert list(dots[ema.label].get_xdata()) == pytest.approx([30, 31])
    assert list(means[ema.label].get_xdata()) == pytest.approx([30.5])
    assert dots[base.label].get_color() != dots[ema.label].get_color()
    assert 'AP on cells, %' in axis.get_xlabel()
