"""True and detected boxes of a data set as arrays."""

import numpy as np

from evit_mm.data.coco import repaired
from evit_mm.data.counts import evaluation_counts, training_counts
from evit_mm.evaluation.boxes import read_found, truth_of
from evit_mm.evaluation.synthetic_detections import synthetic_detections
from tests.evaluation.test_tide import FAR, A, B, a_case


def test_an_object_is_no_crowd_unless_the_file_says_so():
    truth, _ = synthetic_detections(60, num_classes=3)
    flags = [bool(a['iscrowd']) for a in truth['annotations']]
    for annotation in truth['annotations']:
        if not annotation['iscrowd']:
            del annotation['iscrowd']
    names = [category['name'] for category in truth['categories']]
    found = truth_of(evaluation_counts(repaired(truth)[0], names), '.', names)
    assert any(flags) and np.array_equal(found.crowd, flags)
    assert found.objects.sum() == flags.count(False)


def test_truth_with_absent_classes_and_of_some_images():
    truth, _ = synthetic_detections(5, num_classes=3)
    names = ['class 2', 'nowhere', 'class 1']
    things = truth_of(evaluation_counts(truth, names), '.', names)
    assert things.objects[1] == 0 and things.objects[[0, 2]].sum() > 0
    for indices, expected in ((2, [1, 2]), (0, []), (-2, [4, 5]), ([3, 0], [1, 4])):
        images = training_counts(truth, names, None, indices).images
        ids = [image['id'] for image in images]
        some = truth_of(evaluation_counts(truth, names, ids), '.', names)
        assert [image['id'] for image in some.images] == expected
        assert set(some.image.tolist()) <= {0, 1}
        own = [
            a for a in truth['annotations'] if a['image_id'] in expected and a['category_id'] < 3
        ]
        assert [expected[place] for place in some.image] == [a['image_id'] for a in own]
        assert [(2, 1)[label // 2] for label in some.label] == [a['category_id'] for a in own]
        assert some.box.tolist() == [a['bbox'] for a in own]
        assert some.area.tolist() == [a['area'] for a in own]
    names = ['class 1', 'nowhere', 'neither']
    absent = truth_of(evaluation_counts(truth, names), '.', names)
    assert absent.objects.shape == (3,) and absent.objects[1:].tolist() == [0, 0]
    assert absent.classes == ('class 1', 'nowhere', 'neither')
    assert absent.category_ids == (1, None, None)


def test_detections_are_sorted_by_score_and_equal_ones_stay_in_order():
    results = a_case([], [(0, A, 0.5), (1, B, 0.75), (1, A, 0.5), (1, FAR, 0.75), (0, B, 0.125)])
    names = ['class 1', 'class 0']
    truth = truth_of(evaluation_counts(results[0], names), '.', names)
    found = read_found(results[1], truth)
    assert found.score.tolist() == [0.75, 0.75, 0.5, 0.5, 0.125]
    assert found.box.tolist() == [B, FAR, A, A, B]
    assert found.label.tolist() == [0, 0, 1, 0, 1] and found.image.tolist() == [0] * 5
