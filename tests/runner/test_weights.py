"""Weights that a training starts from."""

import torch
from torch import nn

from evit_mm.runner.weights import read_start


def network(classes):
    return nn.ModuleDict({'backbone': nn.Linear(3, 4), 'bbox_head': nn.Linear(4, classes)})


def test_a_training_starts_from_the_files_weights_and_its_own_head(tmp_path):
    source, model = network(5).state_dict(), network(2)
    torch.save({'state_dict': source}, tmp_path / 'a.pth')
    started = read_start(tmp_path / 'a.pth', model)['state_dict']
    own = model.state_dict()
    assert started.keys() == own.keys()
    for name, tensor in started.items():
        assert torch.equal(tensor, (source if name.startswith('backbone') else own)[name])
