"""AP of resampled images, against pycocotools on copies of the images and hotcoco's comparison."""

import contextlib
import io

import hotcoco
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import stats

from evit_mm.evaluation.bootstrap import (
    compare_runs,
    draw_images,
    resampled_ap,
)
from evit_mm.evaluation.boxes import Found, Truth, coco_evaluator


def made(num_images=12, num_classes=3, seed=0, noise=6.0):
    """Return objects with crowds, and detections of them with noise and false ones."""
    rng = np.random.default_rng(seed)
    image = np.sort(rng.integers(num_images, size=60))
    label = rng.integers(num_classes, size=60)
    box = np.column_stack([rng.uniform(0, 200, (60, 2)), rng.uniform(10, 90, (60, 2))])
    crowd = rng.random(60) < 0.1
    images = [{'id': i, 'width': 300, 'height': 300} for i in range(num_images)]
    names = tuple('abc'[:num_classes])
    truth = Truth(
        names, tuple(range(num_classes)), images, None, image, label, box, box[:, 2:].prod(1), crowd
    )
    keep = rng.random(60) < 0.8
    extra = 40
    moved = box[keep] + rng.normal(0, noise, (keep.sum(), 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], 2)
    false = np.column_stack([rng.uniform(0, 200, (extra, 2)), rng.uniform(10, 90, (extra, 2))])
    score = rng.random(keep.sum() + extra)
    order = np.argsort(-score, kind='stable')
    found = Found(
        np.concatenate([image[keep], rng.integers(num_images, size=extra)])[order],
        np.concatenate([label[keep], rng.integers(num_classes, size=extra)])[order],
        np.concatenate([moved, false])[order],
        score[order],
    )
    return truth, found


def ap_of_copies(truth, found, times):
    """Return pycocotools' AP of a data set in which image i occurs times[i] times."""
    images, objects, detections = [], [], []
    for place, number in enumerate(times):
        for _ in range(number):
            identity = len(images) + 1
            images.append({'id': identity, 'width': 300, 'height': 300})
            for k in np.flatnonzero(truth.image == place):
                objects.append(
                    {
                        'id': len(objects) + 1,
                        'image_id': identity,
                        'category_id': int(truth.label[k]),
                        'bbox': truth.box[k].tolist(),
                        'area': float(truth.area[k]),
                        'iscrowd': int(truth.crowd[k]),
                    }
                )
            detections += [
                {
                    'image_id': identity,
                    'category_id': int(found.label[k]),
                    'bbox': found.box[k].tolist(),
                    'score': float(found.score[k]),
                }
                for k in np.flatnonzero(found.image == place)
            ]
    coco = COCO()
    coco.dataset = {
        'images': images,
        'annotations': objects,
        'categories': [{'id': k, 'name': n} for k, n in enumerate(truth.classes)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(detections), 'bbox')
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats[0]


@pytest.mark.parametrize('seed', range(4))
def test_ap_of_a_sample_is_that_of_a_data_set_with_copies(seed):
    truth, found = made(seed=seed)
    evaluator = coco_evaluator(truth, found)
    counts = draw_images(12, samples=8, seed=seed)
    counts[0] = 1
    assert (counts.sum(1) == 12).all() and len(np.unique(counts, axis=0)) == 8
    expected = [ap_of_copies(truth, found, times) for times in counts]
    assert resampled_ap(evaluator, counts) == pytest.approx(expected, abs=1e-12)
    assert np.std(expected) > 0.01


def test_only_100_detections_of_an_image_count():
    truth, found = made(num_images=1, num_classes=1)
    many = Found(*(np.tile(part, (3, 1) if part.ndim == 2 else 3) for part in vars(found).values()))
    many.score[:] = np.random.default_rng(0).permutation(len(many.score)) / len(many.score)
    order = np.argsort(-many.score)
    many = Found(*(part[order] for part in vars(many).values()))
    assert len(many.score) > 200
    (ap,) = resampled_ap(coco_evaluator(truth, many), np.ones((1, 1), int))
    assert ap == pytest.approx(ap_of_copies(truth, many, [1]), abs=1e-12)


def test_a_class_without_objects_in_the_sample_does_not_count():
    truth, found = made()
    times = np.zeros((2, 12), int)
    only = truth.image[truth.label == 1][0]
    times[0, only] = 2
    evaluator = coco_evaluator(truth, found)
    ap, none = resampled_ap(evaluator, times)
    assert ap == pytest.approx(ap_of_copies(truth, found, times[0]), abs=1e-12)
    assert np.isnan(none)


def test_the_interval_of_one_run_each_is_that_of_hotcoco():
    truth, found = made(num_images=60, seed=1, noise=3)
    _, other = made(num_images=60, seed=1, noise=9)
    a, b = coco_evaluator(truth, found), coco_evaluator(truth, other)
    theirs = hotcoco.compare(b, a, n_bootstrap=2000)
    counts = draw_images(60, samples=2000)
    ours = compare_runs([0.5], [0.4], [resampled_ap(a, counts)], [resampled_ap(b, counts)])
    theirs = theirs['ci']['AP']
    assert (ours.low, ours.high) == pytest.approx((theirs['lower'], theirs['upper']), abs=0.015)
    assert ours.verdict == 'leads' and ours.low > 0
    with pytest.raises(ValueError, match='without samples'):
        compare_runs([0.5], [0.4, 0.4])


def test_the_interval_over_the_seeds_is_that_of_welch():
    ours, theirs = [0.31, 0.36, 0.33], [0.29, 0.21]
    found = compare_runs(ours, theirs)
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    found = compare_runs([0.3, 0.3], [0.2, 0.2, 0.2])
    assert (found.low, found.high) == pytest.approx((0.1, 0.1)) and found.verdict == 'leads'


@pytest.mark.parametrize('runs', [2, 3, 5])
@pytest.mark.parametrize('spread', [0.5, 1.0, 3.0])
def test_equally_good_detectors_have_a_verdict_one_time_in_twenty(runs, spread):
    """The seeds of the second detector vary as much as the images, the first's by ``spread``."""
    rng = np.random.default_rng(0)
    verdicts = 0
    for _ in range(400):
        # the mean over an endless number of images is 0 for both
        image, samples = rng.normal(), rng.normal(size=200)
        ours, theirs = rng.normal(0, (spread, 1), (runs, 2)).T
        ours = ours + image
        drawn = [
            [ap + place * (samples - samples.mean()) for ap in aps]
            for place, aps in ((1, ours), (0, theirs))
        ]
        verdicts += compare_runs(ours, theirs, *drawn).verdict != 'undecided'
    assert verdicts < 0.12 * 400
