"""FusedAdamW takes the steps of torch's AdamW."""

import pytest
import torch

from evit_mm.runner import optimizers


@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('grouped', [True, False])
def test_the_steps_are_those_of_adamw(monkeypatch, fused, grouped):
    monkeypatch.setattr(optimizers, 'FUSED_ON_CPU', fused)

    def trained(kind):
        weights = [torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2)]
        groups = [{'params': weights[:1], 'lr': 0.5}, {'params': weights[1:]}]
        optimizer = kind(iter(groups if grouped else weights), lr=0.1, weight_decay=0.3)
        for _ in range(3):
            optimizer.zero_grad()
            sum((weight**3).sum() for weight in weights).backward()
            optimizer.step()
        return torch.stack([weight.detach() for weight in weights]), optimizer

    found, optimizer = trained(optimizers.FusedAdamW)
    assert torch.allclose(found, trained(torch.optim.AdamW)[0])
    assert all(group['fused'] is fused for group in optimizer.param_groups)
