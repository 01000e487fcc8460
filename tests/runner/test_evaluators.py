"""A metric that an evaluator does not give is refused before a training."""

import types

import pytest
import torch
from mmdet.evaluation import CocoMetric, MultiDatasetsEvaluator
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook
from mmengine.registry import METRICS, init_default_scope

import evit_mm.evaluation.coco_metric  # noqa: F401
from evit_mm.errors import ConfigError
from evit_mm.runner.evaluators import check_metrics


def evaluators(*options, build=Evaluator):
    """Return an evaluator of a list, with a sample of one object and its detection."""
    init_default_scope('mmdet')
    evaluator = build([{'type': 'HotCocoMetric', **item} for item in options])
    evaluator.dataset_meta = {'classes': ('cat',), 'cumulative_sizes': [1, 2]}
    evaluator.process([sample()])
    return evaluator


def sample():
    box = [1, 2, 31, 42]
    found = {'bboxes': torch.tensor([box]), 'scores': torch.ones(1), 'labels': torch.tensor([0])}
    instances = [{'bbox': box, 'bbox_label': 0, 'ignore_flag': 0}]
    size = {'img_id': 1, 'ori_shape': (50, 50)}
    return {**size, 'pred_instances': found, 'instances': instances}


def check(evaluator, *hooks):
    cfg = types.SimpleNamespace(filename='a.py')
    check_metrics(types.SimpleNamespace(cfg=cfg, model=torch.nn.Identity()), evaluator, hooks)


def test_two_evaluators_with_the_same_names():
    same = evaluators({}, {'iou_thrs': [0.5]})
    with pytest.raises(ConfigError, match="two evaluators give a metric 'coco/bbox_mAP', .*prefix"):
        check(same)
    with pytest.raises(ValueError, match='same metric name coco/bbox_mAP'):
        same.evaluate(1)
    other = evaluators({}, {'iou_thrs': [0.5], 'prefix': 'other'})
    check(other)
    assert other.evaluate(1)['other/bbox_mAP'] == 1
    check(evaluators({}, {'metric': 'proposal'}))


def test_an_evaluator_for_each_of_two_data_sets():
    each = evaluators({}, {}, build=lambda m: MultiDatasetsEvaluator(m, ['a', 'b']))
    each.process([sample()])
    check(each, CheckpointHook(save_best='b/coco/bbox_mAP', rule='greater'))
    with pytest.raises(ConfigError, match='choose from a/coco/bbox_mAP'):
        check(each, CheckpointHook(save_best='coco/bbox_mAP', rule='greater'))
    assert each.evaluate(2)['b/coco/bbox_mAP'] == 1


def test_the_best_checkpoint_by_the_first_metric():
    hook = CheckpointHook(save_best='auto')
    evaluator = evaluators({'classwise': True})
    assert next(iter(evaluator.evaluate(1))) == 'coco/cat_precision'
    with pytest.raises(ConfigError, match="'auto' takes the first metric, which is the AP of one"):
        check(evaluator, hook)
    check(evaluators({}), hook)


@pytest.mark.parametrize(('thresholds', 'known'), [([0.5, 0.6], False), ([0.5, 0.75], True)])
@pytest.mark.parametrize('kind', ['CocoMetric', 'HotCocoMetric'])
def test_the_best_checkpoint_by_a_threshold_that_is_not_evaluated(kind, thresholds, known):
    hook = CheckpointHook(save_best='coco/bbox_mAP_75', rule='greater')
    evaluator = evaluators({'type': kind, 'iou_thrs': thresholds})
    if known:
        check(evaluator, hook)
    else:
        with pytest.raises(ConfigError, match="save_best is 'coco/bbox_mAP_75', which .* not give"):
            check(evaluator, hook)
    if kind == 'HotCocoMetric':
        assert ('coco/bbox_mAP_75' in evaluator.evaluate(1)) == known


def test_the_names_of_a_subclass_are_its_own():
    # as the LVISMetric of mmdet, which needs the package lvis
    @METRICS.register_module(force=True)
    class OtherNames(CocoMetric):
        default_prefix = 'lvis'

        def compute_metrics(self, results):
            return {'bbox_AP': 1.0}

    evaluator = evaluators({'type': 'OtherNames'})
    assert evaluator.evaluate(1) == {'lvis/bbox_AP': 1}
    check(evaluator, CheckpointHook(save_best='lvis/bbox_AP', rule='greater'))
    with pytest.raises(ConfigError, match=r"'coco/bbox_AP', .* choose from lvis/\.\.\."):
        check(evaluator, CheckpointHook(save_best='coco/bbox_AP', rule='greater'))
