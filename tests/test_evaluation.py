"""The evaluator that the configs name gives COCO's own figures."""

import json
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope

from .conftest import ROOT

NAMES = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']
# mmdet's names of COCO's recall columns, whose numbers of detections are 1, 10 and 100 here
RECALLS = ['AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000']


def test_the_coco_apis_own_case_to_three_decimals(real_data):
    folder = real_data('cocoeval')
    ann_file = folder / 'instances_val2014_100.json'
    text = (folder / 'val2014_fake_eval_res.txt').read_text()
    section = re.split(r'type\s*=\s*\W*bbox', text)[1]
    published = [float(v) for v in re.findall(r'\] =\s*(-?\d\.\d+)', section)][:12]
    assert len(published) == 12 and published[0] == 0.505

    init_default_scope('mmdet')
    cfg = Config.fromfile(ROOT / 'configs' / 'retinanet_evit_m4_coco.py').val_evaluator
    cfg.ann_file = str(ann_file)
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
