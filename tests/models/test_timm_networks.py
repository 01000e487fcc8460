"""timm's networks as backbones, against timm's own features and mmdet's MobileNetV2."""

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from mmengine.config import Config
from safetensors.torch import save_file

from evit_mm.checkpoint import read_checkpoint
from evit_mm.errors import CheckpointError
from evit_mm.models import TIMMNet
from tests.conftest import ROOT, randomise, relative_error

CONFIGS = sorted(
    path
    for path in (ROOT / 'configs').glob('retinanet_*_coco.py')
    if Config.fromfile(path).model.backbone.type == 'TIMMNet'
)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_outputs_are_those_of_timms_network(path):
    cfg = Config.fromfile(path).model
    name, indices = cfg.backbone.model_name, cfg.backbone.get('out_indices', (0, 1, 2))
    model = randomise(TIMMNet(name, cfg.backbone.get('out_indices')).double()).eval()
    full = timm.create_model(name).double().eval()
    full.load_state_dict(model.state_dict(), strict=False)
    maps = {}
    stages = full.blocks if hasattr(full, 'blocks') else full.stages
    for index in indices:
        stages[index].register_forward_hook(
            lambda module, inputs, output, index=index: maps.update({index: output})
        )
    x = torch.randn(1, 3, 75, 96, dtype=torch.float64)
    with torch.no_grad():
        full(x)
        found = model(x)
    for index, output, channels, stride in zip(
        indices, found, model.out_channels, model.strides, strict=True
    ):
        assert relative_error(output, maps[index]) < 1e-12
        assert output.shape == (1, channels, -(-75 // stride), -(-96 // stride))
    assert model.strides == ((16, 32, 64) if 'shvit' in name else (8, 16, 32))
    assert list(model.out_channels) == cfg.neck.in_channels
    assert model.model_name == name
    stages = model.blocks if hasattr(model, 'blocks') else model.stages
    assert len(stages) == indices[-1] + 1  # nothing that no output needs


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_parameter_is_frozen_with_its_stage_and_recomputed(path):
    cfg = Config.fromfile(path).model.backbone
    maps = cfg.get('out_indices')
    model = randomise(TIMMNet(cfg.model_name, maps)).train()
    parts = [parameter for part in model.parts() for m in part for parameter in m.parameters()]
    assert len(parts) == len(set(parts)) and set(parts) == set(model.parameters())
    last = model.out_indices[-1] + 1
    assert len(model.parts()) == last + 1
    frozen = TIMMNet(cfg.model_name, maps, frozen_stages=last)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    again = TIMMNet(cfg.model_name, maps, with_cp=True).train()
    again.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 64, 128)
    for network in (model, again):
        sum(out.square().mean() for out in network(x)).backward()
    for (name, ours), theirs in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name


# strides 8, 16, 32; SHViT and EfficientViT have 16, 32, 64
NETWORKS = """
    mobilenetv2_100 mobilenetv3_large_100 spnasnet_100 mixnet_m efficientnet_b0
    mobilenetv4_conv_small mobilenetv4_conv_medium shvit_s1 shvit_s2 shvit_s3 shvit_s4
    repvit_m0_9 repvit_m1_1 starnet_s1 starnet_s2 starnet_s3 starnet_s4
    fasternet_t0 fasternet_t1 fasternet_t2 pvt_v2_b0 swiftformer_xs
    cpubone_nano cpubone_b0_bfrobust cpubone_b1_bfrobust cpubone_b2_bfrobust
    ghostnet_100 repghostnet_100 efficientvit_m0 efficientvit_b0 resnet18 regnety_002 convnext_atto
    edgenext_xx_small mobileone_s0 mobilevit_xxs densenet121 dla34
"""


@pytest.mark.parametrize('name', NETWORKS.split())
def test_features_are_those_of_timm(name):
    model = randomise(TIMMNet(name).double()).eval()
    full = timm.create_model(name, features_only=True)
    strides = full.feature_info.reduction()
    indices = [strides.index(stride) for stride in model.strides]
    assert model.strides in ((8, 16, 32), (16, 32, 64))
    assert model.strides[-1] == max(strides)
    assert model.out_channels == tuple(full.feature_info.channels()[i] for i in indices)
    full = timm.create_model(name).double().eval()
    missing, unexpected = full.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert all(entry.startswith(model.unused) for entry in missing)
    for size in ((128, 192), (97, 131)):
        if name == 'dla34' and size[0] % 32:
            continue  # timm's network fails
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            expected = full.forward_intermediates(x, len(strides), intermediates_only=True)
            found = model(x)
        for index, output in zip(indices, found, strict=True):
            assert relative_error(output, expected[index]) < 1e-12


def test_mobilenetv2_is_mmdets_with_the_published_tap_points():
    from mmdet.models.backbones import MobileNetV2

    model = randomise(TIMMNet('mobilenetv2_100', (2, 4, 6)).double()).eval()
    oracle = MobileNetV2(out_indices=(2, 4, 6)).double()
    oracle.eval()  # which returns None there
    # both list their layers in the order of the forward; mmdet goes on to a last convolution
    tensors = list(model.state_dict().values())
    names = list(oracle.state_dict())[: len(tensors)]
    oracle.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        for found, expected in zip(model(x), oracle(x), strict=True):
            assert relative_error(found, expected) < 1e-12


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """timm's file of a whole classifier."""
    file = tmp_path_factory.mktemp('timm') / 'model.safetensors'
    save_file(randomise(timm.create_model('mobilenetv2_100')).state_dict(), file)
    return file


def test_pretrained_weights_are_loaded_and_checked(weights, monkeypatch):
    asked = []

    def download(repo, name, revision):
        asked.append((repo, name))
        return str(weights)

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
    init_cfg = dict(type='Pretrained', checkpoint='timm://mobilenetv2_100.ra_in1k')
    model = TIMMNet('mobilenetv2_100', (2, 4), init_cfg=init_cfg)
    model.init_weights()
    assert asked == [('timm/mobilenetv2_100.ra_in1k', 'model.safetensors')]
    state = read_checkpoint(weights)
    for name, tensor in model.state_dict().items():
        if not name.endswith('num_batches_tracked'):
            assert torch.equal(tensor, state[name]), name
    with pytest.raises(CheckpointError, match='does not fit TIMMNet'):
        TIMMNet('spnasnet_100', (2, 4), init_cfg=init_cfg).init_weights()


def test_without_network_the_message_says_what_to_fetch(monkeypatch):
    def offline(repo, name, revision):
        raise LocalEntryNotFoundError('cannot find the requested files in the local cache')

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', offline)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint('timm://mixnet_m.ft_in1k')
    message = str(caught.value)
    assert 'https://huggingface.co/timm/mixnet_m.ft_in1k/resolve/main/model.safetensors' in message
    assert 'model.backbone.init_cfg.checkpoint=FILE' in message


def test_a_broken_safetensors_file_is_refused(weights, tmp_path):
    broken = tmp_path / 'broken.safetensors'
    broken.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match='is truncated or not a checkpoint'):
        read_checkpoint(broken)


def test_frozen_stages_norm_eval_and_wrong_arguments():
    model = TIMMNet('mobilenetv2_100', (2, 4), frozen_stages=1, norm_eval=True).train()
    frozen = {n.split('.')[0] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {'conv_stem', 'bn1', 'blocks'}
    assert all(p.requires_grad for p in model.blocks[1].parameters())
    assert not any(p.requires_grad for p in model.blocks[0].parameters())
    assert not any(m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    for wrong, match in (
        (dict(model_name='nothing'), "has no model 'nothing'"),
        (dict(model_name='mobilenetv2_100.no'), "no weights 'no' of mobilenetv2_100; choose from"),
        (dict(model_name='starnet_s050.in1k'), "no weights 'in1k' of starnet_s050; use starnet"),
        (dict(model_name='vit_tiny_patch16_224'), 'its forward uses cls_token, pos_embed outside'),
        (dict(model_name='swin_tiny_patch4_window7_224'), 'fails on an image of .* TIMMBackbone'),
        (dict(model_name='hrnet_w18'), 'its stages do not follow one another'),
        (dict(model_name='convmixer_1024_20_ks9_p14', out_indices=None), 'no stride divides'),
        (dict(out_indices=(7,)), 'out_indices'),
        (dict(frozen_stages=6), 'frozen_stages'),
    ):
        with pytest.raises(ValueError, match=match):
            TIMMNet(**{'model_name': 'mobilenetv2_100', 'out_indices': (2, 4), **wrong})
