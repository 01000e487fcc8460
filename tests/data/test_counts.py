"""What the check says will be trained on and counted is what mmdet and COCO's evaluation use."""

import contextlib
import io
import json
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import init_default_scope
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evit_mm.data.check import inspect_config_data
from evit_mm.data.coco import repaired
from evit_mm.data.coco_dataset import TolerantCocoDataset
from evit_mm.data.counts import training_counts
from evit_mm.data.evaluators import evaluated_counts
from evit_mm.evaluation.boxes import coco_evaluator, read_found, truth_of
from evit_mm.evaluation.coco_eval import coco_figures
from evit_mm.evaluation.coco_metric import HotCocoMetric

CLASSES = ('cat', 'dog')
WIDTH, HEIGHT = 90, 60
PIXELS = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def faulty_file(rng):
    """Return a random annotation file with faults that are no errors."""
    first, tilt = int(rng.integers(2)), rng.random(4) < 0.5
    images = [
        {'id': int(key), 'file_name': f'{key}.png', 'width': WIDTH, 'height': int(height)}
        for key, height in zip(
            rng.permutation(20)[: rng.integers(1, 7)], rng.choice([20, HEIGHT], 6), strict=False
        )
    ]
    annotations = []
    for place in range(rng.integers(0, 14)):
        x, y = (int(v) for v in rng.integers(-30, 100, 2))
        w, h = (int(v) for v in rng.choice([0, 1, 5, 12, 40, 100, -7], 2, p=P_SIDE))
        annotation = {
            'id': first + place,
            'image_id': images[rng.integers(len(images))]['id'],
            'category_id': int(rng.choice([3, 7, 8], p=[0.5, 0.4, 0.1])),
            'bbox': [x, y, w, h] if rng.random() < 0.9 else [x, y, 0.5, h],
            'area': [w * h, 0, -4, abs(w * h)][rng.choice(4, p=[0.3, 0.05, 0.05, 0.6])],
            'iscrowd': int(rng.random() < 0.15),
        }
        if tilt[0] and rng.random() < 0.3:
            annotation['ignore'] = int(rng.integers(2))
        if tilt[1] and rng.random() < 0.3:
            del annotation['area']
        if tilt[2] and rng.random() < 0.3:
            del annotation['iscrowd']
        annotations.append(annotation)
    names = {7: 'cat', 3: 'dog', 8: 'mouse', 9: 'pets'}
    categories = [{'id': key, 'name': name} for key, name in names.items()]
    return {'images': images, 'annotations': annotations, 'categories': categories}


P_SIDE = [0.05, 0.1, 0.15, 0.25, 0.25, 0.1, 0.1]


def config_of(path, coco, rng):
    """Return a config that trains and evaluates on the file."""
    indices = [None, int(rng.integers(1, 4)), -1][rng.integers(3)]
    ends = sorted({0, len(coco['images']) - 1})
    dataset = {
        'type': 'TolerantCocoDataset',
        'ann_file': str(path),
        'data_prefix': {'img': str(path.parent)},
        'metainfo': {'classes': CLASSES},
        'pipeline': [],
        'serialize_data': False,  # without an image, mmengine cannot serialize
        'indices': indices,
    }
    filters = {
        'filter_empty_gt': bool(rng.integers(2)),
        'min_size': int(rng.choice([0, 32])),
    }
    evaluator = {'type': 'HotCocoMetric', 'ann_file': str(path), 'proposal_nums': (1, 10, 100)}
    return Config(
        {
            'model': {},
            'train_dataloader': {'dataset': {**dataset, 'filter_cfg': filters}},
            'test_dataloader': {
                'dataset': {**dataset, 'test_mode': True, 'indices': indices or ends}
            },
            'test_evaluator': evaluator,
        }
    )


def detections(coco, images, rng):
    """Return every object of the images as it is in the file, and a few false detections."""
    label = {7: 0, 3: 1}
    found = {image: [] for image in images}
    for annotation in coco['annotations']:
        if annotation['image_id'] in found and annotation['category_id'] in label:
            x, y, w, h = annotation['bbox']
            corners = [x, y, x + w, y + h]
            score = round(float(rng.random()), 3)
            found[annotation['image_id']].append((corners, label[annotation['category_id']], score))
    for image in found:
        if rng.random() < 0.3:
            found[image].append(([1, 2, 30, 40], 0, round(float(rng.random()), 3)))
    return found


def metric_ap(metric, found):
    for image, rows in found.items():
        instances = {
            'bboxes': torch.tensor([r[0] for r in rows], dtype=torch.float64).reshape(-1, 4),
            'labels': torch.tensor([r[1] for r in rows], dtype=torch.long),
            'scores': torch.tensor([r[2] for r in rows], dtype=torch.float64),
        }
        sample = {'img_id': image, 'ori_shape': (HEIGHT, WIDTH), 'pred_instances': instances}
        metric.process({}, [sample])
    return metric.evaluate(len(found)).get('coco/bbox_mAP')


def independent_ap(counts, found):
    """Return the AP of pycocotools on the counted objects, numbered from 1."""
    objects = [
        {**{k: a[k] for k in ('image_id', 'category_id', 'bbox')}, 'area': 1, 'iscrowd': crowd}
        for crowd, entries in enumerate((counts.objects, counts.ignored))
        for a in entries
    ]
    truth = COCO()
    truth.dataset = {
        'images': [{'id': image['id']} for image in counts.images],
        'annotations': [{**a, 'id': number} for number, a in enumerate(objects, 1)],
        'categories': [{'id': key} for key in (3, 7)],
    }
    truth.createIndex()
    rows = [
        {'image_id': image, 'category_id': (7, 3)[label], 'score': score}
        | {'bbox': [x1, y1, x2 - x1, y2 - y1]}
        for image, own in found.items()
        for (x1, y1, x2, y2), label, score in own
    ]
    if not rows:
        return None
    evaluator = COCOeval(truth, truth.loadRes(rows), 'bbox')
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return round(evaluator.stats[0], 3)


def loaded_boxes(dataset):
    """Return the boxes, labels and flags of each image that mmdet's data set loads."""
    return [
        (
            info['img_id'],
            [(i['bbox'], i['bbox_label'], i['ignore_flag']) for i in info['instances']],
        )
        for info in map(dataset.get_data_info, range(len(dataset)))
    ]


def said_boxes(counts):
    label = {7: 0, 3: 1}
    rows = []
    for image in counts.images:
        own = []
        for flag, entries in enumerate((counts.objects, counts.ignored)):
            for a in entries:
                if a['image_id'] == image['id']:
                    x, y, w, h = a['bbox']
                    own.append(([x, y, x + w, y + h], label[a['category_id']], flag))
        rows.append((image['id'], own))
    return rows


def in_any_order(rows):
    return [(image, sorted(map(repr, own))) for image, own in rows]


@pytest.mark.parametrize('block', range(5))
def test_the_ap_is_that_of_what_the_check_says_for_500_files(block, tmp_path):
    init_default_scope('mmdet')
    path = tmp_path / 'a.json'
    seen = Counter()
    for seed in range(100 * block, 100 * block + 100):
        rng = np.random.default_rng(seed)
        coco = faulty_file(rng)
        path.write_text(json.dumps(coco))
        for image in coco['images']:
            cv2.imwrite(str(tmp_path / image['file_name']), PIXELS[: image['height']])
        cfg = config_of(path, coco, rng)
        report = inspect_config_data(cfg, ('train', 'test'), num_decoded=1)
        said = [text for text in report.faults if 'add at least one for training' not in text]
        assert not said
        trained, counted = report.counts['train'], report.counts['test']
        options = {k: v for k, v in cfg.train_dataloader.dataset.items() if k != 'type'}
        with contextlib.redirect_stdout(io.StringIO()):
            train_set = TolerantCocoDataset(**options)
            options = {k: v for k, v in cfg.test_dataloader.dataset.items() if k != 'type'}
            test_set = TolerantCocoDataset(**options)
            metric = HotCocoMetric(ann_file=str(path), proposal_nums=(1, 10, 100))
            metric.dataset_meta = test_set.metainfo
            images = [test_set.get_data_info(index)['img_id'] for index in range(len(test_set))]
            fixed, _ = repaired(coco)
            found = detections(fixed, images, rng)
            measured, expected = metric_ap(metric, found), independent_ap(counted, found)
        assert in_any_order(loaded_boxes(train_set)) == in_any_order(said_boxes(trained)), seed
        assert measured == expected, seed
        assert ('add at least one for training' in str(report.faults)) == (not trained.objects)
        seen['full marks'] += measured == 1
        seen['less'] += measured is not None and 0 < measured < 1
        seen['nothing'] += not counted.objects
        seen['subset'] += bool(counted.skipped_images['indices'])
        seen['filtered'] += bool(trained.skipped_images.get('min_size'))
        if measured is not None:
            rows = [
                {'image_id': i, 'category_id': (7, 3)[k], 'bbox': box, 'score': score}
                for i, own in found.items()
                for (x, y, x2, y2), k, score in own
                for box in [[x, y, x2 - x, y2 - y]]
            ]
            counts = evaluated_counts(cfg.test_dataloader.dataset, [cfg.test_evaluator])
            truth = truth_of(counts, '.', CLASSES)
            reported = coco_evaluator(truth, read_found(rows, truth))
            reported.accumulate()
            ap = coco_figures(reported).twelve[0]
            assert round(-1 if np.isnan(ap) else ap, 3) == measured, seed
    assert min(seen.values()) > 2, seen


def test_mmdets_own_loader_loads_what_the_model_of_it_says(tmp_path):
    init_default_scope('mmdet')
    path = tmp_path / 'a.json'
    for seed in range(100):
        rng = np.random.default_rng(1000 + seed)
        coco, _ = repaired(faulty_file(rng), boxes=False)
        path.write_text(json.dumps(coco))
        dataset = dict(config_of(path, coco, rng).train_dataloader.dataset)
        dataset.pop('type')
        with contextlib.redirect_stdout(io.StringIO()):
            loaded = CocoDataset(**dataset)
        said = training_counts(coco, CLASSES, dataset['filter_cfg'], dataset['indices'])
        assert in_any_order(loaded_boxes(loaded)) == in_any_order(said_boxes(said)), seed
