"""mmcv's SyncBatchNorm against PyTorch's batch normalisation, in one process and in two."""

import evit_mm.ops  # isort: skip - before anything imports mmcv.ops

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from mmcv.ops import SyncBatchNorm
from torch import nn

from evit_mm.ops.sync_bn import sync_bn_forward_output

pytestmark = pytest.mark.skipif(
    evit_mm.ops.PROVIDED == 'compiled', reason='a compiled mmcv has it for GPUs only'
)


@pytest.fixture
def alone(tmp_path):
    """A group of this process, without which mmcv's module cannot be made."""
    dist.init_process_group('gloo', f'file://{tmp_path}/meet', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make(kind):
    layer = kind(5, eps=0.3, momentum=0.2)  # which shows in the results
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, 5))
        layer.bias.copy_(torch.linspace(-1, 1, 5))
    return layer


def batch():
    return torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(0)) * 3 + 2


def step(layer, x, factor):
    """Return the output, the gradients of its weighted sum, and the running statistics."""
    x = x.clone().requires_grad_()
    y = layer(x)
    (y.float() * factor).sum().backward()
    return y, x.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var


def factors():
    return torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(1))


@pytest.mark.usefixtures('alone')
def test_it_normalises_as_pytorch_does():
    expected = step(make(nn.BatchNorm2d), batch(), factors())
    found = step(make(SyncBatchNorm), batch(), factors())
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_the_variance_of_a_single_value_stays_finite():
    """Of all processes together; from two values on, the running variance is unbiased."""
    for processes, expected in ((1, 0.75 + 0.25 * 3), (2, 0.75 + 0.25 * 3 * 2)):
        x, var, running = torch.full((1, 1, 1), 5.0), torch.tensor([3.0]), torch.ones(1)
        one, mean, out = torch.ones(1), torch.zeros(1), torch.zeros(1, 1, 1)
        sync_bn_forward_output(
            *(x, x[0, 0], var, one, mean, mean.clone(), running, out.clone(), one.clone(), out),
            *(1.0, 0.25, processes),
        )
        assert running.item() == expected and not out.any()


@pytest.mark.usefixtures('alone')
def test_half_precision_stays_near_full_precision():
    y, grad, *_ = step(make(SyncBatchNorm), batch().half(), factors())
    assert y.dtype == grad.dtype == torch.float16
    expected = make(nn.BatchNorm2d)(batch().half().float())
    torch.testing.assert_close(y.float(), expected, rtol=1e-3, atol=1e-3)


def one_process(rank, folder):
    dist.init_process_group('gloo', f'file://{folder}/meet', rank=rank, world_size=2)
    layer = make(SyncBatchNorm)
    half = slice(2 * rank, 2 * rank + 2)
    torch.save(
        [x.detach() for x in step(layer, batch()[half], factors()[half])], f'{folder}/{rank}'
    )
    dist.destroy_process_group()


def test_two_processes_normalise_as_one_with_all_images(tmp_path):
    torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    y, grad, by_weight, by_bias, *running = step(make(nn.BatchNorm2d), batch(), factors())
    for index, expected in ((0, y), (1, grad)):
        whole = torch.cat([part[index] for part in found])
        torch.testing.assert_close(whole, expected.detach(), rtol=1e-5, atol=1e-5)
    for part in found:
        # the mean over processes, as every gradient under DDP
        for mean, total in ((part[2], by_weight), (part[3], by_bias)):
            torch.testing.assert_close(mean, total / 2, rtol=1e-5, atol=1e-5)
        for one, two in zip(part[4:], running, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
