"""The backbone's numbers in every precision, layout and form."""

import copy

import pytest
import torch

from evit_mm.compare.benchmark import forms
from evit_mm.deploy import fuse
from evit_mm.errors import ConfigError
from evit_mm.models import VARIANTS, EfficientViT
from tests.conftest import randomise, relative_error

# of one output, relative; half precision's own rounding through some fifty layers
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
SHAPE = (2, 3, 96, 160)  # not whole windows in any stage


def build(arch, device):
    return randomise(EfficientViT(arch=arch)).eval().to(device)


def image_on(device):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(device)


def worst(found, expected):
    return max(relative_error(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize('arch', VARIANTS)
def test_precisions_against_float64(arch, device, is_gpu, figures):
    model, image = build(arch, device), image_on(device)
    fused = fuse(model)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(image.double())
        on_cpu = copy.deepcopy(model).cpu().double()(image.cpu().double())
        figures['float64 against the CPU'] = worst(exact, [x.to(device) for x in on_cpu])
        for dtype in TOLERANCE:
            name = str(dtype).removeprefix('torch.')
            figures[name] = worst(copy.deepcopy(model).to(dtype)(image.to(dtype)), exact)
            if dtype != torch.float32:
                with torch.autocast(torch.device(device).type, dtype):
                    outputs = model(image)
                    figures[f'{name}, AMP'] = worst(outputs, exact)
                    figures[f'{name}, AMP, fused'] = worst(fused(image), exact)
        figures['float32, fused'] = worst(fused(image), exact)
        figures['float16, fused'] = worst(fused.half()(image.half()), exact)
        if is_gpu:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            figures['TF32'] = worst(model(image), exact)
    assert figures['float64 against the CPU'] < 1e-9
    for name, error in figures.items():
        dtype = getattr(torch, name.split(',')[0].replace('TF32', 'float16').split()[0])
        assert dtype == torch.float64 or error < TOLERANCE[dtype], (name, error)


@pytest.mark.parametrize('arch', ['m0', 'm4'])
def test_gradients_against_float64(arch, device, figures):
    image = image_on('cpu')
    expected = gradients(build(arch, 'cpu').double(), image.double())
    found = gradients(build(arch, device), image.to(device))
    errors = [relative_error(found[name].cpu(), value) for name, value in expected.items()]
    figures['largest error of a gradient'] = max(errors)
    figures['median error of a gradient'] = sorted(errors)[len(errors) // 2]
    assert figures['median error of a gradient'] < 1e-4
    assert max(errors) < 1e-2


def gradients(model, image):
    sum(output.square().mean() for output in model(image)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('arch', ['m0', 'm4'])
def test_channels_last_equals_contiguous(arch, device, figures):
    image = image_on(device)
    last = build(arch, device)
    contiguous = randomise(EfficientViT(arch=arch, channels_last=False)).eval().to(device)
    with torch.no_grad():
        layout = torch.channels_last
        kept = [output.is_contiguous(memory_format=layout) for output in last(image)]
        figures['outputs in channels last'] = f'{sum(kept)} of {len(kept)}'
        figures['float32'] = worst(last(image), contiguous(image))
        whole = copy.deepcopy(last).to(memory_format=torch.channels_last)
        figures['float32, weights too'] = worst(whole(image), contiguous(image))
        last, contiguous = last.double(), contiguous.double()
        figures['float64'] = worst(last(image.double()), contiguous(image.double()))
    assert max(figures['float32'], figures['float32, weights too']) < 1e-4
    assert figures['float64'] < 1e-12


@pytest.mark.parametrize('form', ['plain', 'fused'])
def test_cuda_graph(form, device, is_gpu, figures):
    model, image = build('m4', device), image_on(device)
    model = fuse(model) if form == 'fused' else model
    if not is_gpu:
        with pytest.raises(ConfigError, match='needs --device cuda, got cpu'):
            forms.graphed(model, image)
        figures['graph'] = 'needs a GPU'
        return
    given = image.clone()
    run = forms.graphed(model, given)
    given.copy_(image.flip(0) * 0.5)  # a replay reads its input anew
    with torch.no_grad():
        expected = model(given)
    figures['largest error'] = worst(run(), expected)
    assert figures['largest error'] < 1e-5
