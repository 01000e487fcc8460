import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation

from evit_mm.errors import ConfigError
from evit_mm.models import EfficientViTFPN
from tests.conftest import randomise, relative_error

CHANNELS = (6, 10, 12)


def naive_pyramid(state, inputs, extra, num_outs):
    """Compute the pyramid from a state dict with plain functions, level by level."""

    def conv(name, x, padding):
        weight, bias = state[f'{name}.conv.weight'], state[f'{name}.conv.bias']
        return F.conv2d(x, weight, bias, padding=padding)

    merged = [None] * len(inputs)
    for i in reversed(range(len(inputs))):
        merged[i] = conv(f'lateral_convs.{i}', inputs[i], 0)
        if i + 1 < len(inputs):
            height, width = merged[i].shape[2:]
            coarse = merged[i + 1]
            rows = torch.arange(height) * coarse.shape[2] // height
            cols = torch.arange(width) * coarse.shape[3] // width
            merged[i] = merged[i] + coarse[:, :, rows][:, :, :, cols]
    outputs = [conv(f'fpn_convs.{i}', x, 1) for i, x in enumerate(merged)]
    finer = merged[0]
    for i in range(extra):
        weight = state[f'extra_trans_convs.{i}.conv.weight']
        bias = state[f'extra_trans_convs.{i}.conv.bias']
        finer = F.conv_transpose2d(finer, weight, bias, stride=2)
        # the 3x3 convolutions count from the finest level
        outputs.insert(0, conv(f'extra_fpn_convs.{extra - 1 - i}', finer, 1))
    while len(outputs) < num_outs:
        outputs.append(outputs[-1][:, :, ::2, ::2])
    return outputs


@pytest.mark.parametrize('extra', [0, 1, 2])
@pytest.mark.parametrize('size', [(16, 16), (21, 13), (1, 1)])
def test_equals_plain_functions(extra, size):
    num_outs = 4 + extra
    neck = EfficientViTFPN(CHANNELS, 8, num_outs, num_extra_trans_convs=extra)
    neck.init_weights()
    randomise(neck).double()
    inputs = []
    for i, channels in enumerate(CHANNELS):
        shape = (-(-size[0] // 2**i), -(-size[1] // 2**i))
        inputs.append(torch.randn(2, channels, *shape, dtype=torch.float64))
    found = neck(inputs)
    expected = naive_pyramid(neck.state_dict(), inputs, extra, num_outs)
    assert len(found) == num_outs
    for out, exact in zip(found, expected, strict=True):
        assert relative_error(out, exact) < 1e-12


def test_names_are_those_of_the_authors_detector_file():
    names = set(EfficientViTFPN((128, 256, 384), 256, 5, 1).state_dict())
    modules = [f'lateral_convs.{i}' for i in range(3)] + [f'fpn_convs.{i}' for i in range(3)]
    modules += ['extra_trans_convs.0', 'extra_fpn_convs.0']
    assert names == {f'{m}.conv.{p}' for m in modules for p in ('weight', 'bias')}


def test_initialisation_is_the_published_one():
    neck = EfficientViTFPN((64, 64), 64, 3, num_extra_trans_convs=1)
    neck.init_weights()
    conv = neck.fpn_convs[0].conv
    bound = (6 / (2 * 64 * 9)) ** 0.5
    assert 0.95 * bound < conv.weight.abs().max() <= bound  # Xavier-uniform
    trans = neck.extra_trans_convs[0].conv
    # torch counts a transposed convolution's fan-out as its second axis times the kernel
    assert trans.weight.std().item() == pytest.approx((2 / (64 * 4)) ** 0.5, rel=0.05)
    assert trans.weight.abs().max() > 3 * trans.weight.std()  # normal, not uniform
    assert all((p == 0).all() for n, p in neck.named_parameters() if n.endswith('bias'))


def test_init_cfg_overrides_the_published_initialisation():
    init_cfg = {'type': 'Constant', 'layer': 'Conv2d', 'val': 0.5}
    neck = EfficientViTFPN((8,), 8, 1, init_cfg=init_cfg)
    neck.init_weights()
    assert (neck.fpn_convs[0].conv.weight == 0.5).all()


@pytest.mark.parametrize(
    ('kwargs', 'error', 'message'),
    [
        ({'in_channels': 128}, TypeError, 'in_channels must be a sequence'),
        ({'in_channels': []}, TypeError, 'in_channels must be a sequence'),
        ({'in_channels': '8'}, TypeError, 'in_channels must be a sequence'),
        ({'in_channels': (8, 0)}, ValueError, r'in_channels must be positive, got \(8, 0\)'),
        ({'in_channels': (8, 8.0)}, TypeError, 'in_channels must be a sequence'),
        ({'out_channels': 0}, ValueError, 'out_channels must be a positive integer, got 0'),
        ({'num_outs': 5.0}, ValueError, 'num_outs must be a positive integer, got 5.0'),
        ({'num_extra_trans_convs': 3}, ValueError, '0, 1 or 2'),
        ({'num_outs': 3, 'num_extra_trans_convs': 1}, ValueError, 'at least 4'),
    ],
)
def test_bad_arguments_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        EfficientViTFPN(**{'in_channels': CHANNELS, 'out_channels': 8, 'num_outs': 5, **kwargs})


def test_wrong_inputs_are_named():
    neck = EfficientViTFPN((128, 256), 8, 2)
    with pytest.raises(ValueError, match=r'in_channels=\(128, 256\) but got maps with \(16, 24\)'):
        neck([torch.rand(1, 16, 4, 4), torch.rand(1, 24, 2, 2)])
    with pytest.raises(ConfigError, match=r'a list with 1 map, got a tensor of shape \(1, 8'):
        EfficientViTFPN((8,), 8, 1)(torch.rand(1, 8, 8, 8))  # one map in place of a list
    with pytest.raises(ConfigError, match=r'maps \(B, C, h, w\), got the shape \(8, 4, 4\); add'):
        EfficientViTFPN((4,), 8, 1)([torch.rand(8, 4, 4)])


def test_a_second_initialisation_keeps_what_was_learned():
    neck = EfficientViTFPN((8,), 8, 1)
    neck.init_weights()
    before = {name: tensor.clone() for name, tensor in neck.state_dict().items()}
    neck.init_weights()
    assert all(torch.equal(t, before[name]) for name, t in neck.state_dict().items())
