"""The child configs that ``docs/your_detector.md`` prints, run as they stand there."""

import re
from collections import Counter

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope

from evit_mm.data import make_shapes
from evit_mm.models import EfficientViT
from evit_mm.runner.config import load_config
from tests.conftest import ROOT, randomise
from tests.mmdet_tool import train_with_mmdet

PAGE = (ROOT / 'docs' / 'your_detector.md').read_text()
BLOCKS = dict(
    re.findall(r'^## ([^\n]+)\n[^#]*?```python\n(.*?)```', PAGE, re.DOTALL | re.MULTILINE)
)
# nothing here is backbone or neck: a random head is sure of nothing, RTMDet's may put out boxes
# without area unless distances are exponentials, and DINO takes its 900 queries from the 340 cells
# that the test's small images have
SURE_OF_NOTHING = {'model.test_cfg.score_thr': 0.0, 'model.test_cfg.max_per_img': 20}
FOR_THE_TEST = {
    'Faster R-CNN': {'model.test_cfg.rcnn.score_thr': 0.0, 'model.test_cfg.rcnn.max_per_img': 20},
    'RTMDet': {**SURE_OF_NOTHING, 'model.bbox_head.exp_on_reg': True},
    'DINO': {'model.num_queries': 100, 'model.test_cfg.max_per_img': 20},
}
STRIDES = {
    'Faster R-CNN': [4, 8, 16, 32, 64],
    'FCOS': [8, 16, 32, 64, 128],
    'ATSS': [8, 16, 32, 64, 128],
    'GFL': [8, 16, 32, 64, 128],
    'RTMDet': [8, 16, 32],
    'YOLOX': [8, 16, 32],
    'DINO': [8, 16, 32, 64],
}
SIZES = [(128, 96), (96, 128)]


def read_block(name, folder):
    path = folder / 'mine.py'
    path.write_text(BLOCKS[name])
    return load_config(path)  # what tools/train.py reads it with


def assert_every_part_learns(model):
    """Every parameter has a finite gradient, and those of the backbone are not zero."""
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def assert_optimizer_takes_all(cfg, model):
    """The config's own paramwise settings reach every parameter once; return each one's rate."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    rates = {names[id(p)]: group['lr'] for group in groups for p in group['params']}
    counts = Counter(names[id(p)] for group in groups for p in group['params'])
    assert counts == Counter(names.values())
    return rates


def test_every_block_of_the_page_is_tested():
    others = {'Pretrained weights', "mmpretrain's classifier", 'mmsegmentation (not run)'}
    assert set(BLOCKS) == {*STRIDES, *others}
    assert PAGE.count('```python') == len(BLOCKS)


@pytest.mark.parametrize('name', STRIDES)
def test_detector_trains_and_predicts(name, tmp_path):
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs

    init_default_scope('mmdet')
    cfg = read_block(name, tmp_path)
    cfg.merge_from_dict(FOR_THE_TEST.get(name, SURE_OF_NOTHING))
    model = MODELS.build(cfg.model)
    model.init_weights()
    randomise(model.backbone)
    assert isinstance(model.backbone, EfficientViT)
    preprocessor = model.data_preprocessor
    assert preprocessor.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert preprocessor.std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])
    assert preprocessor._channel_conversion

    with torch.no_grad():
        maps = model.eval().extract_feat(torch.rand(1, 3, 128, 256))
    strides = [(128 // x.shape[2], 256 // x.shape[3]) for x in maps]
    assert strides == [(s, s) for s in STRIDES[name]]
    head = model.rpn_head if name == 'Faster R-CNN' else model.bbox_head
    if name == 'DINO':  # it takes maps of any size, but as many as it has levels
        assert len(maps) == model.num_feature_levels
    else:
        assert [
            (s, s) if isinstance(s, int) else s for s in head.prior_generator.strides
        ] == strides
    if name == 'Faster R-CNN':
        assert model.roi_head.bbox_roi_extractor.featmap_strides == STRIDES[name][:4]

    MessageHub.get_current_instance().update_info('iter', 0)  # YOLOX's preprocessor asks for it
    inputs = demo_mm_inputs(2, [(3, *size) for size in SIZES], num_items=[3, 3], num_classes=80)
    data = model.data_preprocessor(inputs, True)
    losses = model.train().loss(data['inputs'], data['data_samples'])
    total = sum(sum(v) if isinstance(v, list) else v for k, v in losses.items() if 'loss' in k)
    total.backward()
    assert torch.isfinite(total)
    assert_every_part_learns(model)
    rates = assert_optimizer_takes_all(cfg, model)
    if name == 'DINO':  # the one that trains its backbone at another rate
        ratio = rates['backbone.patch_embed.0.c.weight'] / rates['bbox_head.cls_branches.0.weight']
        assert ratio == pytest.approx(0.1)

    data = model.data_preprocessor(inputs, False)
    with torch.no_grad():
        found = model.eval().predict(data['inputs'], data['data_samples'], rescale=False)
    for sample, (height, width) in zip(found, SIZES, strict=True):
        boxes, scores = sample.pred_instances.bboxes, sample.pred_instances.scores
        assert len(boxes) > 0 and torch.isfinite(boxes).all()
        assert (scores > 0).all() and (scores <= 1).all()
        assert sample.img_shape[:2] == (height, width)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['RTMDet', 'DINO'])  # the smoke tests train the two-stage one
def test_mmdets_own_tool_trains_it(name, tmp_path):
    data = make_shapes(tmp_path / 'set', 8, 2, size=(96, 80), quiet=True)
    train_with_mmdet(BLOCKS[name], data, tmp_path)


def test_published_weights_are_asked_for_as_in_the_coco_config():
    namespace = {}
    exec(BLOCKS['Pretrained weights'], namespace)
    cfg = load_config(ROOT / 'configs' / 'retinanet_evit_m4_coco.py')
    assert namespace['backbone'] == cfg.model.backbone


def test_table_of_strides_and_channels():
    rows = re.findall(r'^\| `(arch=[^`]+)` \| ([\d, ]+) \| ([\d, ]+) \|$', PAGE, re.MULTILINE)
    assert len(rows) == 3
    for arguments, strides, channels in rows:
        backbone = Config.fromstring(f'backbone = dict({arguments})', '.py').backbone
        backbone = EfficientViT(**backbone)
        assert ', '.join(map(str, backbone.strides)) == strides
        assert ', '.join(map(str, backbone.out_channels)) == channels


def test_classifier_trains_and_predicts(tmp_path):
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    init_default_scope('mmpretrain')
    cfg = read_block("mmpretrain's classifier", tmp_path)
    cfg.model.data_preprocessor = cfg.data_preprocessor  # as mmengine's runner does
    model = MODELS.build(cfg.model)
    model.init_weights()
    randomise(model.backbone)
    parts = [type(part).__name__ for part in (model.backbone, model.neck, model.head)]
    assert parts == ['EfficientViT', 'GlobalAveragePooling', 'LinearClsHead']
    samples = [DataSample().set_gt_label(i) for i in (3, 7)]
    batch = {'inputs': torch.randint(0, 256, (2, 3, 224, 224)), 'data_samples': samples}
    data = model.data_preprocessor(batch, True)
    (loss,) = model.train().loss(data['inputs'], data['data_samples']).values()
    loss.backward()
    assert torch.isfinite(loss)
    assert_every_part_learns(model)
    assert_optimizer_takes_all(cfg, model)
    data = model.data_preprocessor(batch, False)
    with torch.no_grad():
        found = model.eval().predict(data['inputs'], data['data_samples'])
    for sample in found:
        assert sample.pred_score.shape == (1000,)
        assert float(sample.pred_score.sum()) == pytest.approx(1, abs=1e-4)
        assert int(sample.pred_label) == int(sample.pred_score.argmax())


def test_segmentor_asks_for_the_channels_that_come_out():
    """mmsegmentation is not installed here; this is all that can be seen without it."""
    text = BLOCKS['mmsegmentation (not run)']
    model = Config.fromstring(text.split('\n', 1)[1], '.py').model
    model.backbone.pop('_delete_')
    channels = ROOT_MODELS.build(model.backbone).out_channels
    head, auxiliary = model.decode_head, model.auxiliary_head
    assert [channels[i] for i in head.in_index] == head.in_channels
    assert channels[auxiliary.in_index] == auxiliary.in_channels
