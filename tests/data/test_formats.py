"""Every format gives the same boxes and the same AP as COCO, and errors name file and place."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evit_mm.data.layout import find_data
from tests.data import exports


@pytest.fixture(scope='module')
def cells(real_data, tmp_path_factory):
    """All blood cells in COCO's form, on the file system of the tests."""
    copy = tmp_path_factory.mktemp('cells') / 'coco'
    return shutil.copytree(real_data('bccd'), copy)


def truth(ann_file):
    """Return the objects of each image, by the names that all formats share."""
    coco = json.loads(Path(ann_file).read_text())
    names = {c['id']: c['name'] for c in coco['categories']}
    images = {i['id']: (Path(i['file_name']).name, i['width'], i['height']) for i in coco['images']}
    found = {image: [] for image in images.values()}
    for a in coco['annotations']:
        found[images[a['image_id']]].append((names[a['category_id']], a['bbox'], a['iscrowd']))
    return {image: sorted(objects) for image, objects in found.items()}


def figures(ann_file, seed=0):
    """Return pycocotools' figures of made-up detections, which depend only on names and boxes."""
    coco = COCO(str(ann_file))
    label = {c['name']: c['id'] for c in coco.loadCats(coco.getCatIds())}
    detections = []
    for number, image in sorted((Path(i['file_name']).name, k) for k, i in coco.imgs.items()):
        rng = random.Random(f'{seed} {number}')
        boxes = coco.loadAnns(coco.getAnnIds(image))
        for box in sorted(a['bbox'] for a in boxes):
            for name in sorted(label):
                moved = [v + rng.gauss(0, 4) for v in box]
                detections.append(
                    {
                        'image_id': image,
                        'category_id': label[name],
                        'bbox': moved[:2] + [max(v, 1) for v in moved[2:]],
                        'score': rng.random(),
                    }
                )
    evaluation = COCOeval(coco, coco.loadRes(detections), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


@pytest.fixture(scope='module')
def expected(cells):
    return figures(cells / 'annotations' / 'instances_val.json')


@pytest.mark.parametrize('writer', exports.WRITERS, ids=lambda writer: writer.__name__)
def test_boxes_and_ap_equal_those_of_coco(writer, cells, expected, tmp_path):
    writer(cells, tmp_path / 'set')
    data = find_data(tmp_path / 'set')
    for name, split in (('train', data.train), ('val', data.val)):
        assert truth(split.ann_file) == truth(cells / 'annotations' / f'instances_{name}.json')
        assert sorted(split.classes) == ['Platelets', 'RBC', 'WBC']
        assert split.first_image.is_file() and split.first_size == (640, 480)
    found = figures(data.val.ann_file)
    assert 0.05 < expected[0] < 0.9
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
