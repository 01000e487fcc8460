"""Each statement on an evaluator or a loader is provoked, and the figure shown with and without."""

import contextlib
import copy
import io
import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.registry import init_default_scope

from evit_mm.data.check import check_config_data, inspect_config_data
from evit_mm.data.coco_dataset import TolerantCocoDataset
from evit_mm.data.counts import evaluation_counts
from evit_mm.data.statements import evaluation_notes
from evit_mm.errors import ConfigError, DataError
from evit_mm.evaluation.coco_metric import HotCocoMetric

CLASSES = ('cat', 'dog')
METRICS = {'CocoMetric': CocoMetric, 'HotCocoMetric': HotCocoMetric}
LOADERS = {'CocoDataset': CocoDataset, 'TolerantCocoDataset': TolerantCocoDataset}


def made(images=2, first=1):
    """Return a file with a cat and a dog in each image."""
    boxes = [[5, 5, 20, 30], [40, 10, 30, 20]]
    return {
        'images': [
            {'id': i, 'file_name': f'{i}.png', 'width': 80, 'height': 60} for i in range(images)
        ],
        'annotations': [
            {'id': first + 2 * i + k, 'image_id': i, 'category_id': 3 + k, 'bbox': list(boxes[k])}
            | {'area': 600, 'iscrowd': 0}
            for i in range(images)
            for k in range(2)
        ],
        'categories': [{'id': 3, 'name': 'cat'}, {'id': 4, 'name': 'dog'}],
    }


@pytest.fixture
def write(tmp_path):
    init_default_scope('mmdet')

    def write(coco, name='a.json'):
        path = tmp_path / name
        path.write_text(json.dumps(coco))
        for image in coco.get('images', ()):
            file = tmp_path / image['file_name']
            # each image has its own content
            pixels = np.full((image['height'], image['width'], 3), image['id'], np.uint8)
            file.exists() or cv2.imwrite(str(file), pixels)
        return path

    return write


def config(path, loader='TolerantCocoDataset', train=None, evaluator=None, **dataset):
    """Return a config that evaluates on a file, and trains on ``train``."""
    common = {'type': loader, 'metainfo': {'classes': CLASSES}, 'pipeline': []}
    common['data_prefix'] = {'img': str(path.parent)}
    cfg = {
        'model': {},
        'test_dataloader': {
            'dataset': {**common, 'ann_file': str(path), 'test_mode': True, **dataset}
        },
        'test_evaluator': {'type': 'HotCocoMetric', 'ann_file': str(path), **(evaluator or {})},
    }
    if train is not None:
        cfg['train_dataloader'] = {'dataset': {**common, 'ann_file': str(train), **dataset}}
    return Config(cfg)


def said(cfg, *splits):
    """Return the errors and the notes, without the name of the file."""
    report = inspect_config_data(cfg, splits or ('test',))
    return [[text.rpartition(".json': ")[2] for text in x] for x in (report.faults, report.notes)]


def ap(kind, path, shown, metric='bbox_mAP', run=None, **options):
    """Return the AP of a detector that finds the given objects exactly."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = METRICS[kind](ann_file=str(path), **options)
        evaluator.dataset_meta = {'classes': CLASSES}
        labels = {c['id']: k for k, c in enumerate(shown['categories'])}
        for image in shown['images'][:run]:
            own = [a for a in shown['annotations'] if a['image_id'] == image['id']]
            boxes = torch.tensor([a['bbox'] for a in own], dtype=torch.float64).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            instances = {
                'bboxes': boxes,
                'scores': torch.full((len(own),), 0.9),
                'labels': torch.tensor([labels[a['category_id']] for a in own], dtype=torch.long),
            }
            size = image['height'], image['width']
            sample = {'img_id': image['id'], 'ori_shape': size, 'pred_instances': instances}
            evaluator.process({}, [sample])
        return evaluator.evaluate(len(evaluator.results))[f'coco/{metric}']


def load(kind, path, **options):
    with contextlib.redirect_stdout(io.StringIO()):
        return LOADERS[kind](
            ann_file=str(path),
            data_prefix={'img': str(path.parent)},
            metainfo={'classes': CLASSES},
            pipeline=[],
            **options,
        )


def instances(dataset):
    return sum(len(dataset.get_data_info(i)['instances']) for i in range(len(dataset)))


PLAIN = {'type': 'CocoMetric'}


def test_the_annotation_id_zero(write):
    coco = made(1, first=0)
    path = write(coco)
    assert ap('CocoMetric', path, coco) == 0.5 and ap('HotCocoMetric', path, coco) == 1
    (fault,), notes = said(config(path, evaluator=PLAIN))
    assert 'cannot match an object whose id is 0 or not a number (annotation 0)' in fault
    assert "set test_evaluator.type='HotCocoMetric'" in fault and not notes
    faults, (note,) = said(config(path))
    assert not faults and 'annotation 0 has the id 0' in note
    path = write(made(1))
    assert ap('CocoMetric', path, coco) == 1 and said(config(path, evaluator=PLAIN)) == [[], []]


def test_annotation_ids_that_are_words(write):
    coco = made(1)
    coco['annotations'][0]['id'], coco['annotations'][1]['id'] = 'a', 'b'
    path = write(coco)
    with pytest.raises(ValueError, match='could not convert string to float'):
        ap('CocoMetric', path, coco)
    assert ap('HotCocoMetric', path, coco) == 1
    assert 'not a number (annotations a, b)' in said(config(path, evaluator=PLAIN))[0][0]
    assert said(config(path)) == [[], []]
    coco['annotations'][1]['id'] = 1
    assert 'numbers and strings; use one kind' in said(config(write(coco)))[0][0]


def test_the_flag_ignore(write):
    coco = made()
    coco['annotations'][1]['ignore'] = 1
    path = write(coco)
    assert instances(load('CocoDataset', path)) == 3
    found = {**coco, 'annotations': coco['annotations'][:1] + coco['annotations'][2:]}
    assert ap('CocoMetric', path, found) == ap('HotCocoMetric', path, found) == 0.752
    faults, notes = said(config(path, train=path), 'train', 'test')
    trained, counted = (note for note in notes if 'ignore' in note)
    assert not faults
    assert trained.startswith('training skips 1 object with "ignore": 1 (annotation 2)')
    assert counted.startswith('evaluation counts 1 object with "ignore": 1 (annotation 2)')
    for annotation in coco['annotations']:
        annotation['ignore'] = 1
    (fault,), _ = said(config(path, train=write(coco)), 'train')
    assert 'no object to train on (skipped: 4 by the flag "ignore"); add at least one' in fault


@pytest.mark.parametrize('indices', [1, [0], -1])
def test_an_evaluation_of_some_images(indices, write):
    coco = made(4)
    path = write(coco)
    shown = copy.deepcopy(coco)
    assert ap('CocoMetric', path, shown, run=1) == 0.257
    assert ap('HotCocoMetric', path, shown, run=1) == 1
    faults, (note,) = said(config(path, indices=indices))
    assert not faults
    assert note == 'evaluation takes only 1 of 4 images, and only their objects count'
    faults, (note,) = said(config(path, indices=indices, evaluator=PLAIN))
    assert not faults and 'CocoMetric counts every object of the others as not found' in note
    assert said(config(path)) == said(config(path, evaluator=PLAIN)) == [[], []]
    (fault,), _ = said(config(path, indices=[0, 4]))
    assert fault == 'indices is [0, 4], but the file has only 4 images; correct it'


def test_numbers_of_detections_without_an_ap(write):
    path = write(made())
    assert ap('CocoMetric', path, made(), proposal_nums=(1, 10, 300)) == -1
    with pytest.raises(IndexError):
        ap('CocoMetric', path, made(), proposal_nums=(300,))
    for kind in METRICS:
        for numbers in ((1, 10, 300), (300,), (1, 100)):
            options = {'type': kind, 'proposal_nums': numbers}
            (fault,), _ = said(config(path, evaluator=options))
            assert 'test_evaluator.proposal_nums is' in fault and '(1, 10, 100)' in fault
            fast = {**options, 'metric': 'proposal_fast'}
            assert said(config(path, evaluator=fast)) == [[], []]
        assert said(config(path, evaluator={'type': kind})) == [[], []]


def test_the_ap_of_classes_whose_ids_are_not_sorted(write):
    coco = made(1)
    for item in coco['annotations']:
        item['category_id'] = 7 - item['category_id']
    coco['categories'] = [{'id': 4, 'name': 'cat'}, {'id': 3, 'name': 'dog'}]
    path = write(coco)
    only_cats = {**coco, 'annotations': [a for a in coco['annotations'] if a['category_id'] == 4]}
    figures = [ap(kind, path, only_cats, 'cat_precision', classwise=True) for kind in METRICS]
    assert figures == [0, 1]
    (fault,), _ = said(config(path, evaluator={**PLAIN, 'classwise': True}))
    assert "CocoMetric would swap the AP of the classes; set type='HotCocoMetric'" in fault
    assert said(config(path, evaluator={'classwise': True})) == [[], []]


@pytest.mark.parametrize(
    ('thresholds', 'missing', 'text'),
    [
        ([0.8], {'mAP_50', 'mAP_75'}, 'iou_thrs has no 0.5 and no 0.75'),
        ([0.25, 0.3, 0.35, 0.4, 0.45, 0.55, 0.75], {'mAP_50'}, 'iou_thrs has no 0.5,'),
        (0.5, {'mAP_75'}, 'iou_thrs has no 0.75, so there is no mAP_75'),
        ([0.75, 0.5], set(), None),
    ],
)
def test_thresholds_of_ones_own(thresholds, missing, text, write):
    path = write(made())
    options = {'iou_thrs': thresholds, 'classwise': True}
    for item in ('mAP', 'mAP_50', 'mAP_75'):
        if item in missing:
            with pytest.raises(KeyError, match=item):
                ap('HotCocoMetric', path, made(), f'bbox_{item}', **options)
            with pytest.raises(ConfigError, match=f'metric_items has {item}'):
                ap('HotCocoMetric', path, made(), metric_items=[item], **options)
        else:
            assert ap('HotCocoMetric', path, made(), f'bbox_{item}', **options) == 1
        faults, _ = said(config(path, evaluator={'metric_items': [item], **options}))
        assert [f'metric_items has {item}' in fault for fault in faults] == [True] * (
            item in missing
        )
    faults, notes = said(config(path, evaluator=options))
    assert not faults and [text in note for note in notes] == [True] * bool(missing)
    # pycocotools needs an array, and mmdet's table of classes takes the first and the sixth
    with pytest.raises((TypeError, ValueError)):
        ap('CocoMetric', path, made(), iou_thrs=thresholds)
    for given in (options, {'iou_thrs': thresholds}, {**options, 'iou_thrs': np.array([0.8])}):
        (fault,), _ = said(config(path, evaluator={**PLAIN, **given}))
        assert "CocoMetric ends in an error or in wrong figures; set type='HotCocoMetric'" in fault
    with pytest.raises(IndexError):
        ap('CocoMetric', path, made(), iou_thrs=np.array([0.8]), classwise=True)
    array = {'iou_thrs': np.array([0.8])}
    assert ap('CocoMetric', path, made(), 'bbox_mAP_50', **array) == -1
    faults, (note,) = said(config(path, evaluator={**PLAIN, **array}))
    assert not faults and 'there is no mAP_50 and no mAP_75' in note


def test_an_area_that_cannot_be_right(write):
    def sizes(path):
        return [ap('HotCocoMetric', path, coco, f'bbox_mAP_{size}') for size in 'sml']

    coco = made()
    for annotation in coco['annotations'][:2]:
        annotation.update(bbox=[5, 5, 60, 50], area=3000, segmentation=[[5, 5, 65, 5, 65, 55]])
    assert sizes(write(coco)) == [1, 1, -1] and said(config(write(coco))) == [[], []]
    for areas, figures, text in (
        ([1.0, 1.0, 1.0, 1.0], [1, -1, -1], '2 objects for another size .* is 1.0 for all objects'),
        ([5.0, 8.0, 600, 600], [1, -1, -1], '2 objects .*1, 2.* smaller than that of a line'),
        ([0.5, 3000, 600, 600], [1, 1, -1], '1 object .*annotation 1.* smaller than that'),
        ([3000, 3000, 2400, 2400], [-1, 1, -1], '2 objects .*3, 4.* larger than the box'),
    ):
        for annotation, area in zip(coco['annotations'], areas, strict=True):
            annotation.update(area=area, segmentation=[])
        path = write(coco)
        assert sizes(path) == figures
        faults, (note,) = said(config(path))
        assert not faults and re.search(text, note), note
        assert note.endswith('set area to width times height of the box')
        assert said(config(path, evaluator={'ann_file': None})) == [[], []]  # takes the boxes
    for annotation in coco['annotations']:
        del annotation['area']
    assert sizes(write(coco)) == [1, 1, -1]
    # a mask of two small parts, and a box that was rounded
    coco['annotations'][0].update(area=20, segmentation=[[5, 5, 9, 5, 9, 10], [61, 50, 65, 55]])
    coco['annotations'][2].update(bbox=[5, 5, 31.6, 31.6], area=32 * 33)
    faults, (note,) = said(config(write(coco)))
    assert not faults and "without 'area'" in note


@pytest.mark.parametrize(
    'name',
    [
        'cocoeval/instances_val2014_100.json',
        *(f'coco_mini/annotations/instances_{split}2017.json' for split in ('train', 'val')),
        'bccd/annotations/instances_trainval.json',
    ],
)
def test_no_area_of_real_data_is_wrong(name, real_data):
    folder, _, file = name.partition('/')
    coco = json.loads((real_data(folder) / file).read_text())
    notes = list(evaluation_notes(evaluation_counts(coco), coco))
    assert len(coco['annotations']) > 400 and not [note for note in notes if 'the area' in note]


def test_more_objects_than_detections_that_count(write):
    coco = made()
    one = coco['annotations'][0]
    boxes = [[2 * (k % 40), 2 * (k // 40), 2, 2] for k in range(150)]
    coco['annotations'] += [
        {**one, 'id': 10 + k, 'bbox': b, 'area': 4} for k, b in enumerate(boxes)
    ]
    path = write(coco)
    # 101 of the 152 cats, so a recall of 0.664: 67 of 101 precisions; and every dog
    for kind in METRICS:
        options = {'proposal_nums': (1, 10, 100)}
        assert ap(kind, path, coco, **options) == 0.832 == round((67 / 101 + 1) / 2, 3)
        assert ap(kind, path, coco, 'bbox_mAP_50', **options) == 0.832
        faults, (note,) = said(config(path, evaluator={'type': kind, **options}))
        assert not faults and note == (
            'mAP counts at most 100 detections of a class in an image, but 1 image has more '
            'objects of one class (up to 151), so mAP cannot exceed 0.832; for a '
            'mAP_50 that counts all, set proposal_nums=(1, 100, 151) in test_evaluator'
        )
        options = {'proposal_nums': (1, 100, 151)}
        assert ap(kind, path, coco, **options) == 0.832
        assert ap(kind, path, coco, 'bbox_mAP_50', **options) == 1
        _, (note,) = said(config(path, evaluator={'type': kind, **options}))
        assert note.endswith('so mAP cannot exceed 0.832')
    coco['annotations'] = coco['annotations'][:-51]
    path = write(coco)
    assert said(config(path)) == [[], []]
    for kind in METRICS:
        options = {'proposal_nums': (1, 2, 5, 100)}
        assert ap(kind, path, coco, **options) == 1
        # five of the 100 cats of the first image and one of the second, and every dog
        assert ap(kind, path, coco, 'bbox_mAP_50', **options) == 0.53 == round((6 / 101 + 1) / 2, 3)
        faults, (note,) = said(config(path, evaluator={'type': kind, **options}))
        assert not faults and 'mAP_s, mAP_m and mAP_l count only 5 detections of a class' in note


def test_more_objects_than_the_detector_finds(write):
    coco = made(3)
    path = write(coco)
    cfg = config(path)
    for test_cfg, key in (
        ({'max_per_img': 1}, 'test_cfg.max_per_img is 1'),
        ({'rcnn': {'max_per_img': 1}}, 'test_cfg.rcnn.max_per_img is 1'),
    ):
        cfg.model = {'test_cfg': test_cfg}
        notes = inspect_config_data(cfg, ('test',)).notes
        assert notes == [
            f'test: model.{key}, but 3 images have more objects (up to 2), so at most 50.0% of the '
            'objects can be found; increase it'
        ]
    for most in (2, -1):
        cfg.model = {'test_cfg': {'max_per_img': most}}
        assert said(cfg) == [[], []]


def test_an_evaluation_that_filters_images(write):
    coco = made(4)
    coco['annotations'] = coco['annotations'][2:]
    for image in coco['images'][:3]:
        image['height'] = 70
    path = write(coco)
    false = {'id': 99, 'image_id': 0, 'category_id': 3, 'bbox': [1, 1, 30, 30], 'area': 900}
    shown = {**coco, 'annotations': [false | {'iscrowd': 0}, *coco['annotations']]}
    some = {**shown, 'images': shown['images'][1:]}
    for kind in METRICS:
        assert ap(kind, path, shown) == 0.875 and ap(kind, path, some) == 1
        filters = {'filter_cfg': {'filter_empty_gt': True}, 'evaluator': {'type': kind}}
        faults, (note,) = said(config(path, **filters, test_mode=False))
        assert not faults and note == (
            'evaluation skips 1 of 4 images without an annotation of a class '
            '(filter_cfg.filter_empty_gt), so detections on them do not count and the AP is too '
            'high (0.png); set test_mode=True in the data set'
        )
        filters['evaluator']['ann_file'] = None
        assert said(config(path, **filters, test_mode=False))[1] == [note]
        assert said(config(path, **filters)) == [[], []]
    large = {**coco, 'images': coco['images'][:3]}
    small = {'filter_cfg': {'min_size': 65}, 'test_mode': False}
    for kind, figure, text in (
        ('CocoMetric', 0.663, 'min_size, but CocoMetric counts their objects as not found'),
        ('HotCocoMetric', 1, 'min_size, so their objects and detections do not count (3.png)'),
    ):
        assert ap(kind, path, large) == figure
        faults, notes = said(config(path, **small, evaluator={'type': kind}))
        assert not faults and text in notes[0] and len(notes) == 1


def test_each_evaluator_of_a_list(write):
    coco, other = made(), made()
    for annotation in other['annotations']:
        annotation['bbox'] = [50, 30, 20, 30]  # as many, elsewhere
    path, file = write(coco), write(other, 'other.json')
    assert ap('HotCocoMetric', path, coco) == 1 and ap('HotCocoMetric', file, coco) == 0
    cfg = config(path)
    mine = dict(cfg.test_evaluator)
    cfg.test_evaluator = [mine, {**mine, 'prefix': 'other', 'ann_file': str(file)}]
    (fault,) = inspect_config_data(cfg, ('test',)).faults
    assert f"is '{file}' but test_dataloader reads '{path}'" in fault
    for annotation, own in zip(other['annotations'], coco['annotations'], strict=True):
        annotation['bbox'] = [value + 0.4 for value in own['bbox']]  # rounded in the other file
    write(other, 'other.json')
    assert said(cfg) == [[], []]


def test_a_missing_area(write):
    coco = made()
    del coco['annotations'][1]['area']
    path = write(coco)
    with pytest.raises(KeyError, match='area'):
        load('CocoDataset', path)
    with pytest.raises(KeyError, match='area'):
        ap('CocoMetric', path, made())
    assert instances(load('TolerantCocoDataset', path)) == 4
    assert ap('HotCocoMetric', path, made()) == 1
    (fault,), _ = said(config(path, 'CocoDataset'))
    assert "'area' is missing in 1 of 4 annotations (2)" in fault
    assert fault.endswith("or set type='TolerantCocoDataset' in the data set")
    (fault,), _ = said(config(path, evaluator=PLAIN))
    assert fault.endswith("or set type='HotCocoMetric' in the evaluator")
    faults, (note,) = said(config(path))
    assert not faults and "1 annotation without 'area', where width times height" in note
    assert path.read_text() == json.dumps(coco)


def test_a_missing_flag_for_crowds(write):
    coco = made()
    del coco['annotations'][1]['iscrowd']
    path = write(coco)
    with pytest.raises(KeyError, match='iscrowd'):
        ap('CocoMetric', path, made())
    assert ap('HotCocoMetric', path, made()) == 1
    assert "'iscrowd' is missing" in said(config(path, 'CocoDataset', evaluator=PLAIN))[0][0]
    # mmdet's loader needs no such flag
    assert instances(load('CocoDataset', path)) == 4
    assert said(config(path, 'CocoDataset', train=path), 'train') == [[], []]


def test_boxes_drawn_from_right_to_left(write):
    coco = made()
    coco['annotations'][0]['bbox'] = [25, 5, -20, 30]
    path = write(coco)
    assert instances(load('CocoDataset', path)) == 3
    assert ap('CocoMetric', path, made()) == 0.626
    tolerant = load('TolerantCocoDataset', path)
    assert tolerant.get_data_info(0)['instances'][0]['bbox'] == [5, 5, 25, 35]
    assert ap('HotCocoMetric', path, made()) == 1
    faults, (note,) = said(config(path))
    assert not faults and '1 annotation with a negative width' in note and 'annotation 1' in note
    faults, (note,) = said(config(path, 'CocoDataset', train=path), 'train')
    assert not faults and 'training skips 1 box without area' in note
    faults, notes = said(config(path, evaluator=PLAIN))
    assert not faults and 'evaluation counts 1 box without area or outside' in notes[-1]


def test_filtered_images(write):
    coco = made(4)
    coco['annotations'] = coco['annotations'][:6]
    coco['images'][0].update(width=80, height=30)
    path = write(coco)
    filters = {'filter_empty_gt': True, 'min_size': 32}
    assert len(load('CocoDataset', path)) == 4
    assert len(load('CocoDataset', path, filter_cfg=filters)) == 2
    cfg = config(path, train=path, filter_cfg=filters)
    faults, notes = said(cfg, 'train')
    assert not faults and notes[-2:] == [
        'training skips 1 of 4 images without an annotation of a class '
        '(filter_cfg.filter_empty_gt) (3.png)',
        'training skips 1 of 4 images with a side below filter_cfg.min_size (0.png)',
    ]
    assert said(cfg, 'test')[0] == []
    cfg.train_dataloader.dataset.filter_cfg.min_size = 99
    with pytest.raises(ValueError, match='need at least one array'):
        load('CocoDataset', path, filter_cfg={'min_size': 99})
    fault = said(cfg, 'train')[0][0]
    assert '(skipped: 1 by filter_cfg.filter_empty_gt, 3 by filter_cfg.min_size)' in fault


def test_an_unlabelled_test_set(write):
    coco = made()
    del coco['annotations']
    path = write(coco)
    assert said(config(path, evaluator={'format_only': True})) == [[], []]
    faults, (note,) = said(config(path))
    assert not faults and note == "there are no 'annotations', so every AP will be -1"
    assert ap('HotCocoMetric', path, made()) == -1
    assert 'no object to train on' in said(config(path, train=path), 'train')[0][0]


def test_the_file_of_the_evaluator(write, tmp_path):
    path, same = write(made()), write(made(), 'same.json')
    (tmp_path / 'link.json').symlink_to(path)
    for other in (same, tmp_path / 'link.json', write(made(3), 'more.json')):
        faults, _ = said(config(path, evaluator={'ann_file': str(other)}))
        assert not faults, other
    unlabelled = made()
    del unlabelled['annotations']
    assert not said(config(write(unlabelled, 'u.json'), evaluator={'ann_file': str(path)}))[0]
    changed, fewer = made(), made()
    changed['images'][0]['file_name'] = '1.png'
    del fewer['annotations'][0]
    for other in (write(changed, 'c.json'), write(fewer, 'f.json'), tmp_path / 'gone.json'):
        cfg = config(path, evaluator={'ann_file': str(other)})
        faults = inspect_config_data(cfg, ('test',)).faults
        assert f"is '{other}' but test_dataloader reads '{path}'" in faults[0]


def test_images_that_lie_elsewhere(write, tmp_path):
    coco = made()
    write(coco)
    (tmp_path / 'pictures' / 'one').mkdir(parents=True)
    (tmp_path / 'data').mkdir()
    for image in coco['images']:
        file = tmp_path / image['file_name']
        image['file_name'] = str(file.rename(tmp_path / 'pictures' / 'one' / file.name))
    cfg = config(tmp_path / 'data' / 'a.json')
    cfg.test_dataloader.dataset.data_prefix.img = str(tmp_path / 'nowhere')
    for relative in (False, True):
        if relative:
            for image in coco['images']:
                image['file_name'] = f'../pictures/one/{image["id"]}.png'
            cfg.test_dataloader.dataset.data_prefix.img = str(tmp_path / 'data')
        (tmp_path / 'data' / 'a.json').write_text(json.dumps(coco))
        assert said(cfg) == [[], []]
    shutil.rmtree(tmp_path / 'pictures')
    assert '2 of 2 images are not in' in said(cfg)[0][0]
    cfg.test_dataloader.dataset.backend_args = {'backend': 'petrel'}
    assert said(cfg) == [[], []]


def test_images_in_two_splits(write, tmp_path):
    coco, other = made(3), made(3)
    other['images'] = [{**i, 'file_name': f'other{i["id"]}.png'} for i in other['images']]
    path, train = write(coco), write(other, 'train.json')
    for index in range(3):
        cv2.imwrite(str(tmp_path / f'other{index}.png'), np.full((60, 80, 3), 99 + index, np.uint8))
    cfg = config(path, train=train)
    assert said(cfg, 'train', 'test') == [[], []]
    shutil.copy(tmp_path / '1.png', tmp_path / 'other2.png')
    report = inspect_config_data(cfg, ('train', 'test'))
    (note,) = report.notes
    assert note == 'test: training has 1 of 3 images too (1.png), so the AP is too high'
    assert '| images that are also in train |     0 |    1 |' in report.table
    cfg.train_dataloader.dataset = {
        'type': 'ConcatDataset',
        'datasets': 2 * [cfg.train_dataloader.dataset],
    }
    assert [note for note in said(cfg, 'train', 'test')[1] if 'too (1.png)' in note]
    (note,) = said(config(path, train=path), 'train', 'test')[1]
    assert note.startswith('test: training has 3 of 3 images too (0.png, 1.png, 2.png)')


def test_categories_with_other_ids_in_another_split(write):
    coco = made()
    for item in coco['annotations']:
        item['category_id'] += 5
    coco['categories'] = [{'id': 8, 'name': 'cat'}, {'id': 9, 'name': 'dog'}]
    coco['images'] = [{**i, 'file_name': f'7{i["file_name"]}'} for i in coco['images']]
    cfg = config(write(made()), train=write(coco, 'train.json'))
    notes = [note for note in said(cfg, 'train', 'test')[1] if 'ids of categories' in note]
    assert len(notes) == 1 and notes[0].startswith('test: the ids of categories differ')
    assert ap('HotCocoMetric', write(coco), coco) == 1  # names decide


def test_a_category_that_only_groups_others(write):
    coco = made()
    for category in coco['categories']:
        category['supercategory'] = 'pets'
    coco['categories'].insert(0, {'id': 0, 'name': 'pets', 'supercategory': 'none'})
    path = write(coco)
    assert said(config(path)) == [[], []]  # not among the classes
    cfg = config(path)
    cfg.test_dataloader.dataset.metainfo.classes = ('pets', *CLASSES)
    faults, notes = said(cfg)
    assert not faults and "category 'pets' (id 0) has no box" in notes[0]
    assert notes[1] == 'evaluation has no object of pets, so the AP is the mean of the others'


@pytest.mark.parametrize('split', ['train', 'test'])
def test_objects_that_are_annotated_twice(split, write):
    coco = made()
    coco['annotations'].append({**coco['annotations'][1], 'id': 9, 'bbox': [40, 10, 30, 20.1]})
    path = write(coco)
    train = path if split == 'train' else None
    faults, (note,) = said(config(path, train=train), split)
    assert not faults and note.startswith('2 objects with nearly the same box and class')
    assert '(annotations 2, 9); remove those that are annotated twice' in note
    assert ap('HotCocoMetric', path, made()) == ap('CocoMetric', path, made()) == 0.832
    coco['annotations'][-1]['category_id'] = 3
    assert said(config(write(coco), train=train), split) == [[], []]


def test_all_errors_are_listed_in_one_run(write):
    coco = made(3)
    coco['images'][2]['height'] = 61
    coco['annotations'][0]['bbox'] = [1, 2, float('nan'), 4]
    coco['annotations'][1]['category_id'] = 77
    coco['annotations'][2]['iscrowd'] = 'no'
    coco['categories'].reverse()
    path = write(coco)
    (path.parent / '0.png').unlink()
    cv2.imwrite(str(path.parent / '2.png'), np.zeros((60, 80, 3), np.uint8))
    cfg = config(path, evaluator={'proposal_nums': (300,)}, indices=[1, 2])
    faults, _ = said(cfg)
    parts = [
        "'bbox' is not four finite numbers [x, y, width, height] in 1 of 6 annotations (1)",
        "'iscrowd' is not 0 or 1 in 1 of 6 annotations (3)",
        "the category_id of annotation 2 is not in 'categories'",
        'metainfo.classes is not in the order',
        '1 of 2 checked images',  # the missing image is not used
        'proposal_nums is (300,)',
    ]
    assert len(faults) == len(parts)
    assert all(part in fault for part, fault in zip(parts, faults, strict=True)), faults
    with pytest.raises(DataError) as caught:
        check_config_data(cfg, ('test',))
    assert all(part in str(caught.value) for part in parts)


def test_the_table_says_what_is_used(write):
    coco = made(3)
    coco['annotations'][0]['iscrowd'] = 1
    coco['annotations'][1].update(bbox=[5, 5, 60, 40], area=2400)
    coco['annotations'][2]['ignore'] = 1
    coco['annotations'][3]['bbox'][2] = 0.5
    path = write(coco)
    cfg = config(path, train=path, indices=2)
    cfg.val_dataloader, cfg.val_evaluator = cfg.test_dataloader, cfg.test_evaluator
    cfg.test_evaluator = {**cfg.test_evaluator, 'outfile_prefix': 'a'}
    rows = inspect_config_data(cfg, ('train', 'val', 'test')).table.splitlines()
    table = {row.split('|')[1].strip(): [c.strip() for c in row.split('|')[2:-1]] for row in rows}
    assert table[''] == ['train', 'val and test']
    expected = {
        'images': '2 2',
        'skipped by indices': '1 1',
        'objects': '1 3',
        '- cat': '0 1',
        '- dog': '1 2',
        '- small, to 32² px': '0 2',
        '- medium, 32² to 96² px': '1 1',
        '- large, from 96² px': '0 0',
        'ignored regions (crowds)': '1 1',
        'skipped: "ignore": 1': '1 0',
        'skipped: without area, or a side below one pixel': '1 0',
        'images that are also in train': '0 2',
    }
    assert {key: ' '.join(table[key]) for key in expected} == expected
    assert len(table) == len(expected) + 2


def test_a_table_of_many_classes_is_short(write):
    coco = made(1)
    coco['categories'] = [{'id': 3 + k, 'name': f'class {k}'} for k in range(40)]
    coco['annotations'] += [{**coco['annotations'][0], 'id': 9 + k} for k in range(5)]
    cfg = config(write(coco))
    cfg.test_dataloader.dataset.metainfo.classes = [c['name'] for c in coco['categories']]
    report = inspect_config_data(cfg, ('test',))
    rows = [row.split('|')[1].strip() for row in report.table.splitlines()]
    assert rows[4:6] == ['- class 0', '- class 1'] and '- 30 more' in rows and len(rows) < 20
