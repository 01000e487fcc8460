"""TIDE's kinds of error and what each costs: by hand, and against the authors' tool."""

import json

import numpy as np
import pytest

from evit_mm.data.counts import evaluation_counts
from evit_mm.evaluation import boxes, tide
from evit_mm.evaluation.synthetic_detections import synthetic_detections
from evit_mm.report import analysis
from tests.conftest import ROOT


def read(truth, found):
    classes = [category['name'] for category in truth['categories']]
    things = boxes.truth_of(evaluation_counts(truth, classes), '.', classes)
    return things, boxes.read_found(found, things)


def analysed(truth, found):
    return analysis.analyse_detections(*read(truth, found))


def a_case(objects, found, classes=2):
    """One image; objects ``(class, box[, crowd])``, detections ``(class, box, score)``."""
    truth = {
        'images': [{'id': 7, 'file_name': 'a.jpg', 'width': 100, 'height': 100}],
        'categories': [{'id': 10 + i, 'name': f'class {i}'} for i in range(classes)],
        'annotations': [
            {
                'id': i,
                'image_id': 7,
                'category_id': 10 + k,
                'bbox': box,
                'area': box[2] * box[3],
                'iscrowd': int(bool(crowd)),
            }
            for i, (k, box, *crowd) in enumerate(objects)
        ],
    }
    results = [
        {'image_id': 7, 'category_id': 10 + k, 'bbox': box, 'score': score}
        for k, box, score in found
    ]
    return truth, results


A, B, FAR = [0, 0, 10, 10], [40, 40, 10, 10], [80, 80, 10, 10]
SHIFTED = [0, 5, 10, 10]  # IoU 1/3 with A
HALF = 51 / 101  # of two objects one found: COCO's 101 points up to recall 0.5


@pytest.mark.parametrize(
    ('objects', 'found', 'kinds', 'missed', 'ap', 'cost'),
    [
        ([(0, A)], [(0, A, 0.9)], [tide.RIGHT], 0, 1, {}),
        ([(0, A)], [(1, A, 0.9)], [tide.CLASSIFICATION], 0, 0, {'classification': 1}),
        ([(0, A)], [(0, SHIFTED, 0.9)], [tide.LOCALISATION], 0, 0, {'localisation': 1}),
        # to suppress it gains nothing, and the object is missed all the same
        ([(0, A), (0, B)], [(1, SHIFTED, 0.9), (0, B, 0.8)], [tide.BOTH, -1], 1, HALF,
         {'missed': 1 - HALF}),
        # a missed object that is not counted leaves a false detection where it is
        ([(0, A)], [(0, FAR, 0.9)], [tide.FALSE_ALARM], 1, 0, {}),
        ([(0, A)], [(0, FAR, 0.9), (0, A, 0.8)], [tide.FALSE_ALARM, -1], 0, 0.5,
         {'background': 0.5}),
        ([(0, A), (0, B)], [(0, A, 0.9), (0, A, 0.8), (0, B, 0.7)],
         [-1, tide.DUPLICATE, -1], 0, (51 + 50 * 2 / 3) / 101,
         {'duplicate': 1 - (51 + 50 * 2 / 3) / 101}),
        ([(0, A), (0, B)], [(0, A, 0.9)], [-1], 1, HALF, {'missed': 1 - HALF}),
        # of a class without detections, hotcoco's AP is 0 whatever is missed
        ([(0, A)], [], [], 1, 0, {}),
        # the surer of two that are about one object is mended, the other goes
        ([(0, A)], [(0, SHIFTED, 0.9), (0, [5, 0, 10, 10], 0.8)], [tide.LOCALISATION] * 2, 0, 0,
         {'localisation': 1}),
        # an object that is found needs no mending: the false one just goes
        ([(0, A)], [(0, SHIFTED, 0.9), (0, A, 0.8)], [tide.LOCALISATION, -1], 0, 0.5,
         {'localisation': 0.5}),
        # in a crowd nothing is counted, unless it is of another class
        ([(0, A), (0, B, True)], [(0, [42, 42, 4, 4], 0.95), (0, A, 0.9)], [tide.IGNORED, -1], 0,
         1, {}),
        ([(0, A), (1, B, True)], [(0, [42, 42, 4, 4], 0.95), (0, A, 0.9)],
         [tide.FALSE_ALARM, -1], 0, 0.5, {'background': 0.5}),
        # at the thresholds themselves: IoU 0.5, and IoU 0.1 with the right and the wrong class
        ([(0, A)], [(0, [0, 0, 10, 5], 0.9)], [tide.RIGHT], 0, 1, {}),
        ([(0, A)], [(1, [0, 0, 10, 5], 0.9)], [tide.CLASSIFICATION], 0, 0, {'classification': 1}),
        ([(0, A), (0, B)], [(0, A, 0.9), (0, [0, 0, 10, 5], 0.8), (0, B, 0.7)],
         [-1, tide.LOCALISATION, -1], 0, (51 + 50 * 2 / 3) / 101,
         {'localisation': 1 - (51 + 50 * 2 / 3) / 101}),
        ([(0, A)], [(0, [0, 0, 10, 1], 0.9)], [tide.LOCALISATION], 0, 0, {'localisation': 1}),
        ([(0, A)], [(1, [0, 0, 10, 1], 0.9)], [tide.FALSE_ALARM], 1, 0, {}),
        # nor is an object that overlaps a crowd badly placed
        ([(0, A), (0, B, True)], [(0, [40, 47, 10, 10], 0.95), (0, A, 0.9)],
         [tide.FALSE_ALARM, -1], 0, 0.5, {'background': 0.5}),
        # a class without objects is not in the mean, one without detections is
        ([(0, A)], [(0, A, 0.9), (1, FAR, 0.8)], [-1, tide.FALSE_ALARM], 0, 1, {}),
        ([(0, A), (1, B)], [(0, A, 0.9)], [-1], 1, 0.5, {}),
    ],
)  # fmt: skip
def test_each_kind_of_error_and_its_cost_by_hand(objects, found, kinds, missed, ap, cost):
    mine = analysed(*a_case(objects, found))
    assert mine.errors.kind.tolist() == kinds
    assert mine.tide['counts']['Miss'] == missed
    assert mine.tide['ap_base'] == pytest.approx(ap)
    expected = [100 * cost.get(kind, 0) for kind in tide.KINDS]
    assert mine.costs == pytest.approx(expected)


def test_which_object_each_error_is_about():
    objects = [(0, B, True), (0, A), (1, FAR), (0, [0, 80, 10, 10])]
    found = [
        (0, A, 0.9), (0, [0, 0, 10, 9], 0.8), (0, FAR, 0.7), (0, [0, 85, 10, 10], 0.6),
        (0, [42, 42, 4, 4], 0.5), (1, SHIFTED, 0.4), (0, [60, 0, 9, 9], 0.3), (1, FAR, 0.2),
    ]  # fmt: skip
    truth, results = a_case(objects, found)
    truth['images'].insert(0, {**truth['images'][0], 'id': 1})
    for thing in (truth['annotations'][0], truth['annotations'][1]):  # the same, an image before
        truth['annotations'].append({**thing, 'id': thing['id'] + 9, 'image_id': 1})
    errors = analysed(truth, results).errors
    assert errors.found_of.tolist() == [-1, 0, 7, -1, -1, -1]
    assert errors.about.tolist() == [-1, 1, 2, 3, -1, -1, -1, -1]
    assert errors.kind.tolist() == [
        tide.RIGHT, tide.DUPLICATE, tide.CLASSIFICATION, tide.LOCALISATION, tide.IGNORED,
        tide.BOTH, tide.FALSE_ALARM, tide.RIGHT,
    ]  # fmt: skip


def counted(errors):
    kinds = np.bincount(errors.kind[errors.kind >= 0], minlength=len(tide.KINDS) - 1)
    return dict(zip(tide.NAMES, kinds.tolist(), strict=False))


@pytest.mark.parametrize('seed', range(7))
def test_each_detection_is_of_the_kind_that_is_counted(seed):
    """With crowds, equal scores and equal boxes."""
    truth, found = synthetic_detections(40, num_classes=6, seed=seed)
    found += [{**detection, 'category_id': 1} for detection in found[::7]]
    mine = analysed(truth, found)
    kinds = counted(mine.errors)
    assert kinds == {name: mine.tide['counts'][name] for name in kinds}
    assert (mine.errors.kind == tide.IGNORED).any()


@pytest.mark.parametrize('case', [0, 1])
def test_errors_and_costs_are_those_of_the_authors_tool(case):
    golden = json.loads((ROOT / 'tests' / 'golden' / 'tide_golden.json').read_text())['cases'][case]
    truth, found = synthetic_detections(*golden['made_detections'])
    truth['annotations'] = [a for a in truth['annotations'] if not a['iscrowd']]
    for place, detection in enumerate(found):
        detection['score'] += place * 1e-8
    mine = analysed(truth, found)
    assert 100 * mine.tide['ap_base'] == pytest.approx(golden['AP50'], abs=1e-9)
    assert mine.tide['counts'] == golden['counts']
    assert counted(mine.errors).items() <= golden['counts'].items()  # of each detection too
    assert mine.costs == pytest.approx([golden['lost'][name] for name in tide.NAMES], abs=1e-9)
    gained, special = mine.tide['delta_ap'], golden['special']
    assert 100 * gained['FP'] == pytest.approx(special['FalsePos'], abs=1e-9)
    assert 100 * gained['FN'] == pytest.approx(special['FalseNeg'], abs=1e-9)
