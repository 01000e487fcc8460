"""The figures of the report against pycocotools and naive loops."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evit_mm.evaluation import tide
from evit_mm.evaluation.synthetic_detections import synthetic_detections
from tests.evaluation.test_tide import FAR, A, B, a_case, analysed


def naive_iou(a, b, crowd):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - shared)


@pytest.fixture(scope='module')
def small():
    """Twenty made images with distinct scores, and what is said of them."""
    truth, found = synthetic_detections(20, num_classes=4, seed=5)
    for place, detection in enumerate(found):
        detection['score'] += place * 1e-7
    return truth, found, analysed(truth, found)


def test_twelve_figures_classes_and_curves_are_pycocotools(small):
    truth, found, mine = small[0], small[1], small[2].figures
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = json.loads(json.dumps(truth))
        api.createIndex()
        theirs = COCOeval(api, api.loadRes(json.loads(json.dumps(found))), 'bbox')
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    precision = theirs.eval['precision'][..., 0, -1]
    assert list(mine.twelve) == theirs.stats.tolist()
    assert mine.ap == pytest.approx(precision.mean((0, 1)), abs=1e-12)
    assert mine.ap50 == pytest.approx(precision[0].mean(0), abs=1e-12)
    assert mine.curves['0.50'] == pytest.approx(precision[0].mean(1), abs=1e-12)
    assert mine.curves['0.75'] == pytest.approx(precision[5].mean(1), abs=1e-12)
    assert mine.curves['0.50 to 0.95'] == pytest.approx(precision.mean((0, 2)), abs=1e-12)


def test_confusion_and_f1_of_images_against_naive_loops(small):
    """From the working score on; what lies in a crowd does not count."""
    truth, found, mine = small
    confusion = np.zeros((5, 5), int)
    f1 = []
    for image in truth['images']:
        objects = [a for a in truth['annotations'] if a['image_id'] == image['id']]
        crowds = [a for a in objects if a['iscrowd']]
        own = [
            d for d in sorted(found, key=lambda d: -d['score'])
            if d['image_id'] == image['id'] and d['score'] >= mine.working_score
        ]  # fmt: skip
        hits = naive_matches(own, objects, of_class=True)
        own = [
            d for d in own
            if id(d) in hits or not any(
                naive_iou(d['bbox'], c['bbox'], True) >= 0.5
                for c in crowds if c['category_id'] == d['category_id']
            )
        ]  # fmt: skip
        number = len(own) + len(objects) - len(crowds)
        f1.append(2 * len(hits) / number if number else 1)
        matches = naive_matches(own, objects, of_class=False)
        for d in own:
            thing = matches.get(id(d), {'category_id': 5})
            confusion[thing['category_id'] - 1, d['category_id'] - 1] += 1
        taken = [a['id'] for a in matches.values()]
        for a in objects:
            if not a['iscrowd'] and a['id'] not in taken:
                confusion[a['category_id'] - 1, 4] += 1
    assert mine.confusion.tolist() == confusion.tolist()
    assert confusion[:4, :4].trace() > 20 and confusion.sum() - confusion[:4, :4].trace() > 20
    assert mine.f1 == pytest.approx(f1) and len(set(f1)) > 8


def naive_matches(detections, objects, of_class):
    """Return the object of each detection: the surest takes the free one that it overlaps most."""
    free = [a for a in objects if not a['iscrowd']]
    matches = {}
    for d in detections:
        fits = [
            (naive_iou(d['bbox'], a['bbox'], False), -a['id'], a) for a in free
            if not of_class or a['category_id'] == d['category_id']
        ]  # fmt: skip
        iou, _, thing = max(fits, default=(0, 0, None), key=lambda fit: fit[:2])
        if iou >= 0.5:
            matches[id(d)] = thing
            free.remove(thing)
    return matches


def test_calibration_and_the_best_score_against_naive_loops(small):
    mine = small[2]
    seen, right = mine.found, mine.errors.kind == tide.RIGHT
    counted = np.flatnonzero(mine.errors.kind != tide.IGNORED)
    gaps = 0
    for place in range(10):
        own = [d for d in counted if place / 10 <= seen.score[d] < (place + 1) / 10]
        score, share = np.mean(seen.score[own]), np.mean(right[own])
        part = mine.calibration['bins'][place]
        assert part['count'] == len(own)
        assert part['avg_confidence'] == pytest.approx(score)
        assert part['avg_accuracy'] == pytest.approx(share)
        gaps += len(own) / len(counted) * abs(score - share)
    assert mine.calibration['ece'] == pytest.approx(gaps)

    def f1(threshold):
        sure = [d for d in counted if seen.score[d] >= threshold]
        return 2 * right[sure].sum() / (len(sure) + mine.truth.objects.sum())

    best = max(seen.score, key=f1)
    assert best - 0.01 < mine.working_score <= best


def test_the_best_score_counts_every_detection():
    # F1 of two objects: 2/3 with one of one right, 4/5 with two of three
    mine = analysed(*a_case([(0, A), (0, B)], [(0, A, 0.9), (0, FAR, 0.7), (0, B, 0.5)]))
    assert mine.working_score == 0.5
    # and its own detection is counted
    assert mine.confusion.tolist() == [[2, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert mine.f1.tolist() == [0.8]


def test_the_best_score_does_not_split_equal_scores_and_is_rounded_down():
    # F1 2/3 at 0.989; 1 at 0.5 without the three false ones of the same score, 4/7 with them
    false = [(0, [80, y, 9, 9], 0.5) for y in (0, 20, 40)]
    mine = analysed(*a_case([(0, A), (0, B)], [(0, A, 0.989), (0, B, 0.5), *false]))
    assert mine.working_score == 0.98


def test_a_class_has_its_objects_ap_and_ap50():
    # of two objects one is found, with an IoU of 0.6: at three of the ten thresholds
    objects, found = [(0, A), (0, B), (2, FAR)], [(0, [0, 0, 10, 6], 0.9)]
    own = analysed(*a_case(objects, found, classes=3)).of_classes
    assert own['class 0'] == pytest.approx((2, 0.3 * 51 / 101, 51 / 101))
    assert own['class 1'] == pytest.approx((0, np.nan, np.nan), nan_ok=True)
    assert own['class 2'] == (1, 0, 0) and len(own) == 3


def test_nothing_found_and_no_object_are_no_number_and_no_crash():
    truth, _ = a_case([(0, A)], [])
    nothing = analysed(truth, [])
    assert nothing.figures.twelve[0] == 0 and np.isnan(nothing.figures.ap[1])
    assert nothing.calibration['num_detections'] == nothing.working_score == 0
    assert nothing.confusion[0].tolist() == [0, 0, 1]
    assert nothing.f1.tolist() == [0]
    truth['annotations'] = []
    empty = analysed(truth, [])
    assert np.isnan(empty.figures.twelve[0]) and empty.f1.tolist() == [1]
