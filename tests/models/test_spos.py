"""SPOSNet against a naive loop over the released definition (arXiv 1904.00420, megvii's files)."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation

from evit_mm.compare.complexity import count_macs, count_parameters
from evit_mm.errors import CheckpointError
from evit_mm.models import SPOSHead, SPOSNet
from evit_mm.models.spos import split_even_odd
from tests.conftest import randomise, relative_error

CHOICES = [2, 1, 0, 1, 2, 0, 2, 0, 2, 0, 2, 3, 0, 0, 0, 0, 3, 2, 3, 3]
CHANNELS = [64] * 4 + [160] * 4 + [320] * 8 + [640] * 4
FIRST = (0, 4, 8, 16)
# convolutions of a branch; the BatchNorm is the next entry, a ReLU follows pointwise ones
SHUFFLE = ('branch_main.0', 'branch_main.3', 'branch_main.5')
XCEPTION = tuple(f'branch_main.{i}' for i in (0, 2, 5, 7, 10, 12))
PROJECTION = ('branch_proj.0', 'branch_proj.2')


def released_listing():
    """Return names and shapes of the released checkpoint, written from its description."""
    listing = {}

    def conv(name, out_channels, in_channels, kernel):
        stem, index = name.rsplit('.', 1)
        listing[f'{name}.weight'] = (out_channels, in_channels, kernel, kernel)
        for entry in ('weight', 'bias', 'running_mean', 'running_var'):
            listing[f'{stem}.{int(index) + 1}.{entry}'] = (out_channels,)
        listing[f'{stem}.{int(index) + 1}.num_batches_tracked'] = ()

    conv('first_conv.0', 16, 3, 3)
    channels = 16
    for i, (choice, out) in enumerate(zip(CHOICES, CHANNELS, strict=True)):
        inputs = channels if i in FIRST else channels // 2
        middle, kernel = out // 2, (3, 5, 7, 3)[choice]
        if choice == 3:
            widths = [inputs, middle, middle, middle, middle, out - inputs]
            for place, name in enumerate(XCEPTION):
                before = widths[place - 1] if place else inputs
                depthwise = place % 2 == 0
                conv(
                    f'features.{i}.{name}',
                    widths[place],
                    1 if depthwise else before,
                    3 if depthwise else 1,
                )
        else:
            conv(f'features.{i}.{SHUFFLE[0]}', middle, inputs, 1)
            conv(f'features.{i}.{SHUFFLE[1]}', middle, 1, kernel)
            conv(f'features.{i}.{SHUFFLE[2]}', out - inputs, middle, 1)
        if i in FIRST:
            conv(f'features.{i}.{PROJECTION[0]}', inputs, 1, kernel)
            conv(f'features.{i}.{PROJECTION[1]}', inputs, inputs, 1)
        channels = out
    conv('conv_last.0', 1024, 640, 1)
    listing['classifier.0.weight'] = (1000, 1024)
    return listing


def naive_logits(state, x):
    """Run the released network from its tensors alone; returns stage outputs and logits."""

    def conv_bn(name, x, stride=1):
        weight = state[f'{name}.weight']
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        stem, index = name.rsplit('.', 1)
        norm = f'{stem}.{int(index) + 1}'
        entries = [state[f'{norm}.{k}'] for k in ('running_mean', 'running_var', 'weight', 'bias')]
        x = F.batch_norm(x, *entries)
        return x if groups > 1 else x.relu()

    x = conv_bn('first_conv.0', x, 2)
    stages = []
    for i, choice in enumerate(CHOICES):
        block = f'features.{i}.'
        stride = 2 if i in FIRST else 1
        if stride == 2:
            passing = conv_bn(block + PROJECTION[1], conv_bn(block + PROJECTION[0], x, 2))
        else:
            passing = torch.stack([x[:, c] for c in range(0, x.shape[1], 2)], 1)
            x = torch.stack([x[:, c] for c in range(1, x.shape[1], 2)], 1)
        names = XCEPTION if choice == 3 else SHUFFLE
        strided = 0 if choice == 3 else 1  # the first depthwise convolution
        for place, name in enumerate(names):
            x = conv_bn(block + name, x, stride if place == strided else 1)
        x = torch.cat([passing, x], 1)
        if i in (3, 7, 15, 19):
            stages.append(x)
    x = conv_bn('conv_last.0', x).mean((2, 3))
    return stages, x @ state['classifier.0.weight'].T


@pytest.fixture(scope='module')
def network():
    body = randomise(SPOSNet(out_indices=(0, 1, 2, 3, 4)).double(), gain=1.0).eval()
    head = randomise(SPOSHead().double()).eval()
    return body, head


def test_names_and_shapes_are_those_of_the_released_checkpoint(network):
    state = {k: tuple(v.shape) for part in network for k, v in part.state_dict().items()}
    assert state == released_listing()


def test_counted_figures():
    model = torch.nn.Sequential(SPOSNet(out_indices=(4,)), SPOSHead()).eval()
    assert count_parameters(model) / 1e6 == pytest.approx(3.558, abs=5e-4)
    assert count_macs(model, torch.rand(1, 3, 224, 224)) / 1e6 == pytest.approx(322.9, abs=0.05)


@pytest.mark.parametrize('size', [(64, 96), (75, 101)])
def test_outputs_equal_a_naive_loop(network, size):
    body, head = network
    x = 255 * torch.rand(2, 3, *size, dtype=torch.float64)
    state = {k: v for part in network for k, v in part.state_dict().items()}
    with torch.no_grad():
        found = body(x)
        stages, logits = naive_logits(state, x)
        for output, expected in zip(found[:4], stages, strict=True):
            assert relative_error(output, expected) < 1e-12
        assert relative_error(head(found), logits) < 1e-12
    for output, channels, stride in zip(found, body.out_channels, body.strides, strict=True):
        assert output.shape[1:] == (channels, *(-(-side // stride) for side in size))


@pytest.mark.parametrize(('choice', 'kernel'), enumerate((3, 5, 7, 3)))
def test_each_type_fits_at_each_place(choice, kernel):
    """Where a stage begins, the middle of a block has half the channels of its output."""
    model = SPOSNet([choice] * 20).eval()
    assert [tuple(x.shape[1:]) for x in model(torch.rand(1, 3, 64, 64))] == [
        (160, 8, 8),
        (320, 4, 4),
        (640, 2, 2),
    ]
    for index, out in enumerate(CHANNELS):
        before = CHANNELS[index - 1] if index else 16
        passing = before if index in FIRST else before // 2
        convs = [m for m in model.features[index].branch_main if isinstance(m, torch.nn.Conv2d)]
        widths = [conv.out_channels for conv in convs]
        if choice == 3:
            assert widths == [passing, *[out // 2] * 4, out - passing]
        else:
            assert widths == [out // 2, out // 2, out - passing]
        kernels = {conv.kernel_size for conv in convs if conv.groups > 1}
        assert kernels == {(kernel, kernel)}


def test_even_channels_pass_and_odd_ones_go_on():
    x = torch.arange(2 * 6 * 1 * 2).reshape(2, 6, 1, 2)
    even, odd = split_even_odd(x)
    for sample in range(2):
        for channel in range(3):
            assert torch.equal(even[sample, channel], x[sample, 2 * channel])
            assert torch.equal(odd[sample, channel], x[sample, 2 * channel + 1])


def test_gradients_reach_every_parameter():
    model = SPOSNet()
    model.init_weights()
    sum(out.square().mean() for out in model(torch.rand(2, 3, 64, 64))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_released_file_loads_as_it_is_and_a_wrong_one_does_not(network, tmp_path):
    state = {f'module.{k}': v for part in network for k, v in part.float().state_dict().items()}
    file = tmp_path / 'checkpoint.pth.tar'
    torch.save({'state_dict': state}, file)
    model = SPOSNet(out_indices=(1, 2), init_cfg=dict(type='Pretrained', checkpoint=str(file)))
    model.init_weights()
    for name, tensor in model.state_dict().items():
        if not name.endswith('num_batches_tracked'):
            assert torch.equal(tensor, state[f'module.{name}']), name
    other = SPOSNet(choices=[0, *CHOICES[1:]], init_cfg=model.init_cfg)
    with pytest.raises(CheckpointError, match=r'features\.0\.branch_main\.3\.weight'):
        other.init_weights()
    for part in network:
        part.double()


def test_frozen_stages_and_norm_eval():
    model = SPOSNet(frozen_stages=2, norm_eval=True).train()
    trained = {name.split('.')[1] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {str(i) for i in range(8, 20)}
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    assert any(m.training for m in SPOSNet().train().features.modules())


def test_out_indices_and_wrong_arguments():
    model = SPOSNet(out_indices=(0, 2))
    assert (model.out_channels, model.strides) == ((64, 320), (4, 16))
    assert len(model.features) == 16
    assert [tuple(x.shape) for x in model(torch.rand(1, 3, 33, 65))] == [
        (1, 64, 9, 17),
        (1, 320, 3, 5),
    ]
    assert SPOSNet().out_channels == (160, 320, 640) and SPOSNet().choices == tuple(CHOICES)
    for wrong in ((), (1, 0), (1, 1), (-1,), (5,), 3):
        with pytest.raises(ValueError, match='out_indices'):
            SPOSNet(out_indices=wrong)
    with pytest.raises(ValueError, match='frozen_stages'):
        SPOSNet(out_indices=(0,), frozen_stages=2)
    with pytest.raises(ValueError, match='frozen_stages'):
        SPOSNet(frozen_stages='1')
    for wrong in ([0] * 19, [4] * 20, [1.0] * 20, None):
        with pytest.raises(ValueError, match='choices'):
            SPOSNet(choices=wrong)
