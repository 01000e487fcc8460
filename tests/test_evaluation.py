"""The evaluator that the configs name, and the fast one in its place, give COCO's own figures."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from pycocotools import mask as mask_api
from pycocotools.cocoeval import COCOeval

from evit_mm.compare.benchmark import compare_evaluators
from evit_mm.errors import ConfigError
from evit_mm.evaluation.coco_metric import FasterCocoMetric, fast_evaluator
from evit_mm.evaluation.synthetic_detections import synthetic_detections

from .conftest import ROOT

NAMES = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']
# mmdet's names of COCO's recall columns, whose numbers of detections are 1, 10 and 100 here
RECALLS = ['AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000']


@pytest.mark.parametrize('kind', ['CocoMetric', 'FasterCocoMetric'])
def test_the_coco_apis_own_case_to_three_decimals(real_data, kind):
    folder = real_data('cocoeval')
    ann_file = folder / 'instances_val2014_100.json'
    text = (folder / 'val2014_fake_eval_res.txt').read_text()
    section = re.split(r'type\s*=\s*\W*bbox', text)[1]
    published = [float(v) for v in re.findall(r'\] =\s*(-?\d\.\d+)', section)][:12]
    assert len(published) == 12 and published[0] == 0.505

    init_default_scope('mmdet')
    cfg = Config.fromfile(ROOT / 'configs' / 'retinanet_evit_m4_coco.py').val_evaluator
    cfg.update(type=kind, ann_file=str(ann_file))
    cfg.metric_items = NAMES + RECALLS
    evaluator = Evaluator(cfg)
    from mmdet.datasets import CocoDataset

    evaluator.dataset_meta = CocoDataset.METAINFO
    gt = json.loads(ann_file.read_text())
    cat_ids = sorted(category['id'] for category in gt['categories'])
    label_of = {cat_id: label for label, cat_id in enumerate(cat_ids)}
    assert len(cat_ids) == 80
    detections = json.loads((folder / 'instances_val2014_fakebbox100_results.json').read_text())
    for image in gt['images']:
        found = [d for d in detections if d['image_id'] == image['id']]
        boxes = torch.tensor([d['bbox'] for d in found], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances = {
            'bboxes': boxes,
            'scores': torch.tensor([d['score'] for d in found], dtype=torch.float64),
            'labels': torch.tensor([label_of[d['category_id']] for d in found], dtype=torch.long),
        }
        sample = {
            'img_id': image['id'],
            'ori_shape': (image['height'], image['width']),
            'pred_instances': instances,
        }
        evaluator.process(data_samples=[sample])
    metrics = evaluator.evaluate(len(gt['images']))
    measured = [metrics[f'coco/bbox_{name}'] for name in NAMES + RECALLS]
    assert measured == pytest.approx(published, abs=5e-4)


def octagons(boxes):
    """Return a polygon inside each box."""
    angles = np.arange(0.5, 8) * np.pi / 4
    circle = np.stack([np.cos(angles), np.sin(angles)], 1) / 2 + 0.5
    boxes = np.asarray(boxes).reshape(-1, 1, 4)
    return (boxes[..., :2] + circle * boxes[..., 2:]).reshape(len(boxes), -1).tolist()


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Annotation file, class names and data samples of 40 made images, boxes and masks."""
    truth, found = synthetic_detections(40, num_classes=12)
    polygons = octagons([a['bbox'] for a in truth['annotations']])
    for annotation, polygon in zip(truth['annotations'], polygons, strict=True):
        annotation['segmentation'] = [polygon]
    ann_file = tmp_path_factory.mktemp('made') / 'instances.json'
    ann_file.write_text(json.dumps(truth))
    samples = []
    for image in truth['images']:
        own = [d for d in found if d['image_id'] == image['id']]
        boxes = np.array([d['bbox'] for d in own]).reshape(-1, 4)
        size = image['height'], image['width']
        masks = mask_api.frPyObjects(octagons(boxes), *size) if own else []
        instances = {
            'bboxes': torch.from_numpy(np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])),
            'scores': torch.tensor([d['score'] for d in own], dtype=torch.float64),
            'labels': torch.tensor([d['category_id'] - 1 for d in own], dtype=torch.long),
            'masks': masks,
        }
        samples.append({'img_id': image['id'], 'ori_shape': size, 'pred_instances': instances})
    return str(ann_file), [c['name'] for c in truth['categories']], samples


def evaluated(kind, made, **options):
    from mmdet.registry import METRICS

    ann_file, classes, samples = made
    init_default_scope('mmdet')
    metric = METRICS.build({'type': kind, 'ann_file': ann_file, **options})
    metric.dataset_meta = {'classes': classes}
    metric.process({}, samples)
    return metric.evaluate(len(samples))


# the last two are other than COCO's: mmdet's own default, and one more than three
@pytest.mark.parametrize('nums', [(1, 10, 100), (100, 300, 1000), (1, 3, 5), (1, 10, 100, 300)])
def test_every_figure_of_boxes_masks_and_classes_is_pycocotools(made, nums, capsys):
    options = {'metric': ['bbox', 'segm'], 'classwise': True, 'proposal_nums': nums}
    options['metric_items'] = NAMES + RECALLS
    slow = evaluated('CocoMetric', made, **options)
    table = [line for line in capsys.readouterr().out.splitlines() if '@[' in line]
    fast = evaluated('FasterCocoMetric', made, **options)
    assert [line for line in capsys.readouterr().out.splitlines() if '@[' in line] == table
    assert len(slow) == 2 * 12 + 12 and fast == pytest.approx(slow, abs=0, nan_ok=True)
    assert 0.2 < slow['coco/segm_mAP_50'] < slow['coco/bbox_mAP_50'] < 0.9 or nums == (1, 3, 5)


def test_proposals_and_thresholds_of_ones_own_are_pycocotools(made):
    thresholds = {'iou_thrs': np.array([0.3, 0.5])}
    for options in ({'metric': 'proposal'}, thresholds, {'use_mp_eval': True}):
        slow = evaluated('CocoMetric', made, **{**options, 'use_mp_eval': False})
        assert evaluated('FasterCocoMetric', made, **options) == pytest.approx(slow, abs=0)


def test_the_fast_metric_runs_none_of_pycocotools_matching(made, monkeypatch):
    def refuse(*_):
        raise AssertionError('pycocotools was asked')

    monkeypatch.setattr(COCOeval, 'evaluate', refuse)
    monkeypatch.setattr(COCOeval, 'accumulate', refuse)
    evaluated('FasterCocoMetric', made)
    with pytest.raises(AssertionError, match='was asked'):  # and mmdet's own still does
        evaluated('CocoMetric', made)


def test_one_line_of_a_config_selects_it(tmp_path):
    base = str(ROOT / 'configs' / 'mask_rcnn_evit_m4_coco.py')
    child = tmp_path / 'child.py'
    child.write_text(f"_base_ = {base!r}\nval_evaluator = dict(type='FasterCocoMetric')\n")
    changed, whole = Config.fromfile(child), Config.fromfile(base)
    assert changed.val_evaluator == {**whole.val_evaluator, 'type': 'FasterCocoMetric'}
    assert 'evit_mm.evaluation.coco_metric' in whole.custom_imports.imports


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    fast_evaluator.cache_clear()
    monkeypatch.setitem(sys.modules, 'faster_coco_eval', None)
    with pytest.raises(ConfigError, match="pip install 'faster-coco-eval==1.8.0'"):
        FasterCocoMetric()


def test_the_comparison_of_evaluators_finds_equal_figures():
    result = compare_evaluators(60)
    slow, fast = result['pycocotools'], result['faster-coco-eval']
    assert fast['figures'] == pytest.approx(slow['figures'], rel=1e-12)
    assert len(set(slow['figures'])) > 9
    assert result['difference'] < 1e-12 and result['detections'] == len(synthetic_detections(60)[1])
    seconds = [part['load'] + part['evaluate'] for part in (slow, fast)]
    assert result['ratio'] == pytest.approx(seconds[0] / seconds[1])


def test_made_detections_are_as_they_say():
    truth, found = synthetic_detections(400, num_classes=20, seed=3)
    assert (truth, found) == synthetic_detections(400, num_classes=20, seed=3)
    assert found != synthetic_detections(400, num_classes=20, seed=4)[1]
    objects = truth['annotations']
    area = np.array([a['area'] for a in objects])
    assert len(objects) / 400 == pytest.approx(7, abs=1)
    assert np.mean(area < 32**2) == pytest.approx(0.41, abs=0.04)
    assert np.mean(area > 96**2) == pytest.approx(0.24, abs=0.04)
    assert np.mean([a['iscrowd'] for a in objects]) == pytest.approx(0.012, abs=0.008)
    assert {d['category_id'] for d in found} == set(range(1, 21))
    assert max(np.bincount([d['image_id'] for d in found])) == 100
    sizes = {i['id']: (i['width'], i['height']) for i in truth['images']}
    for annotation in objects:
        x, y, width, height = annotation['bbox']
        assert min(x, y) >= 0 and min(width, height) > 0
        right, bottom = sizes[annotation['image_id']]
        assert x + width <= right + 0.02 and y + height <= bottom + 0.02
