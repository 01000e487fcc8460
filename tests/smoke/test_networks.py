"""One loss with gradients and one prediction for each family of configs."""

import pytest
import torch
from mmengine.registry import init_default_scope

import evit_mm
from evit_mm.models import VARIANTS, EfficientViT
from evit_mm.runner.config import load_config
from tests.conftest import ROOT
from tests.steps import train_a_step_and_predict

FAMILIES = {
    'retinanet_evit_m0_coco': (),
    'retinanet_lite_evit_m0_coco': (),
    'rtmdet_evit_m0_coco': (),
    'yolox_evit_m0_coco': (),
    'mask_rcnn_evit_m4_coco': (),
    'retinanet_spos_coco': (),
    'retinanet_mobilenetv2_coco': ('timm',),
    'retinanet_mobilenetv3_coco': ('timm',),
    'retinanet_shvit_s4_coco': ('timm',),
    'retinanet_pvtv2_b0_coco': ('timm',),
}


def test_import_registers_the_networks():
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    for name in ('EfficientViT', 'EfficientViTFPN', 'SPOSNet'):
        assert MODELS.get(name) is getattr(evit_mm.models, name)


@pytest.mark.parametrize('arch', VARIANTS)
def test_each_variant(arch):
    maps = EfficientViT(arch).eval()(torch.rand(1, 3, 64, 96))
    assert [tuple(x.shape[2:]) for x in maps] == [(4, 6), (2, 3), (1, 2)]
    sum(x.mean() for x in maps).backward()


@pytest.mark.parametrize('name', FAMILIES)
def test_detector(name):
    for package in FAMILIES[name]:
        pytest.importorskip(package)
    train_a_step_and_predict(load_config(ROOT / 'configs' / f'{name}.py'))


def test_classifier():
    pytest.importorskip('mmpretrain')
    pytest.importorskip('timm')
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    cfg = load_config(ROOT / 'configs' / 'evit_m0_imagenet.py')
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    samples = [DataSample().set_gt_label(i) for i in (3, 7)]
    batch = {'inputs': torch.randint(0, 256, (2, 3, 64, 64)), 'data_samples': samples}
    data = model.data_preprocessor(batch, True)
    (loss,) = model.train().loss(data['inputs'], data['data_samples']).values()
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None for p in model.parameters())
    data = model.data_preprocessor(batch, False)
    with torch.no_grad():
        found = model.eval().predict(data['inputs'], data['data_samples'])
    assert [float(s.pred_score.sum()) for s in found] == pytest.approx([1, 1], abs=1e-4)
