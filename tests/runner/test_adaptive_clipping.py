"""Adaptive clipping in full and in mixed precision; its figures are in tests/models."""

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPERS

import evit_mm.runner.adaptive_clipping  # noqa: F401


@pytest.mark.parametrize(
    ('kind', 'factor'),
    [('AGCOptimWrapper', None), ('AGCOptimWrapper', 0.5), ('AmpAGCOptimWrapper', None)],
)
def test_all_groups_are_clipped_to_their_share_of_the_weights(monkeypatch, kind, factor):
    module = 'mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available'
    monkeypatch.setattr(module, lambda: True)  # CPUs do bfloat16
    weights = [torch.nn.Parameter(torch.full((1, 4), value)) for value in (1.0, 3.0)]
    optimizer = torch.optim.SGD([{'params': [weight]} for weight in weights], lr=1.0)
    amp = {'dtype': 'bfloat16'} if kind.startswith('Amp') else {}
    options = {**amp, **({'clip_factor': factor} if factor else {})}
    wrapper = OPTIM_WRAPPERS.build({'type': kind, 'optimizer': optimizer, **options})
    wrapper.update_params(sum(100 * weight.sum() for weight in weights))
    for weight, value in zip(weights, (1.0, 3.0), strict=True):
        assert weight.tolist()[0] == pytest.approx([value * (1 - (factor or 0.02))] * 4)
