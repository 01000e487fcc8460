"""Conversions against stand-ins that are written from the files' descriptions, and timm."""

import json
import os
import subprocess
import sys

import pytest
import safetensors
import timm
import torch
from mmengine.registry import init_default_scope

from evit_mm import checkpoint as ckpt
from evit_mm.checkpoint.conversion import TARGETS, Conversion, convert, convert_file
from evit_mm.errors import CheckpointError
from evit_mm.models import VARIANTS, EfficientViT, EfficientViTHead, SPOSNet
from evit_mm.runner.config import load_config
from evit_mm.runner.weights import read_fitting, read_start
from tests.conftest import ROOT, randomise, relative_error
from tests.models.test_spos import CHOICES, released_listing
from tests.standins import (
    CLASSES,
    detector_file,
    efficientvit,
    imagenet_file,
)


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def released_spos():
    state = {name: torch.randn(shape) for name, shape in released_listing().items()}
    return {f'module.{k}': v.abs() + 0.5 if 'var' in k else v for k, v in state.items()}


def test_the_stand_in_is_the_published_network():
    names = efficientvit('m4')
    assert len(names) == 699
    parameters = [k for k in names if not k.endswith(('mean', 'var', 'tracked', 'idxs'))]
    assert round(sum(torch.Size(names[k]).numel() for k in parameters) / 1e6, 3) == 8.804


@pytest.mark.parametrize('arch', VARIANTS)
def test_authors_files_go_to_timm_and_back(arch, tmp_path):
    content = imagenet_file(arch)
    there = convert(content, 'timm', 'x.pth')
    theirs = timm.create_model(f'efficientvit_{arch}')
    theirs.load_state_dict(there.state)  # strict
    back = convert({'state_dict': there.state}, 'msra')
    assert_same(back.state, content['model'])  # index buffers too
    assert there.source == f"EfficientViT-{arch.upper()}, EfficientViT with the authors' names"
    assert len(there.dropped) == sum(k.endswith('idxs') for k in content['model'])
    assert len(back.added) == len(there.dropped) and not back.dropped and not back.resized
    assert set(there.renamed) == set(content['model']) - set(there.dropped) - set(there.state)


def test_timm_computes_with_the_converted_file_what_we_do(tmp_path):
    backbone = randomise(EfficientViT('m0', window_sizes=(7, 7, 4))).double().eval()
    head = randomise(EfficientViTHead(192)).double().eval()
    state = {**backbone.float().state_dict(), **head.float().state_dict()}
    torch.save({'model': state}, tmp_path / 'ours.pth')
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        expected = head.double()(backbone.double()(x))
        for name in ('theirs.safetensors', 'theirs.bin', 'theirs.pth'):
            convert_file(tmp_path / 'ours.pth', tmp_path / name, 'timm')
            theirs = timm.create_model('efficientvit_m0', checkpoint_path=str(tmp_path / name))
            assert relative_error(theirs.double().eval()(x), expected) < 1e-12


@pytest.mark.parametrize('suffix', ['.safetensors', '.bin'])
@pytest.mark.parametrize('arch', ['m0', 'm5'])
def test_timms_files_load_as_they_are(arch, suffix, tmp_path):
    theirs = randomise(timm.create_model(f'efficientvit_{arch}', num_classes=10))
    path = tmp_path / f'model{suffix}'
    if suffix == '.bin':
        torch.save(theirs.state_dict(), path)
    else:
        safetensors.torch.save_file(theirs.state_dict(), path)
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(path)}
    ours = EfficientViT(arch, window_sizes=(7, 7, 4), init_cfg=init_cfg)
    ours.init_weights()
    back = convert(ours.state_dict(), 'timm').state
    own = {k: v for k, v in theirs.state_dict().items() if not k.startswith('head.')}
    counters = {k: own[k] for k in own if k.endswith('num_batches_tracked')}
    assert_same({**back, **counters}, own)
    EfficientViT(arch, init_cfg=init_cfg).init_weights()  # as a detector has it, windows of 7


@pytest.mark.parametrize('to', TARGETS)
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_every_kind_loads_into_the_backbone_from_both_formats(to, suffix, tmp_path):
    content = imagenet_file('m0')
    torch.save(content, tmp_path / 'in.pth')
    target = tmp_path / f'out{suffix}'
    made = convert_file(tmp_path / 'in.pth', target, to)
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(target)}
    found = EfficientViT('m0', init_cfg=init_cfg)
    found.init_weights()
    expected = EfficientViT('m0', init_cfg={**init_cfg, 'checkpoint': str(tmp_path / 'in.pth')})
    expected.init_weights()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    read = ckpt.tensors_of(ckpt.read_checkpoint(target))
    assert_same(read, made.state)
    assert len(made.resized) == (3 if to == 'detector' else 0)  # the blocks of the last stage


def test_own_training_files_are_stripped_to_weights(tmp_path):
    """EMA: mmengine saves the averaged weights as state_dict and the plain ones beside."""
    body = efficientvit('m0', windows=(7, 7, 7), num_classes=None).tensors()
    averaged = {f'backbone.{k}': v for k, v in body.items() if not k.endswith('idxs')}
    averaged['neck.lateral_convs.0.conv.weight'] = torch.ones(2)
    plain = {f'module.{k}': torch.zeros_like(v) for k, v in averaged.items()}
    meta = {'epoch': 3, 'seed': 1, 'cfg': 'x = 1\n', 'dataset_meta': {'classes': ('a', 'b')}}
    training = {
        'state_dict': averaged,
        'ema_state_dict': {**plain, 'steps': torch.tensor(9)},
        'optimizer': {'state': {}, 'param_groups': [{'lr': 0.1}]},
        'message_hub': {},
        'meta': meta,
    }
    torch.save(training, tmp_path / 'epoch_3.pth')
    for name in ('weights.pth', 'weights.safetensors'):
        made = convert_file(tmp_path / 'epoch_3.pth', tmp_path / name)
        assert made.source.endswith(', EMA weights')
        assert made.target == 'detector' and not made.renamed and not made.dropped
        content = ckpt.read_checkpoint(tmp_path / name)
        assert set(content) == {'state_dict', 'meta'}
        assert_same(content['state_dict'], averaged)
        found = ckpt.metadata_of(content)
        assert found == {'dataset_meta': {'classes': ('a', 'b')}, 'cfg': 'x = 1\n'}
        assert 'config' not in content['meta']  # which mmengine would run
        small = (tmp_path / name).stat().st_size
        assert small < 0.6 * (tmp_path / 'epoch_3.pth').stat().st_size
    with safetensors.safe_open(tmp_path / 'weights.safetensors', 'pt') as file:
        assert json.loads(file.metadata()['evit_mm'])['dataset_meta'] == {'classes': ['a', 'b']}


@pytest.fixture(scope='module', params=['retinanet', 'mask_rcnn'])
def authors_detector(request, tmp_path_factory):
    content = detector_file(request.param)
    path = tmp_path_factory.mktemp('authors') / f'{request.param}_efficientvit_m4_fpn_1x_coco.pth'
    torch.save(content, path)
    cfg = load_config(ROOT / 'configs' / f'{request.param}_evit_m4_coco.py')
    cfg.model.backbone.init_cfg = None
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    return content, path, MODELS.build(cfg.model)


def test_authors_detectors_fit_the_configs_name_by_name(authors_detector, tmp_path):
    content, path, model = authors_detector
    made = convert_file(path, tmp_path / 'own.safetensors')
    report = model.load_state_dict(made.state, strict=True)
    assert not report.missing_keys and not report.unexpected_keys
    kept = {k: v for k, v in content['state_dict'].items() if not k.endswith('idxs')}
    assert_same(made.state, kept)
    assert made.meta['dataset_meta'] == {'classes': CLASSES}
    assert made.meta['cfg'] == 'model = dict()'
    # as it is, too: for testing, as a start, and as a backbone
    for source in (path, tmp_path / 'own.safetensors'):
        read = read_fitting(source, model, {'classes': CLASSES})
        model.load_state_dict(read['state_dict'], strict=True)
        start = read_start(str(source), model)['state_dict']
        for name, tensor in kept.items():
            if not name.endswith('num_batches_tracked'):
                assert torch.equal(read['state_dict'][name], tensor), name
                assert torch.equal(start[name], tensor), name
        with pytest.raises(ValueError, match='was trained with the classes'):
            read_fitting(source, model, {'classes': ('a',)})
    head = next(key for key in kept if key.endswith(('retina_reg.bias', 'fc_reg.bias')))
    broken = {**kept, head: torch.full_like(kept[head], float('nan'))}
    torch.save({'state_dict': broken}, tmp_path / 'nan.pth')
    with pytest.raises(CheckpointError, match=f'not finite: {head}'):
        read_start(str(tmp_path / 'nan.pth'), model)
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(path)}
    backbone = EfficientViT('m4', init_cfg=init_cfg)
    backbone.init_weights()
    name = 'blocks3.5.ffn1.m.pw2.c.weight'
    assert torch.equal(backbone.state_dict()[name], kept[f'backbone.{name}'])


def test_a_detector_gives_its_backbone_and_takes_it_back(authors_detector):
    content, path, _ = authors_detector
    before = content['state_dict']
    body = convert(content, 'backbone', 'd.pth')
    assert {k.split('.')[0] for k in body.dropped} >= {'neck'}
    assert set(body.state) == {
        k.removeprefix('backbone.') for k in before if k[:9] == 'backbone.' and k[-4:] != 'idxs'
    }
    back = convert({'state_dict': body.state}, 'detector')
    assert_same(back.state, {f'backbone.{k}': v for k, v in body.state.items()})
    assert_same(back.state, {key: before[key] for key in back.state})
    again = convert(convert(body.state, 'msra').state, 'backbone')
    assert_same(again.state, body.state)


def test_spos_files_convert():
    state = released_spos()
    made = convert({'state_dict': state}, 'backbone', 'spos.pth')
    SPOSNet().load_state_dict(made.state)  # strict
    assert str(CHOICES) in made.source
    assert all(name.split('.')[-3] not in ('features',) for name in made.dropped)
    detector = convert({'state_dict': state}, 'detector')
    assert_same(detector.state, {f'backbone.{k}': v for k, v in made.state.items()})
    for to in ('timm', 'msra'):
        with pytest.raises(CheckpointError, match=f'cannot be converted to {to}'):
            convert({'state_dict': state}, to, 'spos.pth')


def test_mobile_networks_of_timm_convert():
    state = randomise(timm.create_model('mobilenetv2_100')).state_dict()
    made = convert(state, name='mobile.safetensors')
    assert {k.split('.')[0] for k in made.dropped} == {'conv_head', 'bn2', 'classifier'}
    assert_same({**made.state, **{k: state[k] for k in made.dropped}}, state)


def test_classifiers_take_every_kind_that_has_a_head(tmp_path):
    cfg = load_config(ROOT / 'configs' / 'evit_m0_imagenet.py')
    from mmpretrain.registry import MODELS

    init_default_scope('mmpretrain')
    content = imagenet_file('m0')
    torch.save(content, tmp_path / 'authors.pth')
    for to, name in (('timm', 'theirs.safetensors'), ('msra', 'again.safetensors')):
        convert_file(tmp_path / 'authors.pth', tmp_path / name, to)
    for name in ('authors.pth', 'theirs.safetensors', 'again.safetensors'):
        model = MODELS.build(cfg.model)
        model.init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / name)}
        model.init_weights()
        found = convert(model.state_dict(), 'msra').state
        kept = {k: v for k, v in content['model'].items() if 'num_batches' not in k}
        assert_same({key: found[key] for key in kept}, kept)
    odd = {**content['model'], 'blocks1.0.mixer.m.attn.attention_biases': torch.ones(4, 50)}
    torch.save(odd, tmp_path / 'odd.pth')
    model = MODELS.build(cfg.model)
    model.init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'odd.pth')}
    with pytest.raises(CheckpointError, match=r'attention_biases is \(4, 50\)'):
        model.init_weights()


@pytest.mark.parametrize(
    ('to', 'key'), [('msra', 'model'), ('timm', 'state_dict'), ('backbone', 'state_dict')]
)
def test_a_file_has_its_weights_where_its_readers_look(tmp_path, to, key):
    torch.save(imagenet_file('m0'), tmp_path / 'a.pth')
    made = convert_file(tmp_path / 'a.pth', tmp_path / 'b.pth', to)
    written = torch.load(tmp_path / 'b.pth', weights_only=True)
    assert set(written) == {key, 'meta'}
    assert_same(written[key], made.state)


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'module._orig_mod.'])
def test_what_wrappers_put_before_names_is_cut_off(prefix):
    state = imagenet_file('m0')['model']
    wrapped = {prefix + key: value for key, value in state.items()}
    assert_same(convert(wrapped, 'msra').state, state)


def test_own_classifiers_convert(tmp_path):
    content = imagenet_file('m0')['model']
    own = {k if k[:4] == 'head' else f'backbone.{k}': v for k, v in content.items()}
    assert_same(convert({'state_dict': own}, 'msra').state, content)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('blocks1.0.dw0.m.bn.bias'), r'missing: blocks1\.0\.dw0\.m\.bn\.bias$'),
        (lambda s: s.update(extra=torch.ones(1)), r'unexpected: extra$'),
        (
            lambda s: s.update({'head.l.bias': torch.ones(3)}),
            r'shape: head\.l\.bias is \(3,\) in the file, \(1000,\) in the model$',
        ),
    ],
)
def test_what_differs_from_the_network_is_named(change, message):
    state = imagenet_file('m0')['model']
    change(state)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(state, name='odd.pth')
    assert str(caught.value).startswith("'odd.pth' does not fit EfficientViT-M0; ")


def test_another_network_is_not_known():
    state = timm.create_model('resnet18').state_dict()
    with pytest.raises(
        CheckpointError, match=r"unknown kind: .* are conv1\.weight.*\('patch_embed"
    ):
        convert(state, name='resnet18.pth')
    state = imagenet_file('m0')['model']
    with pytest.raises(CheckpointError, match='its shapes match no network'):
        convert({**state, 'patch_embed.0.c.weight': torch.ones(3)})
    timms = {'patch_embed.conv1.conv.weight': torch.ones(1), 'stages.x.blocks.0': torch.ones(1)}
    with pytest.raises(CheckpointError, match='has an entry with an unknown timm name'):
        convert(timms)
    with pytest.raises(ValueError, match='to must be one of backbone'):
        convert(imagenet_file('m0'), 'onnx')


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    source = tmp_path / 'in.pth'
    torch.save(imagenet_file('m0'), source)
    before = source.read_bytes()
    with pytest.raises(CheckpointError, match='is the input file'):
        convert_file(source, source)
    (tmp_path / 'link.pth').symlink_to(source)
    with pytest.raises(CheckpointError, match='is the input file'):
        convert_file(source, tmp_path / 'link.pth')
    assert source.read_bytes() == before
    for name, reason in (
        ('out.onnx', 'must end in'),
        ('folder.pth', 'cannot be written'),
    ):
        (tmp_path / 'folder.pth').mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match=reason):
            convert_file(source, tmp_path / name)

    target = tmp_path / 'out.pth'
    target.write_text('precious')

    def full(handle):
        raise OSError(28, 'No space left on device')

    files = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        for name in (target, tmp_path / 'out.safetensors'):
            with pytest.raises(CheckpointError, match=r'cannot be written.*No space left'):
                convert_file(source, name)
    assert target.read_text() == 'precious'
    assert sorted(tmp_path.iterdir()) == files
    convert_file(source, target)
    assert sorted(tmp_path.iterdir()) == files
    assert 'blocks1.0.dw0.m.c.weight' in ckpt.read_checkpoint(target)['state_dict']


@pytest.mark.parametrize(('number', 'shown'), [(0, 0), (3, 3), (4, 3)])
def test_the_summary_shows_three_entries_of_each_kind(number, shown):
    names = [f'n{i}' for i in range(number)]
    made = Conversion(
        {'w': torch.ones(1), 'v': torch.ones(1)},
        {'dataset_meta': {'classes': CLASSES}} if number else {},
        'here',
        'there',
        renamed={name: f'{name}.x' for name in names},
        dropped=names,
        added=names,
        resized={name: ((2, 16), (2, 49)) for name in names},
    )
    more = ', ...' if number > shown else ''

    def line(change, entry):
        entries = ', '.join(map(entry, names[:shown]))
        return f'{change} {number}: {entries}{more}' if number else f'{change} 0'

    assert made.summary().splitlines() == [
        'here -> there, 2 entries',
        line('renamed', lambda name: f'{name} -> {name}.x'),
        line('dropped', str),
        line('added', str),
        line('resized', lambda name: f'{name} (2, 16) -> (2, 49)'),
        'classes: 80' if number else 'classes: not in the file',
    ]


@pytest.mark.slow
def test_the_tool_prints_what_became_of_the_entries(tmp_path):
    torch.save(imagenet_file('m0'), tmp_path / 'in.pth')

    def tool(*arguments):
        return subprocess.run(
            [sys.executable, str(ROOT / 'tools' / 'convert_checkpoint.py'), *arguments],
            cwd=tmp_path,
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
            capture_output=True,
            text=True,
        )

    done = tool('in.pth', 'out.safetensors', '--to', 'detector')
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert lines[0].startswith("EfficientViT-M0, EfficientViT with the authors' names -> detector")
    assert lines[1].startswith('renamed ') and 'patch_embed.0.c.weight -> backbone.' in lines[1]
    assert lines[2].startswith('dropped 13: blocks1.0.mixer.m.attn.attention_bias_idxs, ')
    assert lines[3] == 'added 0'
    assert lines[4].startswith(
        'resized 3: backbone.blocks3.3.mixer.m.attn.attention_biases (4, 16)'
    )
    assert lines[5] == 'classes: not in the file'
    done = tool('none.pth', 'out.pth')
    assert done.returncode == 1 and "error: checkpoint 'none.pth' does not exist" in done.stderr
