"""True and detected boxes of a data set as arrays."""

import json

import numpy as np

from evit_mm.evaluation.boxes import read_truth
from evit_mm.evaluation.synthetic_detections import synthetic_detections


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
