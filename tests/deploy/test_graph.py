"""The graph of an export detects what mmdet's own prediction detects, for each kind of head."""

import copy
import re

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from evit_mm.data import make_shapes
from evit_mm.deploy.export import DetectorGraph
from evit_mm.deploy.export.check import compare_detections
from evit_mm.deploy.export.graph import ALL, CANDIDATES, nms_options, suppress
from evit_mm.deploy.export.run import build_graph
from evit_mm.errors import ConfigError
from evit_mm.runner.config import load_config
from tests.configs.test_drop_in import read_block
from tests.conftest import ROOT, randomise

IMAGE = (96, 160)
SIZES = [(90, 150), (96, 131)]  # of two images without padding
FILES = ['retinanet_lite_evit_m0_coco', 'rtmdet_evit_m0_coco', 'yolox_evit_m0_coco']
PAGES = ['FCOS', 'ATSS', 'GFL', 'RTMDet', 'YOLOX']
# heads of mmdet that no config of ours has, on RetinaNet's maps
OTHERS = {
    'FreeAnchorRetinaHead': {},
    'SoftmaxHead': dict(type='RetinaHead', loss_cls=dict(_delete_=True, type='CrossEntropyLoss')),
    'FSAFHead': dict(
        reg_decoded_bbox=True,
        anchor_generator=dict(scales_per_octave=1, octave_base_scale=1, ratios=[1.0]),
        bbox_coder=dict(_delete_=True, type='TBLRBBoxCoder', normalizer=4.0),
    ),
}


def config(name, folder):
    """Return a config with eight classes, and few detections per image."""
    if name in PAGES:
        cfg = read_block(name, folder)
    else:
        file = f'{name}.py' if name in FILES else 'retinanet_lite_evit_m0_coco.py'
        cfg = load_config(ROOT / 'configs' / file)
    cfg.model.backbone.init_cfg = None
    if name not in PAGES:  # whose necks are for M4
        cfg.model.backbone.arch = 'm0'
    cfg.model.bbox_head.num_classes = 8
    if name in OTHERS:
        cfg.merge_from_dict({'model': {'bbox_head': {'type': name, **copy.deepcopy(OTHERS[name])}}})
    cfg.model.test_cfg.update(score_thr=0.3, max_per_img=100)
    if 'nms_pre' in cfg.model.test_cfg:
        cfg.model.test_cfg.nms_pre = 200
    return cfg


def build(name, folder):
    """Build a detector with random weights."""
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    return MODELS.build(config(name, folder).model).eval()


def made(name, folder):
    """Build a detector with random weights that detects objects in a whole image."""
    torch.manual_seed(0)
    detector = build(name, folder)
    head = detector.bbox_head
    head.init_weights()
    norms = [x for x in head.modules() if isinstance(x, nn.modules.batchnorm._BatchNorm)]
    for part in (detector.backbone, detector.neck):
        randomise(part)
    with torch.no_grad():
        for part, module in head.named_modules():
            if isinstance(module, nn.Conv2d) and re.search(r'_cls(\.\d+)?$', part):
                module.weight *= 5  # some scores are far above the others
        for norm in norms:
            norm.momentum = None  # the mean of all batches
            norm.train()
        head(detector.extract_feat(torch.randn(8, 3, *IMAGE)))
    return detector.eval()


def with_random_features(detector):
    """Let a detector see random feature maps, from which its random head detects objects."""
    generator = torch.Generator().manual_seed(0)
    strides = [
        s if isinstance(s, int) else s[0] for s in detector.bbox_head.prior_generator.strides
    ]
    maps = tuple(
        4
        * torch.randn(
            2, detector.bbox_head.in_channels, -(-96 // s), -(-160 // s), generator=generator
        )
        for s in strides
    )
    detector.extract_feat = lambda image: maps
    randomise(detector.bbox_head)
    return detector


def predicted(detector, **options):
    metas = [dict(img_shape=size, scale_factor=(1.0, 1.0)) for size in SIZES]
    samples = [DetDataSample(metainfo=meta) for meta in metas]
    with torch.inference_mode():
        found = detector.predict(torch.zeros(2, 3, *IMAGE), samples, rescale=False)
    return [sample.pred_instances for sample in found]


def computed(detector, ending='nms'):
    with torch.inference_mode():
        return DetectorGraph(detector, ending)(
            torch.zeros(2, 3, *IMAGE), torch.tensor(SIZES).float()
        )


def assert_same(outputs, detector):
    most = detector.test_cfg.max_per_img
    for boxes, scores, labels, truth in zip(*outputs, predicted(detector), strict=True):
        truth = truth[:most]  # YOLOX does not limit their number
        there = scores > 0
        assert there.sum() == len(truth) > 10
        torch.testing.assert_close(scores[there], truth.scores, atol=1e-6, rtol=0)
        torch.testing.assert_close(boxes[there], truth.bboxes, atol=1e-3, rtol=1e-5)
        assert torch.equal(labels[there], truth.labels)
        assert (labels[~there] == -1).all() and not boxes[~there].any()


@pytest.mark.parametrize('name', [*FILES, *PAGES, *OTHERS])
def test_the_graph_detects_as_mmdet(name, tmp_path):
    detector = with_random_features(build(name, tmp_path))
    assert_same(computed(detector), detector)
    # NMS outside
    options = nms_options(detector.test_cfg)
    assert_same(suppress(*computed(detector, CANDIDATES), **options), detector)


@pytest.mark.parametrize('name', [*FILES, 'FCOS', 'GFL'])
def test_all_boxes_and_scores_contain_the_detections(name, tmp_path):
    detector = with_random_features(build(name, tmp_path))
    for boxes, scores, truth in zip(*computed(detector, ALL), predicted(detector), strict=True):
        assert boxes.shape == (len(scores), 4) and scores.shape[1] == 8
        apart = (truth.bboxes[:, None] - boxes).abs().amax(2)  # (detections, priors)
        apart = torch.maximum(apart, (truth.scores[:, None] - scores[:, truth.labels].T).abs())
        assert apart.amin(1).max() < 1e-3


@pytest.mark.parametrize(
    ('head', 'changes'),
    [
        ('PAAHead', {}),
        ('RetinaHead', dict(bbox_coder=dict(use_box_type=True))),
    ],
)
def test_other_predictions_are_refused(head, changes, tmp_path):
    from mmdet.registry import MODELS

    detector = build(FILES[0], tmp_path)
    detector.bbox_head = MODELS.build(dict(type=head, num_classes=4, in_channels=16))
    for part, values in changes.items():
        for name, value in values.items():
            setattr(getattr(detector.bbox_head, part), name, value)
    detector.bbox_head.test_cfg = detector.test_cfg
    with pytest.raises(ConfigError, match=rf'(?s){head}.* cannot be exported'):
        DetectorGraph(detector)


def test_detr_is_refused(tmp_path):
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    with pytest.raises(ConfigError, match='^DINO with DINOHead cannot be exported'):
        DetectorGraph(MODELS.build(read_block('DINO', tmp_path).model))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'suffix', 'file_format'),
    [
        ('rtmdet_evit_m0_coco', '.pte', 'executorch'),
        ('yolox_evit_m0_coco', '.pt2', 'torch'),
        ('ATSS', '.pt2', 'torch'),
        ('GFL', '.xml', 'openvino'),
        ('FCOS', '.onnx', 'onnx'),
    ],
)
def test_a_file_of_each_kind_detects_as_its_checkpoint(name, suffix, file_format, tmp_path):
    pytest.importorskip({'onnx': 'onnxruntime'}.get(file_format, file_format))
    from evit_mm.deploy.export import export
    from evit_mm.inference import Detector

    images = make_shapes(tmp_path / 'set', 1, 4, size=(160, 96), quiet=True) / 'val'
    cfg = config(name, tmp_path)
    dataset = cfg.test_dataloader.dataset
    dataset.metainfo = dict(classes=tuple('abcdefgh'))
    for step in dataset.pipeline:
        if step['type'] == 'Resize':
            step['scale'] = (160, 96)
    # few detections, so that rounding seldom changes what NMS decides
    cfg.model.test_cfg.update(score_thr=0.01, max_per_img=20)
    file, weights = tmp_path / 'detector.py', tmp_path / 'weights.pth'
    cfg.dump(file)
    torch.save({'state_dict': made(name, tmp_path).state_dict()}, weights)
    out = tmp_path / f'model{suffix}'
    exported = export(file, weights, out, file_format, dynamic=False, check=images)
    assert exported.agreement.detections > 20
    pairs = [
        [InstanceData(bboxes=x.boxes, scores=x.scores, labels=x.labels).to_tensor() for x in both]
        for both in zip(Detector(weights, file, 'cpu')(images), Detector(out)(images), strict=True)
    ]
    agreement = compare_detections(pairs, 0.01, cfg.model.test_cfg.max_per_img)
    assert agreement.detections > 20 and agreement.within(1e-4), str(agreement)


def test_batchnorm_is_folded_where_levels_share_convolutions(tmp_path):
    detector = with_random_features(build('rtmdet_evit_m0_coco', tmp_path))
    head = detector.bbox_head
    assert head.cls_convs[0][0].conv is head.cls_convs[1][0].conv
    graph = build_graph(detector, 'nms', torch.float32)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in graph.modules())
    with torch.inference_mode():
        outputs = graph(torch.zeros(2, 3, *IMAGE), torch.tensor(SIZES).float())
    assert_same(outputs, detector)
