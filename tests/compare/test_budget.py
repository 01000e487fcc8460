"""The rows timm:NAME of a comparison, against timm's own description of the network."""

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from evit_mm.compare import Budget, available_models, compare, runs
from evit_mm.compare.published_results import coco_of, label_of
from evit_mm.data import make_shapes
from evit_mm.errors import CheckpointError, ConfigError
from evit_mm.runner.build import init_backbone


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 2, 1, size=(64, 64), quiet=True)


def budget(shapes, **changes):
    return Budget(str(shapes), 1, (64, 64), **changes)


@pytest.mark.parametrize(
    ('name', 'peer'),
    [
        ('starnet_s1', 'mobilenetv2'),
        ('shvit_s1', 'evit_m0'),
    ],
)
def test_a_timm_row_has_the_neck_for_its_strides_and_timms_pixels(shapes, name, peer):
    cfg = budget(shapes).config(f'timm:{name}')
    expected = budget(shapes).config(peer)
    info = timm.create_model(name, features_only=True).feature_info
    assert cfg.model.neck.in_channels == info.channels()[-3:]
    assert {**cfg.model.neck, 'in_channels': 0} == {**expected.model.neck, 'in_channels': 0}
    # nothing else differs
    ours, theirs = cfg.to_dict(), expected.to_dict()
    for config in (ours, theirs):
        del config['model']['neck'], config['model']['backbone']
    assert ours == theirs
    assert cfg.model.backbone == {
        'type': 'TIMMNet',
        'model_name': name,
        'out_indices': (0, 1, 2) if name == 'shvit_s1' else (1, 2, 3),
        'init_cfg': None,
        'norm_eval': False,
    }


def test_weights_and_pixel_statistics_are_timms(shapes):
    from_timm = budget(shapes, pretrained=True).config
    cfg = from_timm('timm:mobilenetv4_conv_small').model
    assert cfg.backbone.init_cfg.checkpoint == 'timm://mobilenetv4_conv_small.e2400_r224_in1k'
    assert cfg.data_preprocessor == budget(shapes).config('evit_m4').model.data_preprocessor
    # these weights have other statistics than ImageNet's
    name = 'mobilenetv4_conv_small.e3600_r256_in1k'
    cfg = from_timm(f'timm:{name}').model
    assert cfg.backbone.init_cfg.checkpoint == f'timm://{name}'
    assert cfg.data_preprocessor.mean == cfg.data_preprocessor.std == [127.5] * 3


@pytest.mark.parametrize('tag', ['', '.e3600_r256_in1k'])
def test_a_timm_row_has_the_maps_of_the_networks_own_config(shapes, tag):
    own = budget(shapes).config('mobilenetv4_small').model
    found = budget(shapes).config(f'timm:mobilenetv4_conv_small{tag}').model
    assert found.neck == own.neck and found.backbone.out_indices == own.backbone.out_indices


def test_weights_elsewhere_have_their_own_address(shapes):
    config = budget(shapes, pretrained=True).config('timm:cspnext_tiny')
    assert config.model.backbone.init_cfg.checkpoint.startswith('hf-hub:munehiro-k/cspnext_tiny')
    for network in ('starnet_s050', 'legacy_seresnet18'):  # no weights, or elsewhere
        assert budget(shapes).config(f'timm:{network}')
        with pytest.raises(ConfigError, match=f"--pretrained: .* no weights of 'timm:{network}'"):
            budget(shapes, pretrained=True).config(f'timm:{network}')


@pytest.mark.parametrize(
    ('name', 'match'),
    [
        (
            'mobilenetv4_conv_smal',
            r"no model 'mobilenetv4_conv_smal'.*did you mean 'mobilenetv4_conv_",
        ),
        ('', "has no model ''"),
        (
            'mobilenetv4_conv_small.in1k',
            "no weights 'in1k' of mobilenetv4_conv_small; choose from .*e2400_r224_in1k",
        ),
        ('starnet_s050.in1k', "no weights 'in1k' of starnet_s050; use starnet_s050"),
        ('vit_tiny_patch16_224', 'because its forward uses cls_token'),
        ('efficientvit_m0.nothing', "no weights 'nothing'"),
        ('levit_128s', 'cannot be used'),
    ],
)
def test_a_network_that_cannot_be_a_row_is_refused_before_any_training(
    shapes, tmp_path, name, match
):
    with pytest.raises(ConfigError, match=f'^--models timm:{name}: .*{match}'):
        compare(budget(shapes), ['evit_m0', f'timm:{name}'], 1, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_weights_that_do_not_fit_are_refused_before_any_training(shapes, tmp_path, monkeypatch):
    file = tmp_path / 'model.safetensors'
    save_file(timm.create_model('starnet_s1').state_dict(), file)
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', lambda *_, **__: str(file))
    monkeypatch.setattr(runs, '_train_all', lambda *_: pytest.fail('a training started'))
    with pytest.raises(CheckpointError, match='does not fit TIMMNet'):
        compare(budget(shapes, pretrained=True), ['timm:starnet_s2'], 1, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    init_backbone(budget(shapes, pretrained=True).config('timm:starnet_s1'))


def test_strides_without_a_neck_are_refused(shapes, monkeypatch):
    monkeypatch.setattr('evit_mm.compare.budget.NECKS', {(16, 32, 64): 'evit_m4'})
    with pytest.raises(ConfigError, match='strides are 8/16/32, but the neck needs 16/32/64; '):
        budget(shapes).config('timm:resnet10t')


def test_recipes_are_for_efficientvit_only(shapes, tmp_path):
    with pytest.raises(ConfigError, match="--recipes needs EfficientViT.* got 'timm:efficientvit"):
        compare(budget(shapes), ['timm:efficientvit_m0'], 1, tmp_path, recipes=['paper'])


def test_a_timm_row_does_not_change_the_random_state(shapes):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    budget(shapes).config('timm:shvit_s1')
    assert torch.equal(torch.rand(1), expected)


def test_work_dirs_and_labels_of_timm_rows(shapes, tmp_path, monkeypatch):
    folders = []

    def train(run, cfg, device):
        folders.append(run.folder.relative_to(tmp_path).as_posix())
        runs.write_json(run.folder / 'result.json', {'failure': 'not tried'})
        return []

    monkeypatch.setattr(runs, '_train_one', train)
    models = ['timm:shvit_s1', 'timm:mobilenetv2_100', 'evit_m0']
    rows = compare(budget(shapes), models, 2, tmp_path, device='cpu')
    names = ('timm_shvit_s1', 'timm_mobilenetv2_100', 'evit_m0')
    assert folders == [f'runs/{name}_seed{seed}' for seed in range(2) for name in names]
    assert {row.name for row in rows} == set(models)
    assert all(row.params > 1e6 and row.macs > 1e7 for row in rows)
    assert label_of('timm:starnet_s050') == 'starnet_s050 (timm)'
    assert label_of('timm:starnet_s1.in1k') == 'starnet_s1 (timm)'
    assert label_of('timm:mobilenetv2_100.ra_in1k') == 'MobileNetV2'
    assert label_of('timm:mobilenetv2_100') == label_of('mobilenetv2') == 'MobileNetV2'
    assert not {name for name in available_models() if name.startswith('timm')}


def test_published_figures_of_timm_rows_are_retinanets():
    assert coco_of('timm:shvit_s4.in1k') == coco_of('timm:shvit_s4') == (38.8,)
    assert coco_of('timm:cpubone_b1_bfrobust') == (39.0,)
    assert coco_of('timm:mobilenetv2_100')[0] == 28.3
    for name in ('timm:repvit_m1_1', 'timm:starnet_s1', 'timm:nothing', 'nothing'):
        assert coco_of(name) == ()
