"""The numerics are the authors': golden figures, published counts, and timm as second oracle."""

import json

import numpy as np
import pytest
import timm
import torch

from evit_mm.compare.complexity import count_macs, count_parameters
from evit_mm.models import VARIANTS, EfficientViT, EfficientViTFPN, EfficientViTHead
from tests.conftest import ROOT, golden_weights, randomise, relative_error

FOLDER = ROOT / 'tests' / 'golden'
DETECTOR = json.loads((FOLDER / 'efficientvit_detector_f64.json').read_text())
CLASSIFIER = json.loads((FOLDER / 'efficientvit_classifier.json').read_text())
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


def samples(x: torch.Tensor) -> torch.Tensor:
    flat = x.flatten()
    return flat[np.linspace(0, flat.numel() - 1, 24).astype(int)]


def image(batch: int, entry: str) -> torch.Tensor:
    """Return the input of a golden entry in float64."""
    height, width = (int(side) for side in entry.rsplit('_', 1)[1].split('x'))
    return torch.from_numpy(np.random.default_rng(0).standard_normal((batch, 3, height, width)))


def assert_golden(found: list[torch.Tensor], golden: list[dict], tolerance: float) -> None:
    for x, expected in zip(found, golden, strict=True):
        assert list(x.shape) == expected['shape']
        picked = torch.tensor(expected['samples'], dtype=torch.float64)
        assert relative_error(samples(x), picked) < tolerance
        assert float(x.norm()) == pytest.approx(expected['l2'], rel=tolerance)
        assert float(x.std()) == pytest.approx(expected['std'], rel=tolerance)


@pytest.mark.parametrize('entry', DETECTOR)
@torch.no_grad()
def test_detector_against_the_authors_code(entry):
    """Backbone and neck in float64; the authors' code computed the figures in float64 too."""
    arch, kind, *_ = entry.split('_')
    backbone = golden_weights(EfficientViT(arch).double().eval(), float64=True)
    outs = backbone(image(1, entry))
    if kind.startswith('fpn'):
        extra = int(kind[-1])
        neck = EfficientViTFPN(backbone.out_channels, 256, 4 + extra, num_extra_trans_convs=extra)
        outs = golden_weights(neck.double().eval(), 'neck.', float64=True)(outs)
    assert_golden(outs, DETECTOR[entry], 1e-10)


@pytest.mark.parametrize('entry', CLASSIFIER)
@torch.no_grad()
def test_classifier_against_the_authors_code(entry):
    """The authors' code computed these figures in float32, which limits the tolerance."""
    backbone = golden_weights(EfficientViT(entry[:2], window_sizes=(7, 7, 4)))
    head = golden_weights(EfficientViTHead(backbone.out_channels[-1])).double().eval()
    outs = backbone.double().eval()(image(2, entry).float().double())
    assert_golden([*outs, head(outs)], CLASSIFIER[entry], 1e-4)


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
