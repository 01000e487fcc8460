"""The evaluator that the configs name, and pycocotools in its place, give COCO's own figures."""

import copy
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from pycocotools import mask as mask_api
from pycocotools.cocoeval import COCOeval

from evit_mm.compare.benchmark import time_evaluators
from evit_mm.errors import ConfigError, DataError
from evit_mm.evaluation.coco_metric import HotCocoMetric
from evit_mm.evaluation.synthetic_detections import synthetic_detections
from tests.conftest import ROOT

NAMES = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']
# mmdet's names of COCO's recall columns, whose numbers of detections are 1, 10 and 100 here
RECALLS = ['AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000']


@pytest.mark.parametrize('kind', ['CocoMetric', 'HotCocoMetric'])
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
    metric.process({}, copy.deepcopy(samples))
    return metric.evaluate(len(samples))


@pytest.fixture
def both(monkeypatch, capsys):
    """Return a function that compares CocoMetric with HotCocoMetric, arrays and table too."""
    seen, said = [], []
    summarize = COCOeval.summarize
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)

    def recorded(self):
        seen.append({name: self.eval[name] for name in ('precision', 'recall', 'scores')})
        summarize(self)

    monkeypatch.setattr(COCOeval, 'summarize', recorded)

    def evaluate(made, **options):
        seen.clear()
        results, tables = [], []
        for kind in ('CocoMetric', 'HotCocoMetric'):
            said.clear()
            results.append(evaluated(kind, made, **options))
            # one prints its table, the other logs it
            lines = [*capsys.readouterr().out.splitlines(), *'\n'.join(said).splitlines()]
            lines = [line for line in lines if '@[' in line]
            # the table of classes too, but not that of mmdet's own fast recalls
            others = [text for text in said if not text.startswith('\nAR@') and '@[' not in text]
            tables.append(lines + others)
        slow, fast = results
        assert list(slow) == list(fast) and tables[0] == tables[1]
        assert np.array_equal(list(slow.values()), list(fast.values()), equal_nan=True)
        half = len(seen) // 2
        for theirs, ours in zip(seen[:half], seen[half:], strict=True):
            for name, values in theirs.items():
                assert np.array_equal(values, ours[name]), name
        return fast, half

    yield evaluate
    logger.removeHandler(handler)


# the others than COCO's: mmdet's own default, a largest one that is not 100, more than three
@pytest.mark.parametrize('nums', [(1, 10, 100), (100, 300, 1000), (1, 100, 5), (1, 10, 100, 300)])
def test_every_figure_of_boxes_masks_and_classes_is_pycocotools(made, nums, both):
    options = {'metric': ['bbox', 'segm'], 'classwise': True, 'proposal_nums': nums}
    options['metric_items'] = NAMES + RECALLS
    figures, evaluations = both(made, **options)
    assert evaluations == 2 and len(figures) == 2 * 12 + 12
    assert 0.2 < figures['coco/segm_mAP_50'] < figures['coco/bbox_mAP_50'] < 0.9


def test_proposals_and_thresholds_of_ones_own_are_pycocotools(made, both):
    for options in (
        {'metric': 'proposal'},
        {'iou_thrs': np.array([0.3, 0.5, 0.75])},
        {'proposal_nums': (100, 1, 10)},
    ):
        assert both(made, **options)[1] == 1
    # a config's list, on which pycocotools fails, is taken like an array
    listed = [
        evaluated('HotCocoMetric', made, iou_thrs=kind([0.3, 0.5])) for kind in (list, np.array)
    ]
    assert listed[0] == listed[1] and listed[0]['coco/bbox_mAP_50'] > 0.3
    one, whole = evaluated('HotCocoMetric', made, iou_thrs=0.5), evaluated('HotCocoMetric', made)
    assert one['coco/bbox_mAP'] == one['coco/bbox_mAP_50'] == whole['coco/bbox_mAP_50']
    # processes of its own, which this test cannot look into, give the same figures
    assert evaluated('HotCocoMetric', made, use_mp_eval=True) == evaluated('CocoMetric', made)


def test_masks_with_scores_of_their_own_are_ranked_by_them(made, both):
    ann_file, classes, samples = made
    samples = copy.deepcopy(samples)
    for sample in samples:
        found = sample['pred_instances']
        found['mask_scores'] = found['scores'].flip(0)
    plain, _ = both(made, metric=['bbox', 'segm'])
    ranked, _ = both((ann_file, classes, samples), metric=['bbox', 'segm'])
    assert ranked['coco/bbox_mAP'] == plain['coco/bbox_mAP']
    assert ranked['coco/segm_mAP'] < plain['coco/segm_mAP']


def test_fast_recalls_are_mmdets(made, both, monkeypatch):
    # mmdet's function fails with NumPy from 1.24 on where images have different numbers of boxes
    def recalls(self, results, nums, thresholds, logger=None):
        assert len(results) == 40 and len(thresholds) == 10
        return np.arange(len(nums)) / 7

    monkeypatch.setattr('mmdet.evaluation.CocoMetric.fast_eval_recall', recalls)
    figures, evaluations = both(made, metric=['proposal_fast', 'bbox'])
    assert evaluations == 1 and figures['coco/AR@300'] == 1 / 7 and 'coco/bbox_mAP' in figures


def random_case(rng):
    """A few images, classes, crowds and detections, with equal scores and equal boxes."""
    identities = rng.choice(90, 8, replace=False) + 1
    images = [
        {'id': int(i), 'width': 60, 'height': 50, 'file_name': f'{i}.jpg'}
        for i in identities[: rng.integers(1, 5)]
    ]
    categories = [
        {'id': int(i), 'name': f'class {i}'} for i in sorted(identities[: rng.integers(1, 5)])
    ]
    scale = rng.choice([1.0, 1.0, 4.0])  # with 4, some are large

    def box():
        low, extent = rng.integers(0, 30, 2), rng.integers(1, 30, 2)
        fraction = rng.integers(2) * rng.random(4)
        return (np.array([*low, *extent]) * scale + fraction).astype(np.float32).tolist()

    def masks(boxes):
        return mask_api.frPyObjects(octagons(boxes), 50, 60)

    annotations, samples = [], []
    for image in images:
        boxes = [box() for _ in range(rng.integers(0, 7))]
        for one in boxes:
            crowd = bool(rng.random() < 0.2)
            polygons = octagons([one])
            if crowd:  # COCO's crowds are runs of pixels
                pixels = mask_api.decode(mask_api.frPyObjects(polygons, 50, 60)[0]).ravel('F')
                ends = np.flatnonzero(np.diff(pixels, prepend=0)).tolist()
                runs = np.diff([0, *ends, pixels.size]).tolist()
                polygons = {'size': [50, 60], 'counts': runs}
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image['id'],
                    'category_id': rng.choice(categories)['id'],
                    'bbox': one,
                    'area': float(one[2] * one[3] * rng.uniform(0.3, 1)),
                    'iscrowd': int(crowd),
                    'segmentation': polygons,
                }
            )
        moved = [(np.array(b) + rng.integers(0, 3, 4)).tolist() for b in boxes + boxes]
        found = [b for b in moved + boxes + [box(), box()] if rng.random() < 0.5]
        score = rng.random(len(found)).astype(np.float32)
        score = np.where(rng.random(len(found)) < 0.5, score.round(1), score)
        corners = np.array(found, np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        instances = {
            'bboxes': torch.from_numpy(corners),
            'scores': torch.from_numpy(score),
            'labels': torch.from_numpy(rng.integers(len(categories), size=len(found))),
            'masks': masks(found) if found else [],
        }
        samples.append({'img_id': image['id'], 'ori_shape': (50, 60), 'pred_instances': instances})
    truth = {'images': images, 'categories': categories, 'annotations': annotations}
    return truth, samples


def test_500_random_cases_are_equal_to_the_bit(tmp_path, both):
    rng = np.random.default_rng(0)
    evaluations = kinds = 0
    for case in range(500):
        truth, samples = random_case(rng)
        ann_file = tmp_path / 'instances.json'
        ann_file.write_text(json.dumps(truth))
        classes = [category['name'] for category in truth['categories']]
        absent = case % 5 == 0 and len(classes) > 1  # the detector does not know the last class
        for sample in samples if absent else ():
            instances = sample['pred_instances']
            instances['labels'] %= len(classes) - 1
        classes = classes[: len(classes) - absent]
        options = {'metric': ['bbox', 'segm'], 'classwise': True, 'metric_items': NAMES + RECALLS}
        if case % 10 in (3, 5):
            options = {'metric': 'proposal'}
        figures, number = both((str(ann_file), classes, samples), **options)
        evaluations += number
        kinds += len(set(figures.values()) - {0.0, 1.0, -1.0}) > 3
    assert evaluations > 800 and kinds > 300


def test_nothing_found_is_said_and_gives_no_figure(made, both, caplog):
    ann_file, classes, samples = made
    nothing = [
        {**sample, 'pred_instances': {k: v[:0] for k, v in sample['pred_instances'].items()}}
        for sample in samples
    ]
    assert both((ann_file, classes, nothing), metric=['bbox', 'segm']) == ({}, 0)


def test_annotations_of_the_data_set_in_place_of_a_file(made, both, tmp_path):
    """As mmdet's data sets of other formats give them, images by name."""
    ann_file, classes, samples = made
    truth = json.loads(Path(ann_file).read_text())
    named = []
    for sample in samples:
        own = [a for a in truth['annotations'] if a['image_id'] == sample['img_id']]
        instances = [
            {
                'bbox': [*a['bbox'][:2], *np.add(a['bbox'][:2], a['bbox'][2:]).tolist()],
                'bbox_label': a['category_id'] - 1,
                'ignore_flag': a['iscrowd'],
            }
            for a in own
        ]
        named.append({**sample, 'img_id': f'{sample["img_id"]:05}', 'instances': instances})
    figures, evaluations = both((None, classes, named))
    assert evaluations == 1 and figures['coco/bbox_mAP_50'] > 0.3
    kept = evaluated('HotCocoMetric', (None, classes, named), outfile_prefix=str(tmp_path / 'a'))
    assert kept == figures
    assert {file.name for file in tmp_path.iterdir()} == {
        'a.gt.json', 'a.bbox.json', 'a.segm.json',
    }  # fmt: skip


def test_results_are_written_only_where_that_is_asked_for(made, tmp_path, monkeypatch):
    import mmdet.evaluation.metrics.coco_metric as theirs

    for kind in ('CocoMetric', 'HotCocoMetric'):
        prefix = str(tmp_path / kind)
        options = {'metric': ['bbox', 'segm'], 'outfile_prefix': prefix}
        assert evaluated(kind, made, **options)
        assert evaluated(kind, made, **options, format_only=True) == {}
    written = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(written) == 4
    for name in ('bbox', 'segm'):
        assert written[f'CocoMetric.{name}.json'] == written[f'HotCocoMetric.{name}.json']

    def refuse(*_):
        raise AssertionError('a file was written')

    monkeypatch.setattr(theirs, 'dump', refuse)
    assert evaluated('HotCocoMetric', made)


@pytest.mark.parametrize('rename', ['{:03}'.format, (2**53).__add__, (-100).__add__])
def test_ids_of_categories_may_be_anything_that_sorts(rename, made, both, tmp_path):
    ann_file, classes, samples = made
    truth = json.loads(Path(ann_file).read_text())
    for category in truth['categories']:
        category['id'] = rename(category['id'])
    for annotation in truth['annotations']:
        annotation['category_id'] = rename(annotation['category_id'])
    changed = tmp_path / 'changed.json'
    changed.write_text(json.dumps(truth))
    renamed = (str(changed), classes, samples)
    figures, _ = both(renamed, metric_items=NAMES)
    assert figures['coco/bbox_mAP_50'] > 0.2
    # with classwise=True mmdet takes a text for a list of ids
    options = {'metric_items': NAMES, 'classwise': True}
    found, expected = (evaluated('HotCocoMetric', data, **options) for data in (renamed, made))
    assert found == pytest.approx(expected, abs=0, nan_ok=True)


def test_where_pycocotools_and_mmdet_are_wrong_the_figure_is_right(made, tmp_path):
    ann_file, classes, samples = made
    truth = json.loads(Path(ann_file).read_text())
    options = {'metric_items': NAMES, 'classwise': True}
    expected = evaluated('HotCocoMetric', made, **options)
    for annotation in truth['annotations']:
        annotation['id'] -= 1  # pycocotools never counts the object 0 as found
    truth['categories'].reverse()  # and mmdet takes them to be in the order of their ids
    for annotation in truth['annotations']:
        annotation['category_id'] = len(classes) + 1 - annotation['category_id']
    for category, name in zip(truth['categories'], classes, strict=True):
        category['name'] = name
    changed = tmp_path / 'changed.json'
    changed.write_text(json.dumps(truth))
    found = evaluated('HotCocoMetric', (str(changed), classes, samples), **options)
    assert found == pytest.approx(expected, abs=0, nan_ok=True)
    assert evaluated('CocoMetric', (str(changed), classes, samples), **options) != found


def test_what_cannot_be_evaluated_is_named(made):
    ann_file, classes, samples = made
    with pytest.raises(ConfigError, match="metric_items has the unknown metric 'mAP_x'"):
        evaluated('HotCocoMetric', made, metric_items=['mAP_x'])
    for numbers in ((300,), (1, 100), (1, 10, 300)):
        with pytest.raises(ConfigError, match='at least three numbers that include 100'):
            evaluated('HotCocoMetric', made, proposal_nums=numbers)
    HotCocoMetric(metric='proposal_fast', proposal_nums=(300,))  # which needs no 100
    bare = [dict(s, pred_instances={**s['pred_instances']}) for s in samples]
    for sample in bare:
        del sample['pred_instances']['masks']
    with pytest.raises(KeyError, match='segm is not in results'):
        evaluated('HotCocoMetric', (ann_file, classes, bare), metric='segm')
    bare[0]['img_id'] = 10_000
    with pytest.raises(DataError, match='image 10000 is not in the ann_file'):
        evaluated('HotCocoMetric', (ann_file, classes, bare))


def test_it_runs_none_of_pycocotools_matching(made, monkeypatch):
    def refuse(*_):
        raise AssertionError('pycocotools was asked')

    monkeypatch.setattr(COCOeval, 'evaluate', refuse)
    monkeypatch.setattr(COCOeval, 'accumulate', refuse)
    evaluated('HotCocoMetric', made)
    with pytest.raises(AssertionError, match='was asked'):  # and mmdet's own still does
        evaluated('CocoMetric', made)


def test_one_line_of_a_config_gives_it_back_to_pycocotools(tmp_path):
    base = str(ROOT / 'configs' / 'mask_rcnn_evit_m4_coco.py')
    child = tmp_path / 'child.py'
    child.write_text(f"_base_ = {base!r}\nval_evaluator = dict(type='CocoMetric')\n")
    changed, whole = Config.fromfile(child), Config.fromfile(base)
    assert whole.val_evaluator.type == 'HotCocoMetric'
    assert changed.val_evaluator == {**whole.val_evaluator, 'type': 'CocoMetric'}
    assert 'evit_mm.evaluation.coco_metric' in whole.custom_imports.imports


def test_the_comparison_of_evaluators_finds_equal_figures():
    result = time_evaluators(60)
    slow, fast = result['pycocotools'], result['hotcoco']
    assert fast['figures'] == slow['figures']
    assert len(set(slow['figures'])) > 9
    assert result['difference'] == 0 and result['detections'] == len(synthetic_detections(60)[1])
    assert min(part['seconds'] for part in (slow, fast)) > 0


def test_made_detections_are_as_they_say():
    assert len(synthetic_detections(1)[0]['categories']) == 80
    assert synthetic_detections(9) == synthetic_detections(9, seed=0)
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
    places = [(d['image_id'], -d['score']) for d in found]
    assert places == sorted(places)  # so that the last of an image are those left out
    sizes = {i['id']: (i['width'], i['height']) for i in truth['images']}
    for annotation in objects:
        x, y, width, height = annotation['bbox']
        assert min(x, y) >= 0 and min(width, height) > 0
        right, bottom = sizes[annotation['image_id']]
        assert x + width <= right + 0.02 and y + height <= bottom + 0.02
