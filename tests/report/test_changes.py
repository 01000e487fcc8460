"""The differences of two runs, against values by hand and naive sorts."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest

from evit_mm.evaluation import tide
from evit_mm.evaluation.synthetic_detections import synthetic_detections
from evit_mm.report import changes
from tests.evaluation.test_tide import analysed


@pytest.fixture(scope='module')
def pair():
    """Two analyses of the same 40 images; the second detector is better on some images."""
    truth, found = synthetic_detections(40, num_classes=5, seed=2)
    rng = np.random.default_rng(0)
    worse = [d for d in found if d['image_id'] > 20 or rng.random() < 0.5]
    other = [d for d in found if d['image_id'] <= 20 or rng.random() < 0.5]
    return analysed(truth, worse), analysed(truth, other)


def test_figures_costs_and_classes_are_those_before_and_after(pair):
    one, two = pair
    figures = changes.figure_changes(one, two)
    assert [f[:3] for f in figures][1] == ('AP50', one.figures.twelve[1], two.figures.twelve[1])
    assert len(figures) == 12
    costs = changes.cost_changes(one, two)
    assert [c.name for c in costs] == list(tide.KINDS)
    assert [c.before for c in costs] == one.costs and [c.after for c in costs] == two.costs
    assert one.costs != two.costs
    assert changes.Change('a', 0.25, 1.0).difference == 0.75
    classes = changes.class_changes(one, two)
    assert {c.name for c in classes} == set(one.truth.classes)
    for name, before, after in classes:
        place = one.truth.classes.index(name)
        assert (before, after) == (one.figures.ap[place], two.figures.ap[place])
    differences = [c.after - c.before for c in classes]
    assert differences == sorted(differences) and differences[0] < 0 < differences[-1]


def test_classes_of_one_run_only_are_left_out_and_an_unknown_change_is_none():
    def run(**ap):
        return SimpleNamespace(of_classes={name: (9, value, 1.0) for name, value in ap.items()})

    nan = float('nan')
    found = changes.class_changes(run(a=0.5, b=0.5, c=nan, d=0.5), run(e=0, d=0.4, c=0.3, b=0.7))
    assert [change.name for change in found] == ['d', 'c', 'b']


def test_images_with_the_largest_loss_and_gain_are_paired(pair):
    one, two = pair
    change = dict(zip((i['file_name'] for i in one.truth.images), two.f1 - one.f1, strict=True))
    worse, better = changes.image_changes(one, two)
    for cards, sign in ((worse, 1), (better, -1)):
        values = sorted(sign * value for value in change.values() if sign * value < 0)
        assert len(values) > 6 and len(cards) == 6
        assert [sign * change[a.name] for a, _ in cards] == values[:6]
        for a, b in cards:
            assert a.name == b.name and b.f1 - a.f1 == pytest.approx(change[a.name])
            image = [i['file_name'] for i in one.truth.images].index(a.name)
            for card, analysis in ((a, one), (b, two)):
                assert len(card.found) == min(40, np.sum(analysis.found.image == image))
    assert changes.image_changes(one, one) == ([], [])
    moved = copy.deepcopy(two)
    moved.truth.images[0]['id'] = -1
    assert changes.image_changes(one, moved) == ([], [])


def test_a_config_is_compared_from_the_first_to_the_second():
    runs = [SimpleNamespace(name=n, config_text=f'x = 1\nlr = {n}\n') for n in '12']
    assert changes.config_diff(*runs).splitlines() == [
        '--- 1', '+++ 2', '@@ -1,2 +1,2 @@', ' x = 1', '-lr = 1', '+lr = 2',
    ]  # fmt: skip
    assert changes.config_diff(runs[0], runs[0]) == ''
