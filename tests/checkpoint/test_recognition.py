"""A checkpoint is known by its names and shapes, with every stage or only the first ones."""

import pytest
import torch

from evit_mm.checkpoint.conversion import convert
from evit_mm.checkpoint.recognition import recognise, variant_name, variant_of
from evit_mm.errors import CheckpointError
from evit_mm.models import EfficientViT, EfficientViTHead, SPOSHead, SPOSNet
from evit_mm.models.variants import resolve_arch
from tests.models.test_spos import CHOICES


@pytest.mark.parametrize('indices', [(0,), (1,), (0, 2)])
def test_a_backbone_is_measured_as_far_as_it_is_built(tiny, indices):
    tiny.update(depths=(2, 1, 3), window_sizes=(5, 4, 3), kernel_sizes=(5, 3, 7), in_channels=4)
    in_channels = tiny.pop('in_channels')
    tiny.update(num_heads=(1, 3, 2))
    state = EfficientViT(tiny, in_channels, indices).state_dict()
    found, wanted = variant_of(state), resolve_arch(tiny)
    built = indices[-1] + 1
    for field in ('embed_dims', 'depths', 'num_heads', 'key_dims', 'window_sizes'):
        whole = getattr(wanted, field)
        assert getattr(found, field) == whole[:built] + whole[built - 1 : built] * (3 - built)
    assert found.kernel_sizes == wanted.kernel_sizes[: max(wanted.num_heads[:built])]
    description = "EfficientViT of another size, EfficientViT with the authors' names"
    assert recognise(state, 'a.pth').description == description


@pytest.mark.parametrize(
    ('change', 'name'),
    [
        ({}, 'm1'),
        ({'window_sizes': (7, 7, 4)}, 'm1'),
        ({'kernel_sizes': (7, 5, 3, 9)}, 'm1'),  # no head uses the fourth
        ({'kernel_sizes': (7, 5, 5)}, None),
        ({'depths': (1, 2, 4)}, None),
        ({'key_dims': (16, 16, 8)}, None),
    ],
)
def test_the_name_does_not_depend_on_what_a_detector_changes(change, name):
    published = dict(
        embed_dims=(128, 144, 192), depths=(1, 2, 3), num_heads=(2, 3, 3), kernel_sizes=(7, 5, 3)
    )
    assert variant_name(resolve_arch({**published, **change})) == name


def test_a_window_of_any_size_is_not_built(tiny):
    state = EfficientViT(tiny, out_indices=(0,)).state_dict()
    biases = next(key for key in state if key.endswith('attention_biases'))
    state[biases] = torch.zeros(2, 32**2)
    assert recognise(state, 'a.pth').family == 'msra'
    state[biases] = torch.zeros(2, 33**2)
    with pytest.raises(CheckpointError, match='window size 33 is larger than 32'):
        recognise(state, 'a.pth')


def test_a_classifier_and_a_detector_are_told_apart(tiny):
    body = EfficientViT(tiny).state_dict()
    head = EfficientViTHead(32, 7).state_dict()
    own = recognise({**body, **head}, 'a.pth').own_names
    assert own == {key: key for key in (*body, *head)}
    detector = {f'backbone.{key}': value for key, value in body.items()}
    detector['bbox_head.conv.weight'] = torch.ones(1)
    found = recognise(detector, 'a.pth')
    assert found.description.startswith('detector with EfficientViT of another size, ')
    assert found.own_names == {f'backbone.{key}': key for key in body}
    with pytest.raises(CheckpointError, match=r'first entries are a, b, c\. Use'):
        recognise(dict.fromkeys('abcd', torch.ones(1)), 'a.pth')


@pytest.mark.parametrize('index', range(5))
def test_sposs_first_stages_are_known_too(index):
    state = SPOSNet(CHOICES[::-1], out_indices=(index,)).state_dict()
    blocks = (4, 8, 16, 20, 20)[index]
    choices = CHOICES[::-1][:blocks] + [0] * (20 - blocks)
    expected = f"SPOS (choices={choices}), SPOS with megvii's names"
    assert recognise(state, 'a.pth').description == expected
    if index == 4:
        whole = {**state, **SPOSHead(9).state_dict()}
        assert recognise(whole, 'a.pth').description == expected
        assert set(whole) - set(convert(whole).state) == {
            key for key in whole if key.startswith(('conv_last.', 'classifier.'))
        }
