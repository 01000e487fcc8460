"""What is written is read again, takes no more room than it needs, and is replaced as a whole."""

import json

import pytest
import safetensors
import torch

from evit_mm.checkpoint import read_checkpoint, write_checkpoint
from evit_mm.checkpoint.writing import check_target
from evit_mm.errors import CheckpointError


@pytest.mark.parametrize('suffix', ['.pth', '.pt', '.bin', '.safetensors'])
def test_tensors_and_metadata_are_read_again(tmp_path, suffix):
    large = torch.arange(3e5).view(3, -1)
    state = {'part': large[1:, :2], 'turned': large[:, :4].t(), 'same': large[1:, :2]}
    state['row'] = large[2, :4]  # contiguous as it is
    state['learned'] = torch.ones(3, requires_grad=True)
    path = tmp_path / 'folder' / f'file{suffix}'
    write_checkpoint(state, path, {'cfg': 'x = 1', 'epoch': 3})
    found = read_checkpoint(path)
    assert set(found) == {'state_dict', 'meta'}
    assert found['meta'] == {'cfg': 'x = 1', 'epoch': 3}
    assert list(found['state_dict']) == list(state) or suffix == '.safetensors'
    for name, tensor in found['state_dict'].items():
        assert torch.equal(tensor, state[name]), name
        assert tensor.is_contiguous() and not tensor.requires_grad
    assert path.stat().st_size < 1e4  # large alone takes 1.2 MB
    write_checkpoint({'w': torch.zeros(1)}, str(path))
    assert read_checkpoint(path) == {'state_dict': {'w': torch.zeros(1)}, 'meta': {}}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_weights_lie_where_the_caller_says(tmp_path):
    state = {'w': torch.ones(2)}
    write_checkpoint(state, tmp_path / 'a.pth', key='model')
    assert set(torch.load(tmp_path / 'a.pth', weights_only=True)) == {'model', 'meta'}
    write_checkpoint(state, tmp_path / 'a.safetensors', {'a': [1, 'b']}, key='model')
    with safetensors.safe_open(tmp_path / 'a.safetensors', 'pt') as file:
        metadata = file.metadata()
    assert json.loads(metadata.pop('evit_mm')) == {'a': [1, 'b']}
    assert metadata == {'format': 'pt'}  # without which transformers refuses a file


@pytest.mark.parametrize('name', ['a.onnx', 'a', 'a.pth.tar', '.pth'])
def test_another_suffix_is_refused_before_anything_is_written(tmp_path, name):
    for function in (check_target, lambda path: write_checkpoint({'w': torch.ones(1)}, path)):
        with pytest.raises(CheckpointError, match=r'must end in one of \.pth, \.pt, \.bin, \.safe'):
            function(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_what_cannot_be_written_is_one_error_that_names_the_file(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=rf"{name}' cannot be written: "):
        write_checkpoint({'w': torch.ones(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"b\.safetensors' cannot be written: .*JSON"):
        write_checkpoint({'w': torch.ones(1)}, tmp_path / 'b.safetensors', {'a': torch.ones(1)})
