"""Detections become COCO's entries, with COCO's ids."""

import json

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.structures import InstanceData
from pycocotools import mask

from evit_mm.inference import coco_ids, to_coco


def config(root, ann_file='a.json'):
    dataset = dict(data_root=str(root), ann_file=ann_file, data_prefix=dict(img='pictures/'))
    return Config(dict(test_dataloader=dict(dataset=dataset)))


def test_ids_are_those_of_the_annotation_file(tmp_path):
    categories = [{'id': 9, 'name': 'a'}, {'id': 4, 'name': 'b'}, {'id': 7, 'name': 'c'}]
    size = {'width': 9, 'height': 6}
    images = [{'id': 31, 'file_name': 'x.jpg', **size}, {'id': 5, 'file_name': 'y.jpg', **size}]
    content = {'images': images, 'annotations': [], 'categories': categories}
    (tmp_path / 'a.json').write_text(json.dumps(content))
    names, ids = coco_ids(config(tmp_path), ('b', 'a'))
    folder = tmp_path.resolve() / 'pictures'
    assert names == {folder / 'x.jpg': 31, folder / 'y.jpg': 5} and ids == [4, 9]
    # a class that it does not have, or no such file
    assert coco_ids(config(tmp_path), ('b', 'z')) == ({}, [1, 2])
    assert coco_ids(config(tmp_path, 'no.json'), ('b', 'a')) == ({}, [1, 2])


def test_cocos_own_classes_have_cocos_own_ids(tmp_path):
    classes = CocoDataset.METAINFO['classes']
    ids = dict(zip(classes, coco_ids(config(tmp_path), classes)[1], strict=True))
    expected = {
        'person': 1,
        'fire hydrant': 11,
        'stop sign': 13,
        'cow': 21,
        'giraffe': 25,
        'backpack': 27,
        'umbrella': 28,
        'handbag': 31,
        'bottle': 44,
        'wine glass': 46,
        'potted plant': 64,
        'bed': 65,
        'dining table': 67,
        'toilet': 70,
        'tv': 72,
        'refrigerator': 82,
        'book': 84,
        'toothbrush': 90,
    }
    assert {name: ids[name] for name in expected} == expected
    for other in (classes[1:], ('man', *classes[1:]), (*classes[:-1], 'brush')):
        assert coco_ids(config(tmp_path), other)[1] == list(range(1, len(other) + 1))


@pytest.mark.parametrize('further', [None, {'frame': 3}])
def test_corners_become_sizes_and_masks_become_run_lengths(further):
    masks = np.zeros((2, 6, 9), bool)
    masks[0, 1:4, 2:8] = masks[1, 5, 0] = True
    instances = InstanceData(
        bboxes=torch.tensor([[1.0, 2.0, 11.0, 32.0], [0.5, 0.0, 2.5, 4.0]]),
        scores=torch.tensor([0.25, 0.75]),
        labels=torch.tensor([1, 0]),
        masks=torch.from_numpy(masks),
    )
    found = to_coco(instances, 7, 'a.jpg', ('cat', 'dog'), [17, 18], further)
    again = json.loads(json.dumps(found))
    decoded = [mask.decode(entry.pop('segmentation')) for entry in again]
    assert np.array_equal(decoded, masks)
    same = {'image_id': 7, 'file_name': 'a.jpg', **(further or {})}
    assert again == [
        {**same, 'category_id': 18, 'bbox': [1, 2, 10, 30], 'score': 0.25, 'category_name': 'dog'},
        {**same, 'category_id': 17, 'bbox': [0.5, 0, 2, 4], 'score': 0.75, 'category_name': 'cat'},
    ]
    del instances.masks
    assert 'segmentation' not in to_coco(instances, 7, 'a.jpg', ('cat', 'dog'), [17, 18])[0]
