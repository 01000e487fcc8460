"""The fused form computes what the trained one does."""

import copy

import pytest
import torch
from torch import nn

from evit_mm.deploy.fusion import (
    _check,
    fold_conv_bn,
    fold_residual_depthwise,
    fuse,
    fuse_detector,
)
from evit_mm.deploy.winograd import WinogradConv2d
from evit_mm.errors import EvitError
from evit_mm.models import VARIANTS, EfficientViT, EfficientViTHead
from evit_mm.runner.config import load_config
from tests.conftest import ROOT, randomise, relative_error


@torch.no_grad()
def assert_same(model, fused, x, tolerance):
    for found, expected in zip(fused(x), model(x), strict=True):
        assert found.shape == expected.shape
        assert relative_error(found, expected) < tolerance


@pytest.mark.parametrize('arch', VARIANTS)
@pytest.mark.parametrize('size', [(224, 224), (160, 331)])
def test_every_variant_is_the_same_in_float64(arch, size):
    model = randomise(EfficientViT(arch=arch, out_stem=True).double()).eval()
    assert_same(model, fuse(model), torch.randn(2, 3, *size, dtype=torch.float64), 1e-10)


@pytest.mark.parametrize('windows', [(7, 7, 4), (3, 5, 2), (7, 7, 7)])
@pytest.mark.parametrize('size', [(16, 16), (97, 130), (224, 64)])
def test_any_size_and_window_is_the_same(tiny, windows, size):
    model = randomise(EfficientViT(arch=tiny, window_sizes=windows).double()).eval()
    assert_same(model, fuse(model), torch.randn(3, 3, *size, dtype=torch.float64), 1e-10)


def test_float32_stays_within_its_promise():
    model = randomise(EfficientViT(arch='m1')).eval()
    fused = fuse(model)
    assert_same(model, fused, torch.randn(1, 3, 96, 128), 1e-4)
    x = torch.randn(1, 3, 96, 128).to(memory_format=torch.channels_last)
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in fused(x))
    assert fused.patch_embed[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(part.training for part in fused.modules())


def test_images_of_four_channels(tiny):
    model = randomise(EfficientViT(arch=tiny, in_channels=4).double()).eval()
    assert_same(model, fuse(model), torch.randn(1, 4, 64, 64, dtype=torch.float64), 1e-10)


def test_the_model_is_left_as_it_is_and_no_batchnorm_remains(tiny):
    model = randomise(EfficientViT(arch=tiny)).eval()
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model)
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert not any(p.requires_grad for p in fused.parameters()) and not fused.training
    assert isinstance(fused, EfficientViT) and fused.out_channels == model.out_channels


def test_folding_alone():
    conv = nn.Conv2d(6, 6, 3, stride=1, padding=1, groups=6, bias=False).double()
    bn = randomise(nn.BatchNorm2d(6).double()).eval()
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        folded = fold_conv_bn(conv, bn)
        assert relative_error(folded(x), bn(conv(x))) < 1e-12
        assert relative_error(fold_residual_depthwise(folded)(x), x + bn(conv(x))) < 1e-12


def test_folded_weights_are_the_exact_ones_rounded_once():
    conv, bn = nn.Conv2d(64, 64, 1, bias=False), randomise(nn.BatchNorm2d(64)).eval()
    folded = fold_conv_bn(conv, bn)
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    weight = (conv.weight.double() * scale[:, None, None, None]).float()
    bias = (bn.bias.double() - bn.running_mean.double() * scale).float()
    off = [
        (x.view(torch.int32) - y.view(torch.int32)).abs().max()  # in units of the last place
        for x, y in ((folded.weight, weight), (folded.bias, bias))
    ]
    assert max(off) == 0


def test_a_classifier_with_its_head(tiny):
    backbone = EfficientViT(arch=tiny)
    model = nn.Sequential(backbone, EfficientViTHead(backbone.out_channels[-1], 10))
    model = randomise(model.double()).eval()
    fused = fuse(model)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in fused.modules())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert relative_error(fused(x), model(x)) < 1e-10


def test_a_detector_finds_the_same():
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmengine.registry import init_default_scope

    cfg = load_config(ROOT / 'configs' / 'retinanet_evit_m4_shapes.py')
    init_default_scope('mmdet')
    cfg.model.test_cfg.score_thr = 0.0
    model = MODELS.build(cfg.model)
    randomise(model.backbone)
    model.eval()
    data = model.data_preprocessor(demo_mm_inputs(1, [[3, 96, 160]], num_classes=5), False)
    network, whole = fuse(model), fuse_detector(model)
    assert 'predict_by_feat' in vars(whole.bbox_head)
    assert 'predict_by_feat' not in vars(network.bbox_head)
    with torch.inference_mode():
        expected, *others = (
            m.predict(data['inputs'], copy.deepcopy(data['data_samples']))[0].pred_instances
            for m in (model, network, whole)
        )
    assert len(expected) == 100
    for found in others:
        torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.bboxes[:10], expected.bboxes[:10], atol=0.05, rtol=0)


def test_large_convolutions_become_faster_ones_that_stay_shared(tiny):
    shared = nn.Conv2d(128, 128, 3, padding=1)
    parts = {
        'backbone': randomise(EfficientViT(arch=tiny)),
        'first': nn.Sequential(shared, nn.ReLU()),
        'second': nn.Sequential(shared),
        'small': nn.Conv2d(64, 64, 3, padding=1),
    }
    model = nn.ModuleDict(parts).eval()
    fused = fuse_detector(model)
    assert type(fused['first'][0]) is WinogradConv2d
    assert fused['first'][0] is fused['second'][0]
    assert type(fused['small']) is type(model['first'][0]) is nn.Conv2d
    assert not any(p.requires_grad for p in fused.parameters())
    x = torch.randn(1, 128, 40, 40)
    with torch.inference_mode():
        assert relative_error(fused['first'](x), model['first'](x)) < 1e-5
    shared.weight.data.fill_(float('nan'))
    with pytest.raises(EvitError, match='has a relative error of'):
        fuse_detector(model)


class Scaled(nn.Module):
    """Two outputs, each multiplied by a factor; adding ``lost`` and taking it away rounds."""

    def __init__(self, factors, dtype, lost):
        super().__init__()
        self.factors, self.lost = nn.Parameter(torch.tensor(factors, dtype=dtype)), lost

    def forward(self, x):
        x = (x + self.lost) - self.lost
        return [x * factor for factor in self.factors]


@pytest.mark.parametrize(
    ('dtype', 'lost', 'allowed', 'too_large'),
    [
        (torch.float32, 0, 5e-5, 2e-4),
        (torch.float16, 0, 5e-3, 2e-2),
        (torch.float32, 3e4, 4e-3, 2e-2),  # the plain form itself rounds to 6e-4
    ],
)
def test_the_worst_output_decides_whether_the_error_is_small_enough(
    dtype, lost, allowed, too_large
):
    plain = Scaled([1.0, 1.0], dtype, lost)
    for factors in ([1 + allowed, 1 - allowed], [1.0, 1.0]):
        _check(plain, Scaled(factors, dtype, lost), (3, 40, 40))
    for factors in ([1.0, 1 + too_large], [1 - too_large, 1.0]):
        with pytest.raises(EvitError, match='has a relative error of'):
            _check(plain, Scaled(factors, dtype, lost), (3, 40, 40))


@pytest.mark.slow
def test_a_trained_detector_has_the_same_ap(tmp_path):
    from evit_mm.compare import Budget
    from evit_mm.data import make_shapes
    from evit_mm.deploy.export.evaluation import evaluate
    from evit_mm.runner.train import train

    data = make_shapes(tmp_path / 'shapes', 16, 8, size=(64, 64), quiet=True)
    options = {'model.test_cfg.score_thr': 0.0}
    cfg = Budget(str(data), 3, (64, 64), cfg_options=options).config('evit_m0')
    cfg.dump(tmp_path / 'config.py')
    work, config = str(tmp_path / 'work'), tmp_path / 'config.py'
    train(config, work, seed=0, device='cpu')
    plain, fused = (
        evaluate(config, tmp_path / 'work' / 'epoch_3.pth', fuse=fuse, work_dir=work)
        for fuse in (False, True)
    )
    assert fused == plain and plain['coco/bbox_mAP_50'] > 0
    (log,) = sorted((tmp_path / 'work').glob('*/*.log'))[-1:]
    assert 'testing the fused model' in log.read_text()


def test_under_autocast_it_stays_as_near_as_the_plain_form(tiny):
    model = randomise(EfficientViT(arch=tiny)).eval()
    x = torch.randn(1, 3, 96, 130)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast('cpu', torch.bfloat16):
            outputs = zip(fuse(model)(x), model(x), exact, strict=True)
            for found, plain, expected in outputs:
                rounding = relative_error(plain.float(), expected)
                assert relative_error(found.float(), expected) < 3 * rounding + 0.01


def test_what_cannot_be_fused_is_refused(tiny):
    with pytest.raises(EvitError, match='eval mode'):
        fuse(EfficientViT(arch=tiny))
    with pytest.raises(EvitError, match='no EfficientViT in this Conv2d'):
        fuse(nn.Conv2d(3, 3, 1).eval())
    wild = EfficientViT(arch=tiny).eval()
    with torch.no_grad():  # in the last of its outputs only
        wild.blocks3[-1].ffn1.m.pw2.bn.bias.fill_(float('nan'))
    with pytest.raises(EvitError, match='has a relative error of'):
        fuse(wild)
