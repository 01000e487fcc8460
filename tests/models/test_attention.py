import pytest
import torch

from evit_mm.models.attention import CascadedGroupAttention, WindowAttention, relative_offsets
from tests.conftest import randomise, relative_error


def test_offsets_are_absolute_and_row_major():
    offsets = relative_offsets(3)
    for a in range(9):
        for b in range(9):
            dy, dx = abs(a // 3 - b // 3), abs(a % 3 - b % 3)
            assert offsets[a, b] == dy * 3 + dx


def apply_conv_bn(layer, x):
    """Convolve one window by loops over output pixels, then normalise with running statistics."""
    weight, groups = layer.c.weight, layer.c.groups
    pad = layer.c.padding[0]
    channels, height, width = x.shape
    out = torch.zeros(weight.shape[0], height, width, dtype=x.dtype)
    per_group = weight.shape[0] // groups
    padded = torch.nn.functional.pad(x, (pad,) * 4)
    for o in range(weight.shape[0]):
        first = o // per_group * (channels // groups)
        for y in range(height):
            for i in range(width):
                size = weight.shape[-1]
                patch = padded[first : first + channels // groups, y : y + size, i : i + size]
                out[o, y, i] = (patch * weight[o]).sum()
    bn = layer.bn
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    return (out - bn.running_mean[:, None, None]) * scale[:, None, None] + bn.bias[:, None, None]


def naive_attention(module, x):
    """Cascaded group attention on one window ``(C, w, w)``, token pair by token pair."""
    heads, w = len(module.qkvs), module.window_size
    key_dim = module.split_sizes[0]
    parts = x.chunk(heads)
    outputs = []
    for h in range(heads):
        feat = parts[h] + outputs[-1] if h else parts[h]
        q, k, v = apply_conv_bn(module.qkvs[h], feat).split(module.split_sizes)
        q = apply_conv_bn(module.dws[h], q)
        out = torch.zeros_like(v)
        for a in range(w * w):
            logits = torch.zeros(w * w, dtype=x.dtype)
            for b in range(w * w):
                dy, dx = abs(a // w - b // w), abs(a % w - b % w)
                dot = (q[:, a // w, a % w] * k[:, b // w, b % w]).sum()
                logits[b] = dot / key_dim**0.5 + module.attention_biases[h, dy * w + dx]
            for b, p in enumerate(logits.softmax(0)):
                out[:, a // w, a % w] += p * v[:, b // w, b % w]
        outputs.append(out)
    return apply_conv_bn(module.proj[1], torch.cat(outputs).relu())


@pytest.mark.parametrize('heads', [1, 2, 3])
def test_attention_equals_a_naive_loop(heads):
    module = CascadedGroupAttention(12, 4, heads, window_size=3, kernel_sizes=(5, 3, 1))
    randomise(module).double().eval()
    x = torch.randn(2, 12, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([naive_attention(module, window) for window in x])
        assert relative_error(module(x), expected) < 1e-12


def test_window_attention_sees_each_window_alone_and_the_zero_padding():
    module = randomise(WindowAttention(12, 4, 2, window_size=4, kernel_sizes=(3, 3))).eval()
    x = torch.randn(1, 12, 6, 7)
    padded = torch.zeros(1, 12, 8, 8)
    padded[:, :, :6, :7] = x
    with torch.no_grad():
        found = module(x)
        for y in (0, 4):
            for i in (0, 4):
                expected = module.attn(padded[:, :, y : y + 4, i : i + 4])
                height, width = min(4, 6 - y), min(4, 7 - i)
                window = found[:, :, y : y + height, i : i + width]
                assert relative_error(window, expected[:, :, :height, :width]) < 1e-5


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_one_window_has_the_gradient_of_many(layout):
    """BatchNorm's gradient on a CPU is wrong, up to torch 2.14 at least, for some strides.

    The input is contiguous and the gradient's strides are (w * w, 1, w * C, C), which are those of
    channels last but for the first, and which a view of a transposed tensor of batch 1 has.
    """
    module = (
        randomise(WindowAttention(12, 4, 2, window_size=4, kernel_sizes=(3, 3))).double().eval()
    )
    images = torch.randn(2, 12, 4, 4, dtype=torch.float64)
    weights = torch.randn(2, 12, 4, 4, dtype=torch.float64)

    def gradients(x, weight):
        x = x.contiguous(memory_format=layout).requires_grad_()
        inputs = (x, *module.parameters())
        return torch.autograd.grad((module(x) * weight).sum(), inputs)

    expected = gradients(images, weights)
    alone = [gradients(images[i : i + 1], weights[i : i + 1]) for i in range(2)]
    found = [torch.cat([grads[0] for grads in alone])]
    found += [first + second for first, second in zip(alone[0][1:], alone[1][1:], strict=True)]
    for one, many in zip(found, expected, strict=True):
        assert relative_error(one, many) < 1e-12
