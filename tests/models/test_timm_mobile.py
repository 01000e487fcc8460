"""timm's mobile networks as backbones, against timm's own features and mmdet's MobileNetV2."""

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from mmengine.config import Config
from safetensors.torch import save_file

from evit_mm.checkpoint import read_checkpoint
from evit_mm.errors import CheckpointError
from evit_mm.models import TIMMMobileNet
from tests.conftest import ROOT, randomise, relative_error

CONFIGS = sorted(
    path
    for path in (ROOT / 'configs').glob('retinanet_*_coco.py')
    if Config.fromfile(path).model.backbone.type == 'TIMMMobileNet'
)


def backbone_config(path):
    cfg = Config.fromfile(path).model.backbone
    return {key: cfg[key] for key in ('model_name', 'out_indices')}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_outputs_are_those_of_timms_network(path):
    cfg = backbone_config(path)
    model = randomise(TIMMMobileNet(**cfg).double()).eval()
    full = timm.create_model(cfg['model_name']).double().eval()
    full.load_state_dict(model.state_dict(), strict=False)
    maps = {}
    for index in cfg['out_indices']:
        full.blocks[index].register_forward_hook(
            lambda module, inputs, output, index=index: maps.update({index: output})
        )
    x = torch.randn(1, 3, 75, 96, dtype=torch.float64)
    with torch.no_grad():
        full(x)
        found = model(x)
    for index, output, channels, stride in zip(
        cfg['out_indices'], found, model.out_channels, model.strides, strict=True
    ):
        assert relative_error(output, maps[index]) < 1e-12
        assert output.shape == (1, channels, -(-75 // stride), -(-96 // stride))
    assert model.strides == (8, 16, 32)
    assert model.model_name == cfg['model_name']
    assert len(model.blocks) == cfg['out_indices'][-1] + 1  # nothing that no output needs


def test_mobilenetv2_is_mmdets_with_the_published_tap_points():
    from mmdet.models.backbones import MobileNetV2

    model = randomise(TIMMMobileNet('mobilenetv2_100', (2, 4, 6)).double()).eval()
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
    model = TIMMMobileNet('mobilenetv2_100', (2, 4), init_cfg=init_cfg)
    model.init_weights()
    assert asked == [('timm/mobilenetv2_100.ra_in1k', 'model.safetensors')]
    state = read_checkpoint(weights)
    for name, tensor in model.state_dict().items():
        if not name.endswith('num_batches_tracked'):
            assert torch.equal(tensor, state[name]), name
    with pytest.raises(CheckpointError, match='does not fit TIMMMobileNet'):
        TIMMMobileNet('spnasnet_100', (2, 4), init_cfg=init_cfg).init_weights()


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
    model = TIMMMobileNet('mobilenetv2_100', (2, 4), frozen_stages=1, norm_eval=True).train()
    frozen = {n.split('.')[0] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {'conv_stem', 'bn1', 'blocks'}
    assert all(p.requires_grad for p in model.blocks[1].parameters())
    assert not any(p.requires_grad for p in model.blocks[0].parameters())
    assert not any(m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    for wrong, match in (
        (dict(model_name='nothing'), "has no model 'nothing'"),
        (dict(model_name='resnet18'), "'resnet18' does not consist of .* TIMMBackbone"),
        (dict(out_indices=(7,)), 'out_indices'),
        (dict(frozen_stages=6), 'frozen_stages'),
    ):
        with pytest.raises(ValueError, match=match):
            TIMMMobileNet(**{'model_name': 'mobilenetv2_100', 'out_indices': (2, 4), **wrong})
