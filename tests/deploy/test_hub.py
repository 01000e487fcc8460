"""A published folder gives the same detections, its figures are measured, and it runs no code."""

import copy
import hashlib
import json
import os
import pickle
import runpy
import shlex
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub import ModelCard, constants
from mmengine.config import Config
from mmengine.registry import init_default_scope

import evit_mm
from evit_mm.checkpoint.sources import local_path
from evit_mm.data import make_shapes
from evit_mm.data.pipeline import PredictionPipeline
from evit_mm.deploy.hub import load_published, publish
from evit_mm.deploy.hub.card import Figures, write_card
from evit_mm.deploy.hub.config_json import NULL, from_json, to_json
from evit_mm.errors import CheckpointError, ConfigError, EvitError
from evit_mm.inference.coco import coco_ids
from evit_mm.runner.build import load_detector
from evit_mm.runner.config import load_config
from evit_mm.runner.test import test as evaluate
from tests.configs.test_drop_in import BLOCKS, FOR_THE_TEST, STRIDES, SURE_OF_NOTHING
from tests.conftest import ROOT, TINY, randomise
from tests.docs.test_pages import blocks
from tests.trainings import save_weights, write_config

FILES = ['README.md', 'config.json', 'model.safetensors']
NOWHERE = {'test_dataloader.dataset.data_root': 'nowhere'}
# a small form of each kind: config, overrides
KINDS = {
    'retinanet': ('retinanet_lite_evit_m0_coco', {'model.test_cfg.score_thr': 0.0}),
    'rtmdet': ('rtmdet_evit_m0_bccd', {'model.test_cfg.score_thr': 0.0}),
    'yolox': ('yolox_evit_m0_bccd', {'model.test_cfg.score_thr': 0.0}),
    'mask_rcnn': (
        'mask_rcnn_evit_m4_coco',
        {
            'model.test_cfg.rcnn.score_thr': 0.0,
            'model.test_cfg.rpn.max_per_img': 20,
            'model.backbone.arch': {'_delete_': True, **TINY},
            'model.neck.in_channels': [16, 24, 32],
            'model.roi_head.bbox_head.fc_out_channels': 32,
            'model.roi_head.mask_head.num_convs': 1,
            'model.test_cfg.rcnn.max_per_img': 10,
        },
    ),
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'set', 1, 4, size=(96, 80), quiet=True)


@pytest.fixture(scope='module')
def model(data, tmp_path_factory):
    """A config of a tiny RetinaNet, and random weights for it."""
    folder = tmp_path_factory.mktemp('model')
    config = write_config(folder, data)
    return config, save_weights(config, folder / 'random.pth')


@pytest.fixture(scope='module')
def published(model, tmp_path_factory):
    """The folder of the tiny RetinaNet."""
    folder = tmp_path_factory.mktemp('published') / 'tiny'
    publish(*model, folder, cfg_options=NOWHERE, device='cpu')
    return folder


@pytest.fixture
def copied(published, tmp_path):
    """A copy of the folder, and a function that changes its config.json by a dotted key."""
    folder = tmp_path / 'copy'
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes((published / name).read_bytes())
    file = folder / 'config.json'

    def change(key, value):
        content = json.loads(file.read_text())
        *path, last = [int(k) if k.isdecimal() else k for k in key.split('.')]
        node = content
        for step in path:
            node = node[step]
        node[last] = value
        file.write_text(json.dumps(content))

    return folder, change


def detections(cfg, weights, image):
    """Return what a config and its weights find in an image."""
    detector = load_detector(cfg, weights).cpu()
    prepared = PredictionPipeline(cfg)(image)
    batch = {key: [prepared[key]] for key in ('inputs', 'data_samples')}
    with torch.no_grad():
        return detector.test_step(batch)[0].pred_instances


@pytest.mark.parametrize('kind', KINDS)
def test_a_published_detector_finds_exactly_the_same(kind, tmp_path):
    from mmdet.registry import MODELS

    config, options = KINDS[kind]
    options = {**options, 'test_evaluator': None, 'scale': (128, 96)}
    init_default_scope('mmdet')
    cfg = load_config(config, options)
    torch.save({'state_dict': randomise(MODELS.build(cfg.model)).state_dict()}, tmp_path / 'a.pth')
    figures = publish(config, tmp_path / 'a.pth', tmp_path / 'out', cfg_options=options).figures
    assert figures is None and sorted(os.listdir(tmp_path / 'out')) == FILES
    image = np.random.default_rng(0).integers(0, 255, (80, 100, 3), np.uint8)
    expected = detections(load_config(config, options), tmp_path / 'a.pth', image)
    found = detections(*load_published(tmp_path / 'out'), image)
    assert len(found) == len(expected) > 0
    assert sorted(found.keys()) == sorted(expected.keys())
    assert ('masks' in found) == (kind == 'mask_rcnn')
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


CASCADE = BLOCKS['Faster R-CNN'].replace(
    'faster_rcnn/faster-rcnn', 'cascade_rcnn/cascade-mask-rcnn'
)


@pytest.mark.slow
@pytest.mark.parametrize('name', [*STRIDES, 'Cascade R-CNN'])
def test_so_does_each_detector_of_the_page_on_them(name, tmp_path, monkeypatch):
    from mmdet.registry import MODELS

    (tmp_path / 'mine.py').write_text(BLOCKS.get(name, CASCADE))
    monkeypatch.chdir(tmp_path)
    options = FOR_THE_TEST.get(name.replace('Cascade', 'Faster'), SURE_OF_NOTHING)
    options = {**options, 'test_dataloader.dataset.pipeline.1.scale': (128, 96)}
    init_default_scope('mmdet')
    cfg = load_config('mine.py', options)
    published = from_json(to_json(cfg, {'classes': range_of_names(80)}, '0'), 'test')
    detector = randomise(MODELS.build(copy.deepcopy(cfg.model)))
    torch.save({'state_dict': detector.state_dict()}, 'a.pth')
    image = np.random.default_rng(0).integers(0, 255, (80, 100, 3), np.uint8)
    expected, found = (detections(config, 'a.pth', image) for config in (cfg, published))
    assert len(found) == len(expected) > 0
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def range_of_names(number):
    return [f'class {i}' for i in range(number)]


def plain(value):
    """Return a config as plain values, with null where prediction uses nothing."""
    if isinstance(value, dict):
        return {k: None if k in NULL else plain(v) for k, v in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, (list, tuple)) else value


def test_each_config_of_a_detector_comes_back_as_it_was():
    configs = sorted((ROOT / 'configs').glob('*.py'))
    detectors = [file for file in configs if not file.stem.endswith('imagenet')]
    assert len(detectors) > 20
    for file in detectors:
        cfg = Config.fromfile(file)
        number = str(cfg.model).count("'num_classes': 80") and 80
        classes = range_of_names(number or len(cfg.classes))
        read = from_json(to_json(cfg, {'classes': classes}, '0'), 'test')
        assert read.model.to_dict() == plain(cfg.model.to_dict()), file.name
        steps = [s for s in cfg.test_dataloader.dataset.pipeline if s.type != 'LoadAnnotations']
        assert read.test_dataloader.dataset.pipeline == plain([s.to_dict() for s in steps])
        assert read.test_dataloader.dataset.metainfo.classes == tuple(classes)


def test_figures_are_those_of_an_evaluation(model, data, tmp_path):
    options = {'work_dir': str(tmp_path / 'logs')}
    folder, figures, reason = publish(*model, tmp_path / 'a: b', 'cc-by-4.0', options, 'cpu')
    expected = evaluate(*model, work_dir=str(tmp_path / 'work'), device='cpu')
    assert dict(figures.metrics) == expected and figures.images == 4 and not reason
    assert 'coco/bbox_mAP' in expected
    card = ModelCard.load(folder / 'README.md')
    given = card.data.to_dict()
    assert (given['license'], given['library_name']) == ('cc-by-4.0', 'evit_mm')
    assert given['pipeline_tag'] == 'object-detection' and 'retinanet' in given['tags']
    assert card.data.model_name == 'a: b'
    shown = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert shown == {k: v for k, v in expected.items() if v >= 0}
    (of,) = {(r.dataset_type, r.dataset_name) for r in card.data.eval_results}
    assert of == ('set', 'set instances_val.json')
    assert 'on 4 images of the data set `set`' in card.text
    assert str(data.parent) not in card.content
    assert "Detector('hf-hub:OWNER/a: b')" in card.text
    classes = load_config(model[0]).test_dataloader.dataset.metainfo.classes
    assert json.dumps(list(classes)) in card.text


@pytest.mark.parametrize('name', ['', 'a b', 'MIT', 'mit\nfoo: bar'])
def test_a_licence_is_an_identifier_of_the_hub(model, tmp_path, name):
    with pytest.raises(ConfigError, match='--license must be an identifier of the hub such as'):
        publish(*model, tmp_path / 'out', name)
    assert not (tmp_path / 'out').exists()


def test_without_the_data_nothing_is_claimed(model, tmp_path, capsys, monkeypatch):
    out = tmp_path / 'my cells'
    command = ['publish.py', *map(str, model), '-o', str(out), '--device', 'cpu']
    option = ['--cfg-options', 'test_dataloader.dataset.data_root=nowhere']
    monkeypatch.setattr(sys, 'argv', [*command, *option])
    runpy.run_path(str(ROOT / 'tools' / 'publish.py'), run_name='__main__')
    printed = capsys.readouterr().out
    assert 'not measured: the data sets of config' in printed and 'does not exist' in printed
    upload = shlex.split(printed.splitlines()[-1].partition('then: ')[2])
    assert upload == ['hf', 'upload', 'OWNER/NAME', str(out)]
    card = ModelCard.load(out / 'README.md')
    assert card.data.eval_results is None and card.data.license == 'unknown'
    assert 'Measured figures\n\nNot measured.' in card.text and '| metric' not in card.text


def test_a_config_without_our_checks_of_the_data_is_published_without_figures(model, tmp_path):
    plain = {'test_dataloader.dataset.type': 'CocoDataset', 'test_evaluator.type': 'CocoMetric'}
    options = {**NOWHERE, **plain, 'default_hooks.data_check': None}
    _, figures, reason = publish(*model, tmp_path / 'out', cfg_options=options, device='cpu')
    assert figures is None and 'No such file' in reason and 'nowhere' in reason
    assert sorted(os.listdir(tmp_path / 'out')) == FILES


@pytest.mark.parametrize('prefix', [None, 'results'])
def test_an_evaluator_that_only_writes_gives_no_figures(model, tmp_path, prefix, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {'test_evaluator.format_only': True, 'test_evaluator.outfile_prefix': prefix}
    _, figures, reason = publish(*model, 'out', cfg_options=options, device='cpu')
    assert figures is None and 'format_only=True only writes' in reason
    assert 'figures\n\nNot measured.' in Path('out/README.md').read_text()
    assert os.listdir() == ['out']


def test_without_objects_there_is_no_empty_table():
    figures = Figures({'coco/bbox_mAP': -1.0, 'coco/bbox_mAP_50': float('nan')}, 'set', '', 4)
    card = write_card('name', 'what', ['a'], figures, 'unknown', [], {})
    assert 'figures\n\nNot measured.' in card and 'metric' not in card


def test_normalisation_beside_the_model_is_published(model, published):
    cfg = load_config(model[0])
    cfg.data_preprocessor = cfg.model.pop('data_preprocessor')
    text = to_json(cfg, dict(cfg.test_dataloader.dataset.metainfo), '0')
    assert json.loads(text)['model'] == json.loads((published / 'config.json').read_text())['model']


def test_averaged_weights_are_published_as_a_test_uses_them(model, tmp_path):
    content = torch.load(model[1], weights_only=True)
    others = {f'module.{name}': 0.5 * x for name, x in content['state_dict'].items()}
    content['ema_state_dict'] = {'steps': torch.tensor(1), **others}
    torch.save(content, tmp_path / 'averaged.pth')
    options = {**NOWHERE, 'custom_hooks': [{'type': 'EMAHook'}]}
    publish(model[0], tmp_path / 'averaged.pth', tmp_path / 'out', cfg_options=options)
    written = safetensors.torch.load_file(tmp_path / 'out' / 'model.safetensors')
    assert written.keys() == content['state_dict'].keys()
    assert all(torch.equal(written[k], x) for k, x in content['state_dict'].items())


def test_names_and_colours_of_the_classes_are_those_of_the_config(model, published):
    own, (cfg, weights) = load_detector(load_config(model[0]), model[1]), load_published(published)
    detector = load_detector(cfg, weights)
    classes = detector.dataset_meta['classes']
    assert classes == own.dataset_meta['classes']
    colours = detector.dataset_meta['palette']
    assert colours == [tuple(c) for c in own.dataset_meta['palette'][: len(classes)]]
    assert coco_ids(cfg, classes) == ({}, list(range(1, len(classes) + 1)))


def test_a_folder_with_files_and_a_faulty_model_change_nothing(model, tmp_path):
    folder = tmp_path / 'mine'
    folder.mkdir()
    (folder / 'config.json').write_text('mine')
    with pytest.raises(ConfigError, match=r"-o '.*mine' contains 'config.json'; give a new"):
        publish(*model, folder)
    assert (folder / 'config.json').read_text() == 'mine'
    with pytest.raises(ConfigError, match=r"-o: folder '.*json/out' cannot be created"):
        publish(*model, folder / 'config.json' / 'out')
    out = tmp_path / 'out'
    with pytest.raises(ConfigError, match=r"loss_bbox\.type is 'BalancedL1Loss', which is not"):
        publish(*model, out, cfg_options={'model.bbox_head.loss_bbox.type': 'BalancedL1Loss'})
    with pytest.raises(ConfigError, match='is a classifier; only detectors'):
        publish(ROOT / 'configs' / 'evit_m0_imagenet.py', model[1], out)
    cut = tmp_path / 'cut.pth'
    cut.write_bytes(model[1].read_bytes()[:5000])
    with pytest.raises(CheckpointError, match='truncated'):
        publish(model[0], cut, out)
    with pytest.raises(ConfigError, match="--device 'cuda:99' is not available"):
        publish(*model, out, device='cuda:99')
    assert sorted(os.listdir(tmp_path)) == ['cut.pth', 'mine']


def test_what_a_stranger_could_not_read_is_not_published(model):
    cfg = load_config(model[0])
    metainfo = dict(cfg.test_dataloader.dataset.metainfo)
    for key, value, said in (
        ('model.bbox_head.type', 'PAAHead', "model.bbox_head.type is 'PAAHead', which is not on"),
        ('model.backbone.type', 'mmpretrain.ResNet', "model.backbone.type is 'mmpretrain.ResNet'"),
        ('model.test_cfg.score_thr', float('inf'), 'model.test_cfg.score_thr is inf'),
        ('model.test_cfg.score_thr', torch.ones(1), 'score_thr is of the type Tensor'),
        ('default_scope', 'mmyolo', "default_scope is 'mmyolo'; only detectors of mmdet"),
    ):
        changed = copy.deepcopy(cfg)
        changed.merge_from_dict({key: value})
        with pytest.raises(ConfigError, match='cannot be published') as caught:
            to_json(changed, metainfo, '0')
        assert said in str(caught.value)
    changed = copy.deepcopy(cfg)
    changed.model.backbone.arch = {1: 2}
    with pytest.raises(ConfigError, match=r"published: 'model\.backbone\.arch\.1' is not a field"):
        to_json(changed, metainfo, '0')


def test_classes_in_place_of_names_are_written_by_their_names(model):
    from mmdet.models import RetinaNet

    class Own(RetinaNet):
        pass

    cfg = load_config(model[0])
    metainfo = dict(cfg.test_dataloader.dataset.metainfo)
    expected = to_json(cfg, metainfo, '0')
    for kind in (RetinaNet, 'mmdet.RetinaNet'):
        cfg.model.type = kind
        assert to_json(cfg, metainfo, '0') == expected
    cfg.model.type = Own
    with pytest.raises(ConfigError, match='which has no registered name'):
        to_json(cfg, metainfo, '0')


TRACE = 'hub_trace'
MKDIR = {'type': 'os.mkdir', 'path': TRACE}
HOSTILE = {
    'a function': ('model.backbone', MKDIR, r"model.backbone.type is 'os.mkdir', which is not"),
    'a program': ('model.neck.type', 'subprocess.call', "model.neck.type is 'subprocess.call'"),
    'a type that is evaluated': (
        'model.test_cfg.nms.type',
        f'__import__("os").mkdir("{TRACE}")',
        'model.test_cfg.nms.type is',
    ),
    'another operator': ('model.neck.roi_layer', {'type': 'nms'}, 'use one of RoIAlign$'),
    'a step': ('test_pipeline.1', MKDIR, "test_pipeline.1.type is 'os.mkdir'"),
    'imports': ('custom_imports', {'imports': ['os']}, "'custom_imports' is not a field"),
    'a base': ('_base_', './base.py', "'_base_' is not a field"),
    'a scope': ('model._scope_', 'os', "'model._scope_' is not a field"),
    'a scope in a type': ('model.type', 'mmpretrain.RetinaNet', 'model.type is'),
    'weights elsewhere': (
        'model.backbone.init_cfg',
        {'type': 'Pretrained', 'checkpoint': 'http://localhost/a.pth'},
        'model.backbone.init_cfg is not allowed',
    ),
    'old weights elsewhere': ('model.backbone.pretrained', 'a.pth', 'pretrained is not allowed'),
    'a backend': ('test_pipeline.0.backend_args', {'backend': 'lmdb'}, 'backend_args is not allo'),
    'a downloading network': (
        'model.backbone',
        {'type': 'mmpretrain.TIMMBackbone', 'model_name': 'resnet18', 'pretrained': True},
        'model.backbone.type is',
    ),
    'a hub name': (
        'model.backbone',
        {'type': 'TIMMNet', 'model_name': 'hf-hub:a/b', 'out_indices': [1]},
        "model_name is 'hf-hub:a/b'; a string",
    ),
    'a config to run': (
        'model',
        {'type': 'KnowledgeDistillationSingleStageDetector', 'teacher_config': 'teacher.py'},
        'model.type is',
    ),
    'a language model': ('model.neck', {'type': 'BertModel', 'name': 'a/b'}, 'BertModel'),
    'a step with code': ('test_pipeline.1', {'type': 'torchvision/Lambda'}, 'torchvision/Lambda'),
    'an unlisted step': ('test_pipeline.1', {'type': 'Albu', 'transforms': []}, "type is 'Albu'"),
    'a list as type': ('model.backbone.type', ['EfficientViT'], 'model.backbone.type is'),
    'a type of further': ('model.backbone.padding_mode', 'os.mkdir', 'padding_mode is'),
    'a variable': ('model.backbone.arch', '{{ fileDirname }}', 'model.backbone.arch is'),
    'a path as key': ('model.backbone', {'a.b': 1}, 'model.backbone.a.b'),
    'a part as model': ('model.type', 'FPN', "model.type is 'FPN'"),
    'no model': ('model', ['RetinaNet'], 'model.type is'),
    'no step': ('test_pipeline', [], 'test_pipeline must be a list'),
    'a file of names': ('classes', '/etc/passwd', 'classes must be a list of different names'),
    'a file of a name': ('classes', ['a\x1b[2J', 'b', 'c'], 'classes must be a list'),
    'names twice': ('classes', ['a', 'a', 'b'], 'classes must be a list of different names'),
    'too few names': ('classes', ['a'], r'num_classes is \d+, but classes has 1 names'),
    'a file of colours': ('palette', '/etc/passwd', 'palette must be null'),
    'an odd colour': ('palette', [[0, 0, 256]] * 3, 'palette must be null'),
    'an unknown argument': ('model.bbox_head.colour', 1, 'not describe a detector .TypeError'),
    'a negative size': ('model.bbox_head.feat_channels', -1, 'does not describe a detector'),
    'a giant': ('model.bbox_head.feat_channels', 10**7, r'has \d+ values, but the network in'),
    'a later version': ('format_version', 2, 'format_version is 2, and this version of evit_mm'),
}


@pytest.mark.parametrize('case', HOSTILE)
def test_a_hostile_config_is_refused_with_its_field(case, copied, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, change = copied
    key, value, said = HOSTILE[case]
    change(key, value)
    with pytest.raises(EvitError, match=said) as caught:
        load_published(folder)
    assert 'config.json' in str(caught.value)
    assert not Path(TRACE).exists()


def test_the_types_would_run_if_they_were_not_refused(copied, tmp_path, monkeypatch):
    from mmcv.ops import batched_nms
    from mmdet.registry import MODELS

    monkeypatch.chdir(tmp_path)
    MODELS.build(MKDIR)
    Path(TRACE).rmdir()
    boxes, nms = (
        torch.tensor([[0.0, 0.0, 1.0, 1.0]]),
        {'type': HOSTILE['a type that is evaluated'][1]},
    )
    with pytest.raises(TypeError):
        batched_nms(boxes, torch.ones(1), torch.zeros(1), nms)
    Path(TRACE).rmdir()


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('<!doctype html>', 'it is not valid JSON'),
        ('[' * 100_000, 'it is not valid JSON'),
        ('{"format_version": NaN}', 'NaN is not valid JSON'),
        ('{"model_type": "detr"}', "has no 'format_version', so tools/publish.py did not write it"),
        ('{"format_version": 1}', "the field 'evit_mm' is missing"),
        ('{}'.encode('utf-16'), 'it is not valid JSON'),
        (json.dumps({'format_version': 'long' * 1000}), "format_version is 'longlong.{,100}, and"),
    ],
)
def test_other_texts_are_no_configs(text, said, copied):
    folder, _ = copied
    (folder / 'config.json').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=said):
        load_published(folder)


def test_deep_configs_are_refused(copied):
    folder, change = copied
    value = 1
    for _ in range(500):
        value = [value]
    change('model.neck', value)
    with pytest.raises(ConfigError, match=r'model\.neck\.0.* has too many levels'):
        load_published(folder)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (TRACE,)


def test_only_whole_safetensors_of_this_network_are_read(copied, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _ = copied
    file = folder / 'model.safetensors'
    content = file.read_bytes()
    state = safetensors.torch.load(content)  # not from the file, which changes below
    torch.save(state, tmp_path / 'a.pth')
    name = 'bbox_head.retina_cls.weight'
    cases = [
        (content[:-1], 'is truncated or damaged; download it again'),
        (content[:5000], 'is truncated or damaged'),
        ((tmp_path / 'a.pth').read_bytes(), 'is written by torch.save, not a safetensors file'),
        (pickle.dumps(Bomb()), 'not a safetensors file'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'is a Git LFS pointer, not a safetenso'),
        (b'', 'is an empty file, not a safetensors file'),
        (safetensors.torch.save({name: state[name]}), r'but the network in config\.json has'),
    ]
    for bad, said in cases:
        file.write_bytes(bad)
        with pytest.raises(CheckpointError, match=said):
            load_published(folder)
        assert not Path(TRACE).exists()
    renamed = {'other' if key == name else key: x for key, x in state.items()}
    file.write_bytes(safetensors.torch.save(renamed))
    with pytest.raises(CheckpointError, match=f'missing: {name}'):
        load_detector(*load_published(folder))


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_a_missing_file_is_named(name, copied):
    folder, _ = copied
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"'{folder}' has no file {name}; give a folder or"):
        load_published(folder)


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as the download of a folder needs."""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.wfile.write(self.answer())

    def answer(self):
        server, parts = self.server, self.path.partition('?')[0].strip('/').split('/')
        if server.hangs_up:
            self.connection.close()
            return b''
        content, code = None, 'RepoNotFound'
        if parts[:2] == ['api', 'models'] and parts[2:4] == ['me', 'tiny']:
            content = self.api(parts[4], parts[5])
            code = 'RevisionNotFound'
        elif parts[:2] == ['me', 'tiny'] and parts[3] == server.commit:
            content = server.files.get(parts[4])
            server.asked.append(parts[4])
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header('X-Error-Code', code)
        content = content or b''
        self.send_header('Content-Type', 'application/json')
        self.send_header('X-Repo-Commit', server.commit)
        self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        return content

    def api(self, what, revision):
        if revision not in ('main', 'v1', self.server.commit):
            return None
        names = {'id': 'me/tiny', 'sha': self.server.commit, 'siblings': []}
        tree = [
            {'type': 'file', 'path': name, 'size': len(content), 'oid': '0' * 40}
            for name, content in self.server.files.items()
        ]
        return json.dumps(tree if what == 'tree' else names).encode()


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """A stand-in for the hub with the repository me/tiny."""
    found = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    found.asked, found.commit, found.hangs_up = [], 'c0ffee' + '0' * 34, False
    found.handle_error = lambda *_: None
    found.files = {name: (published / name).read_bytes() for name in FILES}
    thread = threading.Thread(target=found.serve_forever, kwargs={'poll_interval': 0.02})
    thread.start()
    url = f'http://127.0.0.1:{found.server_port}'
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
    monkeypatch.setattr(constants, 'ENDPOINT', url)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '*')
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def test_a_repository_gives_the_same_detections(hub, model, monkeypatch):
    image = np.random.default_rng(0).integers(0, 255, (80, 96, 3), np.uint8)
    expected = detections(load_config(model[0]), model[1], image)
    found = detections(*load_published('hf-hub:me/tiny'), image)
    assert len(expected) > 0
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert {*hub.asked} == {'config.json', 'model.safetensors'}
    hub.asked.clear()
    cfg, weights = load_published('hf-hub:me/tiny@v1')
    assert hub.commit in str(weights) and not hub.asked  # the cache has the files of this commit
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    assert load_published('hf-hub:me/tiny')[1] == weights
    assert not hub.asked


def test_the_page_on_publishing(hub, model, tmp_path, monkeypatch):
    """The commands and the snippets of ``docs/hub.md``."""
    page = ROOT / 'docs' / 'hub.md'
    write, upload = (shlex.split(block) for block in blocks(page, 'bash'))
    monkeypatch.chdir(tmp_path)
    place = {'CONFIG': model[0], 'CHECKPOINT': str(model[1])}
    monkeypatch.setattr(sys, 'argv', [place.get(word, word) for word in write[1:]])
    runpy.run_path(str(ROOT / 'tools' / 'publish.py'), run_name='__main__')
    assert upload[:2] == ['hf', 'upload'] and sorted(os.listdir(upload[3])) == FILES
    cv2.imwrite('image.jpg', np.zeros((80, 96, 3), np.uint8))
    short, functions = (
        block.replace(f'hf-hub:{upload[2]}', 'hf-hub:me/tiny') for block in blocks(page, 'python')
    )
    scope = {}
    exec(functions, scope)
    assert type(scope['model']).__name__ == 'RetinaNet'
    if hasattr(evit_mm, 'Detector'):
        exec(short, scope)
    card = (tmp_path / upload[3] / 'README.md').read_text()
    assert short.splitlines()[0] in card and short.splitlines()[-1] in card


def test_what_the_hub_does_not_have_is_one_sentence(hub, monkeypatch):
    for name in ('me/none', 'me/tiny@v2', 'no name'):
        with pytest.raises(
            CheckpointError, match=f"cannot download '{name}' from the Hugging"
        ) as e:
            load_published(f'hf-hub:{name}')
        repository = name.partition('@')[0]
        assert f'run: hf download {repository} --local-dir FOLDER' in str(e.value)
        assert '\n' not in str(e.value)
    hub.hangs_up = True
    for read in (load_published, local_path):
        with pytest.raises(
            CheckpointError, match=r"'me/tiny' from the Hugging Face hub \(Server d"
        ):
            read('hf-hub:me/tiny')
    hub.hangs_up = False
    del hub.files['config.json']
    with pytest.raises(ConfigError, match=r"'hf-hub:me/tiny' has no file config\.json; give"):
        load_published('hf-hub:me/tiny')
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(CheckpointError, match='On a machine with network access'):
        load_published('hf-hub:me/other')
