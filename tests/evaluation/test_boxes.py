"""True and detected boxes of a data set as arrays."""

import json

import numpy as np
import pytest

from evit_mm.errors import DataError
from evit_mm.evaluation.boxes import read_truth
from evit_mm.evaluation.synthetic_detections import synthetic_detections
from tests.evaluation.test_tide import A, a_case


def test_an_object_is_no_crowd_unless_the_file_says_so():
    truth, _ = synthetic_detections(60, num_classes=3)
    flags = [bool(a['iscrowd']) for a in truth['annotations']]
    for annotation in truth['annotations']:
        if not annotation['iscrowd']:
            del annotation['iscrowd']
    names = [category['name'] for category in truth['categories']]
    found = read_truth(json.dumps(truth), 'a', '.', names)
    assert any(flags) and np.array_equal(found.crowd, flags)
    assert found.objects.sum() == flags.count(False)


def test_a_file_that_is_not_cocos_is_named():
    truth, _ = a_case([(0, A)], [])
    del truth['annotations'][0]['bbox']
    for content in (json.dumps(truth), '{'):
        with pytest.raises(DataError, match="a.json' is not in COCO format"):
            read_truth(content, 'a.json', '.', ['class 0'])


def test_truth_with_absent_classes_and_of_some_images():
    truth, _ = synthetic_detections(5, num_classes=3)
    content, names = json.dumps(truth), ['class 2', 'nowhere', 'class 1']
    things = read_truth(content, 'a', '.', names)
    assert things.objects[1] == 0 and things.objects[[0, 2]].sum() > 0
    for indices, expected in ((2, [1, 2]), (-2, [4, 5]), ([0, 3], [1, 4])):
        some = read_truth(content, 'a', '.', names, indices)
        assert [image['id'] for image in some.images] == expected
        assert set(some.image.tolist()) <= {0, 1}
