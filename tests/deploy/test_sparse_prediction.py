"""Boxes above the threshold, held against mmdet's own way to them."""

import copy
import pickle

import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope

from evit_mm.deploy.sparse_prediction import can_predict_sparsely, predict_by_feat, predict_sparsely

SIZES = [(20, 26), (10, 13), (5, 7), (3, 4), (2, 2)]
METAS = [
    dict(img_shape=(150, 200), scale_factor=(0.5, 0.25)),
    dict(img_shape=(160, 208), scale_factor=(2.0, 2.0)),
]


def head_of(**test_cfg):
    init_default_scope('mmdet')
    test_cfg = {
        'nms_pre': 50,
        'min_bbox_size': 0,
        'score_thr': 0.05,
        'nms': dict(type='nms', iou_threshold=0.5),
        'max_per_img': 100,
        **test_cfg,
    }
    test_cfg = {key: value for key, value in test_cfg.items() if value is not None}
    head = dict(type='RetinaHead', num_classes=4, in_channels=8, feat_channels=8)
    return MODELS.build(ConfigDict(head, test_cfg=test_cfg)).eval()


def maps(head, shift, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    anchors = head.num_base_priors
    scores = [torch.randn(2, anchors * 4, *size, generator=generator) * 2 for size in SIZES]
    deltas = [torch.randn(2, anchors * 4, *size, generator=generator) for size in SIZES]
    return [(x + shift).to(dtype) for x in scores], [x.to(dtype) for x in deltas]


def assert_same(found, expected):
    assert len(found) == len(expected) == len(METAS)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name in b.keys():  # noqa: SIM118 - not a dict
            # a sigmoid's last bit depends on its place in the vector
            torch.testing.assert_close(a[name], b[name], atol=0, rtol=1e-6)


@pytest.mark.parametrize('shift', [-8.0, -4.0, 0.0])  # none above the threshold, some, nearly all
@pytest.mark.parametrize(
    'test_cfg',
    [
        {},
        dict(score_thr=0.0, nms_pre=1000),
        dict(min_bbox_size=40),
        dict(score_thr=1.0),
        dict(nms_pre=-1),
        dict(nms_pre=None, score_thr=None, min_bbox_size=None),
        dict(nms=dict(type='soft_nms', iou_threshold=0.3)),
    ],
)
def test_the_same_boxes(shift, test_cfg):
    head = head_of(**test_cfg)
    scores, deltas = maps(head, shift)
    for rescale in (False, True):
        args = dict(batch_img_metas=METAS, rescale=rescale)
        expected = head.predict_by_feat(scores, deltas, **args)
        assert_same(predict_by_feat(head, scores, deltas, **args), expected)
    last = [x.to(memory_format=torch.channels_last) for x in scores]
    assert_same(predict_by_feat(head, last, deltas, **args), expected)


def test_without_nms_and_with_another_config():
    head = head_of()
    scores, deltas = maps(head, -3.0)
    other = copy.deepcopy(head.test_cfg)
    other.score_thr = 0.3
    args = dict(batch_img_metas=METAS, cfg=other, with_nms=False)
    expected = head.predict_by_feat(scores, deltas, **args)
    assert len(expected[0]) > 0 and float(expected[0].scores.min()) > 0.3
    assert_same(predict_by_feat(head, scores, deltas, **args), expected)


def test_half_precision_has_the_same_threshold():
    head = head_of(nms_pre=10_000, min_bbox_size=-1)  # boxes of bfloat16 anchors have no width
    scores, deltas = maps(head, -3.0, torch.bfloat16)
    args = dict(batch_img_metas=METAS, with_nms=False)
    expected = head.predict_by_feat(scores, deltas, **args)
    for found, image in zip(predict_by_feat(head, scores, deltas, **args), expected, strict=True):
        # many scores are equal, in either order
        torch.testing.assert_close(found.scores, image.scores, atol=0, rtol=0.01)


def test_a_score_at_the_threshold_is_no_detection():
    head = head_of(score_thr=0.5, nms_pre=10_000, min_bbox_size=-1)
    scores, deltas = maps(head, 0.0)
    scores = [x.round() for x in scores]  # of many zeros, each a score of one half
    args = dict(batch_img_metas=METAS, with_nms=False)
    expected = head.predict_by_feat(scores, deltas, **args)
    found = predict_by_feat(head, scores, deltas, **args)
    assert [len(x) for x in found] == [len(x) for x in expected]
    assert 0 < len(found[0]) < sum((x[0] >= 0).sum() for x in scores)


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda head: pickle.loads(pickle.dumps(head))])
def test_a_copy_of_a_shortened_head_is_shortened(copied):
    head = head_of()
    predict_sparsely(head)
    found = copied(head).predict_by_feat
    assert found.func is predict_by_feat and found.args[0] is not head


def test_only_heads_that_predict_so():
    assert can_predict_sparsely(head_of())
    plain = dict(type='AnchorHead', num_classes=4, in_channels=8)
    assert can_predict_sparsely(MODELS.build(plain))
    softmax = dict(type='CrossEntropyLoss', use_sigmoid=False)
    head = dict(type='RetinaHead', num_classes=4, in_channels=8, feat_channels=8, loss_cls=softmax)
    assert not can_predict_sparsely(MODELS.build(head))
    rpn = dict(type='RPNHead', in_channels=8, feat_channels=8)
    atss = dict(type='ATSSHead', num_classes=4, in_channels=32, feat_channels=32)
    fcos = dict(type='FCOSHead', num_classes=4, in_channels=32, feat_channels=32)
    assert not any(can_predict_sparsely(MODELS.build(head)) for head in (rpn, atss, fcos))


@pytest.mark.parametrize(
    'own',
    ['forward_single', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process'],
)
def test_a_head_with_a_way_of_its_own_is_left_alone(own):
    head = head_of()
    head.__class__ = type('Own', (type(head),), {own: lambda *_: None})
    assert not can_predict_sparsely(head)


def test_a_head_with_other_anchors_or_classes_is_left_alone():
    others = [head_of() for _ in range(3)]
    others[0].prior_generator.__class__ = type('Own', (type(others[0].prior_generator),), {})
    others[1].loss_cls.custom_cls_channels = True
    others[2].use_sigmoid_cls = False
    assert not any(can_predict_sparsely(head) for head in others)
