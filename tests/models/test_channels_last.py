"""Channels last by default: the layout in memory changes, results and parameters do not."""

import pytest
import torch
from mmengine.registry import init_default_scope

from evit_mm.models import EfficientViT, SPOSNet, TIMMNet
from evit_mm.runner.config import load_config
from tests.conftest import ROOT, TINY, randomise, relative_error

FORMATS = {True: torch.channels_last, False: torch.contiguous_format}
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
BACKBONES = {
    'EfficientViT': lambda **kwargs: EfficientViT(TINY, out_stem=True, **kwargs),
    'EfficientViT, recomputed': lambda **kwargs: EfficientViT(TINY, with_cp=True, **kwargs),
    'SPOSNet': SPOSNet,
    'TIMMNet': lambda **kwargs: TIMMNet('mobilenetv2_100', (2, 4, 6), **kwargs),
}


@pytest.fixture(params=BACKBONES)
def build(request):
    if request.param == 'TIMMNet':
        pytest.importorskip('timm')
    return BACKBONES[request.param]


def watch(model):
    """Return a list that the inputs of the model's convolutions are added to.

    The layers of attention see windows and slices of channels, not maps.
    """
    seen = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and '.attn.' not in name:
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    return seen


def in_format(maps, channels_last):
    return [x.is_contiguous(memory_format=FORMATS[channels_last]) for x in maps]


@pytest.mark.parametrize('image_format', FORMATS.values())
@pytest.mark.parametrize('channels_last', [None, True, False])
def test_argument_decides_the_layout_whatever_the_images(build, channels_last, image_format):
    model = build() if channels_last is None else build(channels_last=channels_last)
    channels_last = channels_last is not False
    seen = watch(model)
    outs = model(torch.randn(2, 3, 288, 320).contiguous(memory_format=image_format))
    assert in_format([seen[0], *outs], channels_last) == [True] * (1 + len(outs))
    assert in_format([seen[0], *outs], not channels_last) == [False] * (1 + len(outs))


@pytest.mark.parametrize('in_channels', [1, 3, 4])
def test_no_convolution_of_efficientvit_leaves_channels_last(in_channels):
    model = EfficientViT(TINY, in_channels=in_channels)
    seen = watch(model)
    model(torch.randn(2, in_channels, 288, 320))
    assert len(seen) == 4 + 4 * 6 + 2 * (2 * 3 + 5)  # stem, blocks, down-sampling
    assert all(in_format(seen, channels_last=True))


def test_results_and_gradients_are_equal(build):
    images = torch.randn(2, 3, 120, 136, dtype=torch.float64)
    results = []
    for channels_last in (True, False):
        model = randomise(build(channels_last=channels_last, norm_eval=True).double()).train()
        x = images.clone().requires_grad_()
        outs = model(x)
        sum((out * out.detach().cos()).sum() for out in outs).backward()
        results.append((*outs, x.grad, *(p.grad for p in model.parameters())))
        assert all(p.is_contiguous() and p.grad.is_contiguous() for p in model.parameters())
    for found, expected in zip(*results, strict=True):
        assert relative_error(found, expected) < 1e-12


def test_statistics_are_equal(build):
    images = torch.randn(2, 3, 120, 136, dtype=torch.float64)
    models = [randomise(build(channels_last=value).double()).train() for value in (True, False)]
    for model in models:
        model(images)
    first, second = (model.state_dict() for model in models)
    assert list(first) == list(second)
    for name, found in first.items():
        assert relative_error(found, second[name]) < 1e-12, name


def test_a_backbone_trains_whole_unless_told_otherwise(build):
    model = build()
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    fresh = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert fresh and not any(m.num_batches_tracked or m.running_mean.any() for m in fresh)
    assert not any(module.training for module in model.eval().modules())
    assert all(module.training for module in model.train().modules())
    model = build(norm_eval=True, frozen_stages=0).train()
    assert not any(p.requires_grad for module in model.parts()[0] for p in module.parameters())
    assert all(p.requires_grad for m in model.parts()[1] for p in m.parameters())
    assert model.training and not any(
        m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)
    )


def test_weights_in_channels_last_compute_the_same():
    model = randomise(EfficientViT(TINY).double()).eval()
    images = torch.randn(2, 3, 96, 80, dtype=torch.float64)
    expected = model(images)
    found = model.to(memory_format=torch.channels_last)(images)
    assert all(relative_error(a, b) < 1e-12 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_names_the_layout(path):
    assert load_config(path).model.backbone.channels_last is True


@pytest.mark.parametrize('name', ['retinanet_evit_m4_bccd', 'retinanet_mobilenetv2_coco'])
@pytest.mark.parametrize('channels_last', [True, False])
def test_neck_and_head_follow_and_one_option_switches(name, channels_last):
    from mmdet.registry import MODELS

    options = {} if channels_last else {'model.backbone.channels_last': False}
    cfg = load_config(ROOT / 'configs' / f'{name}.py', options)
    cfg.model.backbone.init_cfg = None
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    assert all(p.is_contiguous() for p in model.parameters())
    seen = [*map(watch, (model.neck, model.bbox_head))]
    model(torch.randn(1, 3, 288, 320))
    maps = [x for part in seen for x in part if min(x.shape[2:]) > 1]
    assert len(maps) > 20 and all(in_format(maps, channels_last))
