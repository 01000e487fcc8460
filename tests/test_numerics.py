"""The numerics are the authors': golden figures, published counts, and timm as second oracle."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from evit_mm.compare.complexity import count_macs, count_parameters
from evit_mm.models import VARIANTS, EfficientViT, EfficientViTFPN, EfficientViTHead

from .conftest import golden_weights, randomise, relative_error

GOLDEN = json.loads((Path(__file__).parent / 'data' / 'efficientvit_golden.json').read_text())
# arXiv 2305.07027 and the authors' code: parameters and multiply-adds of the classifier at 224 px,
# parameters of the detector's backbone
PUBLISHED = {
    'm0': (2.349, 79.2, 2.156),
    'm1': (2.981, 167.1, 2.787),
    'm2': (4.188, 201.0, 3.962),
    'm3': (6.901, 262.7, 6.579),
    'm4': (8.804, 299.3, 8.419),
    'm5': (12.474, 521.6, 12.089),
}


def outputs_of(entry: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Compute what a golden entry describes."""
    height, width = (int(side) for side in entry.rsplit('_', 1)[1].split('x'))
    image = np.random.default_rng(0).standard_normal((2, 3, height, width)).astype(np.float32)
    is_classifier = '_cls_' in entry
    backbone = EfficientViT(entry[:2], window_sizes=(7, 7, 4) if is_classifier else None)
    golden_weights(backbone).to(dtype).eval()
    with torch.no_grad():
        outs = backbone(torch.from_numpy(image).to(dtype))
        if is_classifier:
            head = golden_weights(EfficientViTHead(backbone.out_channels[-1])).to(dtype).eval()
            outs = (*outs, head(outs))
        if '_fpn_' in entry:
            neck = EfficientViTFPN(backbone.out_channels, 256, 5, num_extra_trans_convs=1)
            outs = golden_weights(neck, 'neck.').to(dtype).eval()(outs)
    return [out.double() for out in outs]


def samples(x: torch.Tensor) -> torch.Tensor:
    flat = x.flatten()
    return flat[np.linspace(0, flat.numel() - 1, 24).astype(int)]


@pytest.mark.parametrize('entry', GOLDEN)
def test_golden(entry):
    """Each output equals the authors' to 1e-4, or as far as float32 determines it at all.

    With the golden weights, the 7x7 windows of the last stage see attention logits of up to 5e5,
    where float32 resolves 0.03 and single softmax winners flip with the order of summation: the
    same code in float32 and float64 differs by up to 0.3 there. Such outputs are recognised by
    that difference, and then the bulk of the samples and the norm must agree.
    """
    in_float32 = outputs_of(entry, torch.float32)
    in_float64 = outputs_of(entry, torch.float64)
    strict = 0
    for found, exact, golden in zip(in_float32, in_float64, GOLDEN[entry], strict=True):
        assert list(found.shape) == golden['shape']
        expected = torch.tensor(golden['samples'], dtype=torch.float64)
        if relative_error(found, exact) < 1e-4:
            strict += 1
            assert relative_error(samples(found), expected) < 1e-4
            assert float(found.norm()) == pytest.approx(golden['l2'], rel=1e-4)
            assert float(found.std()) == pytest.approx(golden['std'], rel=1e-4)
        else:
            errors = (samples(exact) - expected).abs() / golden['std']
            assert float(errors.median()) < 0.1  # a wrong network is at 0.7
            assert float(exact.norm()) == pytest.approx(golden['l2'], rel=0.05)
    # which outputs are well determined is itself known: all of a classifier, two detector stages
    assert strict == (4 if '_cls_' in entry else 0 if '_fpn_' in entry else 2)


@pytest.mark.parametrize('arch', VARIANTS)
def test_parameters_and_macs_are_the_published_ones(arch):
    params, macs, backbone_params = PUBLISHED[arch]
    backbone = EfficientViT(arch, window_sizes=(7, 7, 4)).eval()
    head = EfficientViTHead(backbone.out_channels[-1]).eval()
    counted = count_parameters(backbone) + count_parameters(head)
    assert round(counted / 1e6, 3) == params
    detector_backbone = EfficientViT(arch)  # 7x7 windows throughout
    assert round(count_parameters(detector_backbone) / 1e6, 3) == backbone_params
    counted = count_macs(lambda x: head(backbone(x)), torch.rand(1, 3, 224, 224))
    assert counted / 1e6 == pytest.approx(macs, rel=1e-3)


@pytest.mark.parametrize(
    ('arch', 'macs'),
    list(zip(VARIANTS, (1.62e9, 3.51e9, 4.21e9, 5.41e9, 6.10e9, 10.80e9), strict=True)),
)
def test_macs_at_detection_size(arch, macs):
    with torch.device('meta'):
        backbone = EfficientViT(arch).eval()
        counted = count_macs(backbone, torch.rand(1, 3, 800, 1333))
    assert counted == pytest.approx(macs, abs=0.005e9)  # published to three digits


def timm_name(name: str) -> str:
    """Map a parameter name of the authors to timm's."""
    parts = name.split('.')
    if parts[0] == 'patch_embed':
        parts[1] = f'conv{int(parts[1]) // 2 + 1}'
    elif parts[0].startswith('blocks'):
        stage, index = int(parts[0][-1]) - 1, int(parts[1])
        if stage and index < 3:
            parts[:2] = ['stages', str(stage), 'downsample', ('res1', 'patchmerge', 'res2')[index]]
        else:
            parts[:2] = ['stages', str(stage), 'blocks', str(index - 3 if stage else index)]
    return '.'.join({'c': 'conv', 'l': 'linear'}.get(part, part) for part in parts)


@pytest.mark.parametrize('size', [224, 512])
@pytest.mark.parametrize('arch', VARIANTS)
def test_timm_agrees_on_outputs_and_gradients(arch, size):
    """Forward and backward equal timm's network with the same weights, in float64."""
    theirs = timm.create_model(f'efficientvit_{arch}', img_size=size, num_classes=10).double()
    ours = EfficientViT(arch, window_sizes=(7, 7, 4 if size == 224 else 7)).double()
    head = EfficientViTHead(ours.out_channels[-1], 10).double()
    model = torch.nn.Sequential(ours, head)
    randomise(model).eval()
    state = {timm_name(k.split('.', 1)[1]): v for k, v in model.state_dict().items()}
    assert set(state) == set(theirs.state_dict())
    theirs.load_state_dict(state)
    theirs.train()
    theirs.eval()

    # two images: of one, timm's gradient is wrong, see `test_one_window_has_the_gradient_of_many`
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.forward_intermediates(images, intermediates_only=True)
        for ours_out, theirs_out in zip(ours(images), expected, strict=True):
            assert relative_error(ours_out, theirs_out) < 1e-9

    # timm caches the bias in eval mode, so its gradient needs training mode with BatchNorm in eval
    theirs.train()
    for module in theirs.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    weights = torch.randn(2, 10, dtype=torch.float64)
    (theirs(images) * weights).sum().backward()
    (model(images) * weights).sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        expected = gradients[timm_name(name.split('.', 1)[1])]
        assert expected.abs().max() > 0, name
        assert relative_error(parameter.grad, expected) < 1e-7, name
