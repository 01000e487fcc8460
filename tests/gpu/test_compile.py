"""What torch.compile makes of the backbone computes the same."""

import copy

import pytest
import torch

from evit_mm.deploy import fuse
from tests.conftest import TINY, relative_error

from .test_network import build, gradients, image_on, worst


@pytest.mark.parametrize('form', ['plain', 'fused', 'training'])
def test_compile(form, device, is_gpu, figures):
    torch._dynamo.reset()
    # on a processor the compiler takes a minute for each
    arch, backend = ('m0', 'inductor') if is_gpu else (TINY, 'aot_eager')
    model, image = build(arch, device), image_on(device)
    if form == 'training':
        model.train()
        other = copy.deepcopy(model)
        expected = gradients(model, image)
        found = gradients(torch.compile(other, dynamic=False, backend=backend), image)
        found = {name.removeprefix('_orig_mod.'): value for name, value in found.items()}
        errors = [relative_error(found[name], value) for name, value in expected.items()]
        figures['median error of a gradient'] = sorted(errors)[len(errors) // 2]
        assert figures['median error of a gradient'] < 1e-3
        return
    model = fuse(model) if form == 'fused' else model
    with torch.no_grad():
        expected = model(image)
        found = torch.compile(model, dynamic=False, backend=backend)(image)
    figures['largest error'] = worst(found, expected)
    assert figures['largest error'] < 1e-4
