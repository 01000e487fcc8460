"""Which entries of ``init_cfg`` name weights, and which of them cannot."""

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from evit_mm.errors import ConfigError
from evit_mm.models import EfficientViT, EfficientViTHead, SPOSHead
from evit_mm.models.pretrained import load_checked, split_init_cfg

FILE = {'type': 'Pretrained', 'checkpoint': 'a.pth'}
FILL = {'type': 'Constant', 'layer': 'Linear', 'val': 0.5}


@pytest.mark.parametrize(
    ('init_cfg', 'pretrained', 'others'),
    [
        (FILE, [FILE], []),
        (FILL, [], [FILL]),
        (ConfigDict(FILE), [FILE], []),
        ((FILL, FILE, FILL), [FILE], [FILL, FILL]),
        ([], [], []),
    ],
)
def test_files_are_told_from_other_initialisations(init_cfg, pretrained, others):
    assert split_init_cfg(init_cfg) == (pretrained, others)


@pytest.mark.parametrize(
    ('init_cfg', 'message'),
    [
        ('a.pth', "must be a dict with a 'type', or a list of dicts, got 'a.pth'"),
        ({'checkpoint': 'a.pth'}, r"must be a dict .* got \{'checkpoint': 'a.pth'\}"),
        ([FILL, 'a.pth'], "must be a dict .* got 'a.pth'"),
        ([FILL, {'type': 'Pretrained'}], 'has no checkpoint; add checkpoint=PATH_OR_URL'),
    ],
)
def test_what_names_no_initialisation_is_refused(tiny, init_cfg, message):
    with pytest.raises(ConfigError, match=message):
        split_init_cfg(init_cfg)
    with pytest.raises(ConfigError, match=message):
        EfficientViT(tiny, init_cfg=init_cfg).init_weights()


def test_the_prefix_is_that_of_a_detector_unless_one_is_given(tmp_path):
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    parts = {'backbone': first, 'other': second}
    state = {f'{k}.{name}': v for k, part in parts.items() for name, v in part.state_dict().items()}
    torch.save(state, tmp_path / 'a.pth')
    for prefix, expected in (({}, first), ({'prefix': 'other'}, second)):
        model = nn.Linear(3, 2)
        load_checked(model, str(tmp_path / 'a.pth'), **prefix)
        assert torch.equal(model.weight, expected.weight)


@pytest.mark.parametrize('head', [lambda **kw: EfficientViTHead(8, **kw), SPOSHead])
def test_heads_take_other_initialisations_and_have_imagenets_classes(head):
    model = head(init_cfg=FILL)
    model.init_weights()
    (linear,) = (m for m in model.modules() if isinstance(m, nn.Linear))
    assert linear.out_features == 1000 and (linear.weight == 0.5).all()
