"""Exported classifiers predict what mmpretrain's own way through the network predicts."""

import copy
import json
import pickle
import runpy
import shutil
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from evit_mm.deploy.export.evaluation import evaluate
from evit_mm.errors import ConfigError, DataError, EvitError
from evit_mm.runner.build import load_detector
from evit_mm.runner.config import load_config
from tests.conftest import ROOT, randomise
from tests.models.test_classifier import build, draw_images, write_config

pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')
pytest.importorskip('openvino')

import onnx
import onnxruntime

from evit_mm.deploy.export import (
    ClassifierGraph,
    ExportedClassifier,
    ExportedDetector,
    ExportedModel,
    export,
    run,
)
from evit_mm.deploy.export.check import ScoreAgreement, compare_scores, network_inputs
from evit_mm.deploy.export.classification import describe_classifier
from evit_mm.deploy.export.onnx_format import OnnxFormat

CLASSES = ['blue', 'green', 'red']
SMALL = "model['backbone']['arch'].update(depths=(1, 1, 1), num_heads=(1, 1, 2))"


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return draw_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('files')


@pytest.fixture(scope='module')
def model(data, folder):
    """The classifier of the plain weights, whose classes depend on the image."""
    cfg = load_config(write_config(folder, data, SMALL))
    model = randomise(build(cfg), gain=0.9).eval()
    images = [x for x, _ in network_inputs(cfg, model, sorted((data / 'val').rglob('*.png')))]
    with torch.no_grad():
        features = model.extract_feat(torch.cat(images), stage='pre_logits')
        # along the directions in which the images differ most
        _, values, directions = torch.linalg.svd(features - features.mean(0), full_matrices=False)
        spread = values[:3, None] / len(features) ** 0.5
        weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
        weight = weight @ (directions[:3] / spread)
        model.head.l.weight.copy_(weight)
        model.head.l.bias.copy_(-weight @ features.mean(0))
    return model


@pytest.fixture(scope='module')
def trained(model, folder):
    """A config, and a checkpoint with other averaged weights, which the config does not test."""
    averaged = randomise(copy.deepcopy(model), gain=0.3).state_dict()
    plain = {f'module.{name}': x for name, x in model.state_dict().items()}
    content = {
        'state_dict': averaged,
        'ema_state_dict': {'steps': torch.tensor(1), **plain},
        'meta': {'dataset_meta': {'classes': tuple(CLASSES)}},
    }
    torch.save(content, folder / 'weights.pth')
    return str(folder / 'tiny.py'), folder / 'weights.pth'


@pytest.fixture(scope='module')
def written(trained, folder):
    return export(*trained, folder / 'any.onnx')


@pytest.fixture(scope='module')
def derive(trained, written):
    """Return a function that exports from the graph of ``written`` in place of a new one."""

    def copied(self, graph, file, *args, **kwargs):
        shutil.copy(written.file, file)

    def function(out, **kwargs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OnnxFormat, 'write', copied)
            return export(*trained, out, **kwargs)

    return function


@pytest.fixture(scope='module')
def files(trained, written, derive, folder):
    """A file of each format for any batch."""
    return [
        written.file,
        derive(folder / 'any.xml', file_format='openvino').file,
        export(*trained, folder / 'any.pt2', file_format='torch').file,
    ]


def images(batch):
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))


def expected(model, image):
    with torch.inference_mode():
        found = model.predict(image)
    return np.stack([sample.pred_score.numpy() for sample in found])


def with_metadata(file, target, **changes):
    """Copy an ONNX file with other metadata; None removes a key."""
    content = onnx.load(file)
    (entry,) = (x for x in content.metadata_props if x.key == 'evit_mm')
    metadata = {**json.loads(entry.value), **changes}
    entry.value = json.dumps({key: x for key, x in metadata.items() if x is not None})
    onnx.save(content, target)
    return target


@pytest.mark.parametrize('batch', [1, 3])
def test_any_batch_as_in_mmpretrain(model, files, batch):
    image = images(batch)
    truth = expected(model, image)
    assert truth.max() - truth.min() > 0.3
    for file in files:
        (scores,) = ExportedModel(file)(image.numpy())
        assert scores.dtype == np.float32 and scores.shape == (batch, 3)
        np.testing.assert_allclose(scores, truth, atol=1e-5)


def test_what_the_export_says_it_found(written):
    agreement = written.agreement
    assert (agreement.images, agreement.others, written.ap) == (12, 0, {})
    assert 0 < agreement.score_error < 1e-5
    assert str(agreement).startswith('12 images, 0 with another class; largest score difference ')


def test_metadata_is_all_that_a_program_needs(model, files, data):
    for file in files:
        assert ExportedModel(file).metadata == {
            'task': 'classification',
            'classes': CLASSES,
            'reader': [
                {
                    'type': 'LoadImageFromFile',
                    'color_type': 'color',
                    'to_float32': False,
                    'imdecode_backend': 'cv2',
                }
            ],
            'in_channels': 3,
            'static_size': None,
            'mean': [123.675, 116.28, 103.53],
            'std': [58.395, 57.12, 57.375],
            'channels': 'RGB',
            'scale': 72,
            'edge': 'short',
            'interpolation': 'bicubic',
            'backend': 'pillow',
            'crop_size': [64, 64],
            'precision': 'float32',
            'outputs': ['scores'],
        }
    content = onnx.load(files[0]).graph
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*content.input, *content.output)
    }
    assert shapes == {'image': ['batch', 3, 64, 64], 'scores': ['batch', 3]}
    # such a program
    about = ExportedModel(files[0]).metadata
    session = onnxruntime.InferenceSession(files[0])
    cfg = load_config(ROOT / 'configs' / 'evit_m0_imagenet.py')
    cfg.test_dataloader.dataset.pipeline[1].scale = 72
    cfg.test_dataloader.dataset.pipeline[2].crop_size = 64
    sources = sorted((data / 'val').rglob('*.png'))
    for file, (image, _) in zip(sources, network_inputs(cfg, model, sources), strict=True):
        picture = Image.open(file)
        short = min(picture.size)
        sides = [int(about['scale'] * side / short) for side in picture.size]
        picture = picture.resize(sides, Image.Resampling.BICUBIC)
        width, height = about['crop_size']
        left, top = (round((a - b) / 2) for a, b in zip(sides, (width, height), strict=True))
        pixels = np.asarray(picture.crop((left, top, left + width, top + height)))
        values = (pixels - np.float32(about['mean'])) / np.float32(about['std'])
        (scores,) = session.run(None, {'image': values.transpose(2, 0, 1)[None]})
        np.testing.assert_allclose(scores, expected(model, image), atol=1e-5)


def test_evaluation_gives_the_same_scores_and_accuracy(trained, model, files, tmp_path):
    metrics, scores = [], []
    for weights in (trained[1], *files):
        out, pictures = tmp_path / 'out.pkl', tmp_path / 'pictures'
        options = dict(out=str(out), work_dir=str(tmp_path), device='cpu')
        if weights == files[0]:
            options['show_dir'] = str(pictures)
        metrics.append(evaluate(trained[0], weights, **options))
        samples = pickle.loads(out.read_bytes())
        scores.append(np.stack([sample['pred_score'].numpy() for sample in samples]))
        assert [int(x['pred_label']) for x in samples] == scores[-1].argmax(1).tolist()
    assert len(list(pictures.glob('*.png'))) == 12
    assert 0 < metrics[0]['accuracy/top1'] < 100
    assert len(set(scores[0].argmax(1))) == 3
    for other, values in zip(metrics[1:], scores[1:], strict=True):
        assert other == metrics[0]
        np.testing.assert_allclose(values, scores[0], atol=1e-5)
    flipped = [
        evaluate(trained[0], weights, work_dir=str(tmp_path), device='cpu', tta=())
        for weights in (trained[1], files[0])
    ]
    assert flipped[0] == flipped[1]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'model.data_preprocessor.mean': [0, 0, 0]}, r'exported with mean=\[123.675'),
        ({'model.data_preprocessor.to_rgb': False}, 'channels=RGB, but the config has BGR'),
        ({'test_dataloader.dataset.pipeline.1.scale': 80}, 'scale=72, but the config has 80'),
        ({'test_dataloader.dataset.pipeline.1.backend': 'cv2'}, 'backend=pillow'),
        ({'test_dataloader.dataset.pipeline.1.interpolation': 'nearest'}, 'interpolation=bicubic'),
        ({'test_dataloader.dataset.pipeline.2.crop_size': 60}, r'crop_size=\[64, 64\]'),
        ({'test_dataloader.dataset.pipeline.0.color_type': 'grayscale'}, 'reader='),
    ],
)
def test_a_file_is_evaluated_as_it_was_exported(trained, written, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(trained[0], written.file, work_dir=str(tmp_path), cfg_options=options)


def test_files_of_another_model_are_refused(trained, written, tmp_path):
    other = with_metadata(written.file, tmp_path / 'other.onnx', classes=['a', 'b', 'c'])
    with pytest.raises(ConfigError, match=r"other\.onnx' was trained with the classes"):
        evaluate(trained[0], other, work_dir=str(tmp_path))
    # files of older versions have no task
    detector = with_metadata(written.file, tmp_path / 'old.onnx', task=None)
    assert ExportedModel(detector).metadata['task'] == 'detection'
    with pytest.raises(EvitError, match=r"old\.onnx' is for detection, but classification is"):
        evaluate(trained[0], detector, work_dir=str(tmp_path))
    wanted = r"any\.onnx' is for classification, but detection is needed"
    with pytest.raises(EvitError, match=wanted):
        ExportedDetector(str(written.file), {'type': 'DetDataPreprocessor'})
    with pytest.raises(EvitError, match=wanted):
        ExportedModel(written.file).detect(images(1).numpy(), np.array([[64, 64]]))
    with pytest.raises(ConfigError, match='--fuse cannot be used'):
        evaluate(trained[0], written.file, work_dir=str(tmp_path), fuse=True)


def test_a_hook_that_copies_the_model_shares_the_file(written):
    first = ExportedClassifier(str(written.file), {})
    second = copy.deepcopy(first)
    assert second is not first and second.exported is first.exported


def test_a_static_file_takes_one_image(trained, model, folder, tmp_path):
    found = export(*trained, folder / 'one.onnx', dynamic=False, precision='float16')
    assert 0 < found.agreement.score_error < 0.02
    opened = ExportedModel(found.file)
    assert opened.metadata['precision'] == 'float16'
    np.testing.assert_allclose(opened(images(1).numpy())[0], expected(model, images(1)), atol=5e-3)
    with pytest.raises(DataError, match=r"^2 images of .*one\.onnx' .* for one image of"):
        opened(images(2).numpy())
    evaluated = evaluate(trained[0], found.file, work_dir=str(tmp_path), device='cpu')
    assert 'accuracy/top1' in evaluated  # in batches of 12


def test_int8_reports_the_accuracy(trained, model, data, written, folder, monkeypatch, capsys):
    monkeypatch.setattr(run, 'CALIBRATION_IMAGES', 4)
    out = folder / 'int8.onnx'
    monkeypatch.setattr(sys, 'argv', ['export.py', *map(str, trained), '--int8', '-o', str(out)])
    with monkeypatch.context() as patch:
        patch.setattr(
            OnnxFormat, 'write', lambda self, graph, file, *_: shutil.copy(written.file, file)
        )
        runpy.run_path(str(ROOT / 'tools' / 'export.py'), run_name='__main__')
    lines = capsys.readouterr().out.splitlines()
    top1 = evaluate(trained[0], trained[1], work_dir=str(folder), device='cpu')['accuracy/top1']
    assert f'top-1 accuracy PyTorch: {top1:.4f}' in lines
    assert any(line.startswith(f'{out}: 12 images, ') for line in lines)
    assert b'QuantizeLinear' in out.read_bytes()
    opened = ExportedModel(out)
    assert opened.metadata == {**ExportedModel(written.file).metadata, 'precision': 'int8'}
    cfg, right = load_config(trained[0]), 0
    for index, name in enumerate(CLASSES):
        paths = sorted((data / 'val' / name).glob('*.png'))
        for image, _ in network_inputs(cfg, model, paths):
            right += opened(image.numpy())[0].argmax() == index
    assert f'top-1 accuracy int8: {100 * right / 12:.4f}' in lines


def test_int8_without_a_test_set_reports_no_accuracy(derive, data, tmp_path):
    # without the check of the data, mmpretrain raises an OSError
    options = {'test_dataloader.dataset.data_root': 'nowhere', 'default_hooks.data_check': None}
    found = derive(
        tmp_path / 'a.onnx',
        precision='int8',
        check=data / 'val',
        calibration=data / 'val' / 'red',
        cfg_options=options,
    )
    assert found.ap == {} and found.file.is_file()


def test_a_file_that_disagrees_is_not_kept(derive, tmp_path, monkeypatch):
    real = ExportedModel.__call__
    monkeypatch.setattr(ExportedModel, '__call__', lambda *args: [real(*args)[0] * 0.99])
    with pytest.raises(EvitError, match='no file was written: .* disagrees with PyTorch .12 im'):
        derive(tmp_path / 'a.onnx')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('second', 'others', 'error'),
    [
        ([0.7, 0.2, 0.1], 0, 0),
        ([0.7005, 0.1995, 0.1], 0, 5e-4),
        ([0.4, 0.5, 0.1], 1, 0.3),
        ([0.1, 0.2, 0.7], 1, 0.6),
        ([np.nan, 0.2, 0.1], 0, np.nan),
    ],
)
def test_agreement_of_scores(second, others, error):
    first = np.array([0.7, 0.2, 0.1])
    found = compare_scores([(first, first), (first, np.array(second))])
    assert (found.images, found.others) == (2, others)
    assert found.score_error == pytest.approx(error, nan_ok=True)
    assert found.within(1e-3) == (error < 1e-3)


def test_flat_scores_must_have_the_same_best_class():
    """Of a thousand classes, each score can be smaller than the limit."""
    scores = np.full(1000, 1e-3)
    scores[3] *= 1.2
    wrong = compare_scores([(scores, scores[::-1])])
    assert wrong == ScoreAgreement(1, 1, pytest.approx(2e-4)) and not wrong.within()
    scores[996] = scores[3] * 0.95  # nearly a tie
    assert compare_scores([(scores, scores[::-1])]).within()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(nms='none'), r"--no-nms is for detectors, and '.*tiny\.py' is a classifier"),
        (dict(nms='tensorrt'), '--tensorrt-nms is for detectors'),
        (dict(check='nowhere'), "'nowhere' does not exist; give a folder .* --check"),
        (
            dict(cfg_options={'test_dataloader.dataset.data_root': 'nowhere'}),
            "'nowhere/val' does not exist; give a folder .* --check",
        ),
        (
            dict(cfg_options={'test_dataloader.dataset.pipeline.2.crop_size': 80}),
            'short edge of at',
        ),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(trained, tmp_path, arguments, message):
    with pytest.raises(EvitError, match=message):
        export(*trained, tmp_path / 'a.onnx', **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_class_names_needs_them_in_the_config(trained, model, data, tmp_path):
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'bare.pth')
    arguments = trained[0], tmp_path / 'bare.pth', tmp_path / 'a.onnx'
    with pytest.raises(ConfigError, match=r'has the class names; set .*metainfo\.classes'):
        export(*arguments)
    cfg = load_config(trained[0])
    cfg.test_dataloader.dataset.metainfo = dict(classes=('x', 'y', 'z'))
    assert load_detector(cfg, tmp_path / 'bare.pth').dataset_meta['classes'] == ('x', 'y', 'z')
    with pytest.raises(ConfigError, match='was trained with the classes'):
        load_detector(cfg, trained[1])


def pipeline(*steps):
    """Return a config whose test pipeline has some steps."""
    steps = [dict(type='LoadImageFromFile'), *steps, dict(type='mmpretrain.PackInputs')]
    return Config(
        dict(
            default_scope='mmpretrain',
            model={},
            data_preprocessor=dict(mean=[1, 2, 3], std=[4, 5, 6]),
            test_dataloader=dict(dataset=dict(pipeline=steps)),
        )
    )


def test_metadata_of_mmpretrains_defaults():
    cfg = pipeline(
        dict(type='ResizeEdge', scale=256), dict(type='CenterCrop', crop_size=(224, 160))
    )
    found = describe_classifier(cfg, ('a', 'b'))
    assert (found['mean'], found['std'], found['channels']) == ([1, 2, 3], [4, 5, 6], 'BGR')
    assert (found['scale'], found['edge'], found['crop_size']) == (256, 'short', [224, 160])
    assert (found['interpolation'], found['backend']) == ('bilinear', 'cv2')
    cfg.data_preprocessor = dict(type='mmpretrain.ClsDataPreprocessor', to_rgb=True)
    found = describe_classifier(cfg, ())
    assert (found['mean'], found['std'], found['channels']) == ([0] * 3, [1] * 3, 'RGB')
    for pre in (dict(pad_size_divisor=64), dict(type='SelfSupDataPreprocessor')):
        cfg.data_preprocessor = pre
        with pytest.raises(ConfigError, match='needs a ClsDataPreprocessor without padding'):
            describe_classifier(cfg, ())


RESIZE, CROP = dict(type='ResizeEdge', scale=72), dict(type='CenterCrop', crop_size=64)


@pytest.mark.parametrize(
    ('steps', 'message'),
    [
        ([RESIZE], 'a test pipeline of a step that loads'),
        ([CROP], 'where ResizeEdge has a short edge of at least the crop_size$'),
        ([CROP, RESIZE], 'needs a'),
        ([{**RESIZE, 'edge': 'long'}, CROP], 'needs a'),
        ([{**RESIZE, 'scale': 63}, CROP], 'needs a'),
        ([RESIZE, {**CROP, 'auto_pad': True}], 'needs a'),
        ([RESIZE, CROP, dict(type='ColorJitter')], 'crop_size; remove ColorJitter$'),
        ([dict(type='Resize', scale=64)], 'remove Resize$'),
    ],
)
def test_other_pipelines_are_refused(steps, message):
    with pytest.raises(ConfigError, match=message):
        describe_classifier(pipeline(*steps), ())


def test_another_backbone_and_half_precision():
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS

    init_default_scope('mmpretrain')
    cfg = dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=64),
    )
    model = randomise(MODELS.build(cfg), gain=0.9).eval()
    image = images(2)
    truth = expected(model, image)
    with torch.inference_mode():
        (scores,) = ClassifierGraph(run._fused(model))(image)
        np.testing.assert_allclose(scores, truth, atol=1e-6)
        half = ClassifierGraph(model, dtype=torch.bfloat16)
        (scores,) = half(image)
    assert scores.dtype == torch.float32
    assert 0 < np.abs(scores.numpy() - truth).max() < 0.02
    assert next(model.parameters()).dtype == torch.float32
    model.head = MODELS.build(dict(type='MultiLabelLinearClsHead', num_classes=5, in_channels=64))
    with pytest.raises(ConfigError, match=r'^ImageClassifier with MultiLabelLinearClsHead cannot'):
        ClassifierGraph(model)
    with pytest.raises(ConfigError, match=r'^Identity with NoneType cannot'):
        ClassifierGraph(torch.nn.Identity())


def test_executorch(trained, model, folder):
    pytest.importorskip('executorch')
    with pytest.raises(ConfigError, match='executorch accepts one image size; add --static'):
        export(*trained, folder / 'a.pte', file_format='executorch')
    found = export(*trained, folder / 'a.pte', file_format='executorch', dynamic=False)
    assert found.agreement.score_error < 1e-5
    (scores,) = ExportedModel(found.file)(images(1).numpy())
    np.testing.assert_allclose(scores, expected(model, images(1)), atol=1e-5)
