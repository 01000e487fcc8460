"""Winograd's convolution against torch's in float64."""

import pytest
import torch
from torch import nn

from evit_mm.deploy.winograd import WinogradConv2d
from tests.conftest import relative_error


@pytest.mark.parametrize(
    ('size', 'channels', 'bias'),
    [
        ((28, 28), (128, 128), True),
        ((29, 31), (5, 3), False),
        ((26, 63), (7, 130), True),
        ((5, 200), (2, 4096), True),  # one row of tiles is more than one step takes
        ((130, 131), (256, 720), True),  # more tiles than one step takes
    ],
)
def test_it_is_the_convolution(size, channels, bias):
    conv = nn.Conv2d(*channels, 3, padding=1, bias=bias)
    x = torch.randn(2, channels[0], *size)
    for layout in (torch.contiguous_format, torch.channels_last):
        with torch.inference_mode():
            found = WinogradConv2d(conv)(x.to(memory_format=layout))
        with torch.no_grad():
            expected = nn.Conv2d.forward(conv.double(), x.double())
        conv.float()
        assert found.shape == expected.shape
        assert found.stride(1) == 1  # channels last
        assert relative_error(found.double(), expected) < 1e-5


def test_elsewhere_it_is_the_plain_convolution():
    conv = nn.Conv2d(8, 8, 3, padding=1)
    winograd = WinogradConv2d(conv)
    small, large = torch.randn(1, 8, 5, 5), torch.randn(1, 8, 40, 40)
    with torch.inference_mode():
        assert torch.equal(winograd(small), conv(small))
        assert not torch.equal(winograd(large), conv(large))
        half = winograd.to(torch.bfloat16)(large.bfloat16())
        assert torch.equal(half, conv.to(torch.bfloat16)(large.bfloat16()))
    conv.float()
    large.requires_grad_()
    winograd.float()(large).sum().backward()
    assert large.grad is not None and conv.weight.grad is not None
    assert winograd(large.detach()).requires_grad  # for the weight alone
    assert set(winograd.state_dict()) == {'weight', 'bias'}


def test_it_follows_a_state_dict_and_knows_autocast():
    first, second = (WinogradConv2d(nn.Conv2d(8, 8, 3, padding=1)) for _ in range(2))
    x = torch.randn(1, 8, 40, 40)
    first.load_state_dict(second.state_dict())
    with torch.no_grad():
        assert torch.equal(first(x), second(x))
        with torch.autocast('cpu', torch.bfloat16):
            assert torch.equal(first(x), nn.Conv2d.forward(first, x))
    # no gradient is wanted, so nothing is lost where no_grad was forgotten
    assert torch.equal(first.requires_grad_(False)(x), second.requires_grad_(False)(x))
    assert not torch.equal(first(x), nn.Conv2d.forward(first, x))


def test_maps_of_48_tiles_or_more_are_transformed():
    conv = nn.Conv2d(8, 8, 3, padding=1)
    winograd = WinogradConv2d(conv)
    for *size, plain in ((24, 32, False), (21, 29, False), (24, 28, True), (4, 188, True)):
        x = torch.randn(1, 8, *size)
        with torch.inference_mode():
            assert torch.equal(winograd(x), conv(x)) == plain


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::DeprecationWarning')
def test_graphs_for_other_runtimes_have_the_plain_convolution():
    conv = nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False)
    winograd, x = WinogradConv2d(conv), torch.randn(1, 8, 40, 40)
    assert not torch.equal(winograd(x), conv(x))
    assert torch.equal(torch.jit.trace(winograd, x)(x), conv(x))
    if hasattr(torch.compiler, 'is_compiling'):
        assert torch.equal(torch.compile(winograd, backend='eager')(x), conv(x))


def test_other_convolutions_are_refused_and_small_ones_not_worth_it():
    for other in (dict(stride=2), dict(groups=2), dict(dilation=2), dict(padding_mode='reflect')):
        conv = nn.Conv2d(256, 256, 3, **{'padding': 1, **other})
        assert not WinogradConv2d.pays(conv)
        with pytest.raises(ValueError, match='expected a 3x3 convolution'):
            WinogradConv2d(conv)
    assert not WinogradConv2d.suits(nn.Conv2d(8, 8, 3))
    assert not WinogradConv2d.suits(nn.Conv2d(8, 8, 1))
    assert not WinogradConv2d.suits(nn.Conv2d(8, 8, (5, 3), padding=1))
    assert WinogradConv2d.pays(nn.Conv2d(128, 128, 3, padding=1))
    assert not WinogradConv2d.pays(nn.Conv2d(127, 128, 3, padding=1))
    assert not WinogradConv2d.pays(nn.Conv2d(256, 36, 3, padding=1))
    assert not WinogradConv2d.pays(nn.Conv2d(256, 256, 3, padding=1).double())
