"""Weights that a training starts from."""

import pytest
import torch
from torch import nn

from evit_mm.errors import CheckpointError, ConfigError
from evit_mm.runner.weights import read_fitting, read_start


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


class Normed(nn.Module):
    """A backbone and a head, both with BatchNorm, whose counters older files lack."""

    def __init__(self, classes):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.bbox_head = nn.Sequential(nn.Linear(4, classes), nn.BatchNorm1d(classes))


def test_a_checkpoint_that_fits_is_read_with_its_plain_weights_and_counters(tmp_path):
    model, state = Normed(2), {k: x.clone() for k, x in Normed(2).state_dict().items()}
    plain = {k: x + 1 for k, x in state.items()}
    less = {k: x for k, x in state.items() if not k.endswith('num_batches_tracked')}
    content = {'state_dict': less, 'meta': {'dataset_meta': {'classes': ('a', 'b')}}}
    path = tmp_path / 'a.pth'
    torch.save(content, path)
    read = read_fitting(path, model, {'classes': ('a', 'b')})
    assert read['meta'] == content['meta'] and 'ema_state_dict' not in read
    assert read['state_dict'].keys() == state.keys()
    assert all(torch.equal(read['state_dict'][k], x) for k, x in less.items())
    ema = {'steps': torch.tensor(3), **{f'module.{k}': x for k, x in plain.items()}}
    torch.save({**content, 'ema_state_dict': ema}, path)
    assert 'ema_state_dict' in read_fitting(path, model, {'classes': ('a', 'b')})
    with pytest.raises(ConfigError, match=r"trained with the classes \('a', 'b'\).* \('b', 'a'\)"):
        read_fitting(path, model, {'classes': ('b', 'a')})
    torch.save({'state_dict': less}, path)  # it does not say which classes it has
    read_fitting(path, model, {'classes': ('b', 'a')})


def test_what_a_start_leaves_out_is_named_and_a_body_that_differs_is_refused(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('evit_mm.runner.weights.print_log', lambda text, **_: said.append(text))
    source = {k: x for k, x in Normed(3).state_dict().items() if 'tracked' not in k}
    torch.save({'state_dict': source}, tmp_path / 'a.pth')
    read_start(tmp_path / 'a.pth', Normed(3))
    assert said == []
    torch.save({'state_dict': {**source, 'more.bias': torch.ones(1)}}, tmp_path / 'a.pth')
    own = Normed(2)
    started = read_start(tmp_path / 'a.pth', own)['state_dict']
    assert torch.equal(started['backbone.0.weight'], source['backbone.0.weight'])
    assert started.keys() == own.state_dict().keys()
    heads = [f'bbox_head.{i}.{name}' for i in (0, 1) for name in ('bias', 'weight')]
    heads[3:3] = ['bbox_head.1.running_mean', 'bbox_head.1.running_var']
    (text,) = said
    assert text.endswith(f'these entries are not loaded: {", ".join([*heads, "more.bias"])}')
    own.backbone[0] = nn.Linear(5, 4)
    with pytest.raises(CheckpointError, match='does not fit'):
        read_start(tmp_path / 'a.pth', own)
