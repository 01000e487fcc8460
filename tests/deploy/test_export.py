"""Exported files detect what mmdet's own way through the network detects."""

import copy
import importlib
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import psutil
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from evit_mm import inference
from evit_mm.data import make_shapes
from evit_mm.deploy.export.evaluation import evaluate
from evit_mm.errors import CheckpointError, ConfigError, DataError, EvitError
from evit_mm.runner.build import build_runner, load_detector
from evit_mm.runner.config import load_config
from tests.conftest import ROOT, randomise
from tests.trainings import write_config

pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')
pytest.importorskip('openvino')
pytest.importorskip('nncf')

import onnx

from evit_mm.deploy.export import DetectorGraph, ExportedDetector, ExportedModel, export, run
from evit_mm.deploy.export.check import Agreement, compare_detections, network_inputs
from evit_mm.deploy.export.files import describe
from evit_mm.deploy.export.formats import FORMATS
from evit_mm.deploy.export.graph import nms_mask
from evit_mm.deploy.export.onnx_format import OnnxFormat, last_nodes
from evit_mm.deploy.export.runtime import to_instances

# a graph for any size costs half a minute at the least, most of it in torch's arithmetic of
# symbolic sizes: one file is written, and the others are made from it or for one size
SMALL = """
model['backbone']['arch'].update(depths=(1, 1, 1), num_heads=(1, 1, 2))
model['backbone'].update(out_indices=(1, 2))
model['neck'].update(in_channels=[24, 32], num_outs=2, num_extra_trans_convs=0)
model['bbox_head'].update(anchor_generator=dict(strides=[32, 64]))
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'set', 16, 4, size=(96, 80), quiet=True)


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    """A config and a checkpoint with weights that give scores of every size."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    folder = tmp_path_factory.mktemp('trained')
    config = write_config(folder, data, SMALL)
    cfg = load_config(config)
    init_default_scope('mmdet')
    model = randomise(MODELS.build(cfg.model), gain=0.7)
    with torch.no_grad():  # scores far apart, and boxes that are not slivers
        model.bbox_head.retina_cls.weight *= 2
        model.bbox_head.retina_reg.weight *= 0.3
    torch.save({'state_dict': model.state_dict()}, folder / 'weights.pth')
    return config, folder / 'weights.pth'


@pytest.fixture(scope='module')
def detector(trained):
    return load_detector(load_config(trained[0]), trained[1]).cpu()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('files')


@pytest.fixture(scope='module')
def written(trained, folder):
    """The one ONNX file for any size, and what its check found."""
    return export(*trained, folder / 'any.onnx')


@pytest.fixture(scope='module')
def derive(trained, written):
    """Return a function that exports from the graph of ``written`` in place of a new one."""

    def copied(self, detector, file, *args, **kwargs):
        shutil.copy(written.file, file)

    def function(out, **kwargs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OnnxFormat, 'write', copied)
            return export(*trained, out, **kwargs)

    return function


@pytest.fixture(scope='module')
def openvino_file(derive, folder):
    return derive(folder / 'any.xml', file_format='openvino')


@pytest.fixture(scope='module')
def static(trained, folder):
    """A file for one size, in float16."""
    return export(*trained, folder / 'one.onnx', dynamic=False, precision='float16')


def images(batch, height, width):
    generator = torch.Generator().manual_seed(height + width)
    return torch.randn(batch, 3, height, width, generator=generator)


def expected(detector, image, size):
    """Detect as mmdet does."""
    sample = DetDataSample(metainfo=dict(img_shape=tuple(size), scale_factor=(1.0, 1.0)))
    with torch.inference_mode():
        return detector.predict(image[None], [sample], rescale=False)[0].pred_instances


@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('size', [(32, 32), (96, 160), (224, 64), (192, 192)])
@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_any_batch_and_size_as_in_mmdet(detector, written, openvino_file, suffix, size, batch):
    image = images(batch, *size)
    # images of a batch are padded by different amounts
    sizes = np.array([[size[0] - 7 * i, size[1] - 11 * i] for i in range(batch)])
    outputs = ExportedModel(written.file.with_suffix(suffix))(image.numpy(), sizes)
    assert [x.shape for x in outputs] == [(batch, 100, 4), (batch, 100), (batch, 100)]
    assert (np.diff(outputs[1]) <= 0).all()
    unused = outputs[1] == 0
    assert unused.any() or size != (32, 32)
    assert (outputs[2][unused] == -1).all() and not outputs[0][unused].any()
    pairs = [
        (expected(detector, image[i], sizes[i]), to_instances([x[i : i + 1] for x in outputs]))
        for i in range(batch)
    ]
    for first, second in pairs:
        assert len(first) == len(second) > 4
    found = compare_detections(pairs, 0.0, 100, 1e-5)
    assert found.unmatched == 0 and found.score_error < 1e-5 and found.iou > 0.999


def test_what_the_export_says_it_found(written, openvino_file):
    for result in (written, openvino_file):
        assert result.file.is_file() and result.ap == {}
        assert result.agreement.images == 4 and result.agreement.detections == 400
        assert result.agreement.unmatched == 0 and result.agreement.score_error < 1e-5
    assert sorted(p.name for p in written.file.parent.glob('any.*')) == [
        'any.bin',
        'any.onnx',
        'any.xml',
    ]
    assert not list(written.file.parent.glob('tmp*'))


READER = {
    'type': 'LoadImageFromFile', 'color_type': 'color', 'to_float32': False,
    'imdecode_backend': 'cv2',
}  # fmt: skip


def test_metadata_is_all_that_a_program_needs(written, openvino_file):
    for file in (written.file, openvino_file.file):
        assert ExportedModel(file).metadata == {
            'classes': ['circle', 'square', 'triangle', 'star', 'cross'],
            'mean': [123.675, 116.28, 103.53],
            'std': [58.395, 57.12, 57.375],
            'channels': 'RGB',
            'scale': [192, 192],
            'keep_ratio': True,
            'pad_size_divisor': 32,
            'pad_value': 0.0,
            'score_thr': 0.0,
            'outputs': ['boxes', 'scores', 'labels'],
            'reader': [READER],
            'in_channels': 3,
            'static_size': None,
            'pad_to': None,
            'pad_pixel': 0.0,
            'task': 'detection',
            'precision': 'float32',
            'nms': None,
        }
    model = onnx.load(written.file)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        'image': ['batch', 3, 'height', 'width'],
        'size': ['batch', 2],
        'boxes': ['batch', 100, 4],
        'scores': ['batch', 100],
        'labels': ['batch', 100],
    }


def test_metadata_of_another_preprocessor(trained):
    cfg = load_config(trained[0])
    cfg.model.data_preprocessor = dict(
        type='DetDataPreprocessor', mean=[1, 2, 3], std=[4, 5, 6], pad_size_divisor=48, pad_value=7
    )
    cfg.test_dataloader.dataset.pipeline[1] = dict(type='Resize', scale=(80, 60))
    found = describe(cfg, ['a'])
    assert (found['channels'], found['mean'], found['std']) == ('BGR', [1, 2, 3], [4, 5, 6])
    assert (found['scale'], found['keep_ratio']) == ([80, 60], False)
    assert (found['pad_size_divisor'], found['pad_value'], found['classes']) == (96, 7.0, ['a'])
    cfg.test_dataloader.dataset.pipeline.insert(2, dict(type='Pad', size_divisor=32))
    with pytest.raises(ConfigError, match='a Pad step with a size or pad_to_square'):
        describe(cfg, ['a'])
    cfg.test_dataloader.dataset.pipeline[2] = dict(type='Pad', size=(96, 64), pad_val=9)
    found = describe(cfg, ['a'])
    assert (found['pad_to'], found['pad_pixel']) == ([96, 64], 9)
    pad = dict(type='Pad', pad_to_square=True, pad_val=dict(img=(1, 2, 3)))
    cfg.test_dataloader.dataset.pipeline[2] = pad
    found = describe(cfg, ['a'])
    assert (found['pad_to'], found['pad_pixel']) == ('square', [1, 2, 3])
    cfg.test_dataloader.dataset.pipeline[2] = dict(type='RandomFlip')
    with pytest.raises(ConfigError, match='remove RandomFlip'):
        describe(cfg, ['a'])
    resize = cfg.test_dataloader.dataset.pipeline[1]
    cfg.test_dataloader.dataset.pipeline[2] = resize  # twice
    with pytest.raises(ConfigError, match='at most once and in this order'):
        describe(cfg, ['a'])
    cfg.test_dataloader.dataset.pipeline[1:3] = [dict(type='Pad', size=(96, 64)), resize]
    with pytest.raises(ConfigError, match='at most once and in this order'):
        describe(cfg, ['a'])
    cfg.test_dataloader.dataset.pipeline[1:3] = [dict(resize, backend='cv2')]
    describe(cfg, ['a'])
    cfg.test_dataloader.dataset.pipeline[1] = dict(resize, backend='pillow')
    with pytest.raises(ConfigError, match='remove backend=pillow of Resize'):
        describe(cfg, ['a'])
    load = dict(type='LoadBands', bands=(3, 2, 1))
    cfg.test_dataloader.dataset.pipeline[:2] = [load, resize]
    assert describe(cfg, ['a'])['reader'] == [{'type': 'LoadBands', 'bands': [3, 2, 1]}]
    cfg.test_dataloader.dataset.pipeline[0] = dict(type='LoadImageFromFile')
    del cfg.test_dataloader.dataset.pipeline[1]
    with pytest.raises(ConfigError, match='Resize has a scale'):
        describe(cfg, ['a'])
    # what mmdet does where the config says nothing
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='mmdet.Resize', scale=128))
    cfg.model.data_preprocessor = dict(type='mmdet.DetDataPreprocessor', rgb_to_bgr=True)
    del cfg.model.test_cfg['score_thr']
    assert describe(cfg, ['b', 'a']) == {
        'classes': ['b', 'a'],
        'mean': [0.0] * 3,
        'std': [1.0] * 3,
        'channels': 'RGB',
        'scale': [128, 128],
        'keep_ratio': False,
        'pad_size_divisor': 32,
        'pad_value': 0.0,
        'score_thr': 0.0,
        'reader': [READER],
        'pad_to': None,
        'pad_pixel': 0.0,
    }
    cfg.model.data_preprocessor.type = 'ImgDataPreprocessor'
    with pytest.raises(ConfigError, match='an export needs a DetDataPreprocessor'):
        describe(cfg, ['a'])


def test_evaluation_gives_the_same_ap(trained, written, openvino_file, tmp_path):
    config, checkpoint = trained
    plain, *others = (
        evaluate(config, weights, work_dir=str(tmp_path), device='cpu')
        for weights in (checkpoint, written.file, openvino_file.file)
    )
    assert plain['coco/bbox_mAP_50'] > 0
    for found in others:
        assert found == pytest.approx(plain, abs=1e-3)
    found = run._average_precisions(config, checkpoint, written.file, None)
    assert found == pytest.approx(dict.fromkeys(('PyTorch', 'int8'), plain['coco/bbox_mAP']))
    # of 125 x 150 pixels, which are padded for the file although the config does not ask for it
    options = {'test_dataloader.dataset.pipeline.1.scale': (150, 150)}
    small = evaluate(config, checkpoint, work_dir=str(tmp_path), device='cpu', cfg_options=options)
    assert small != plain
    options |= {'model.data_preprocessor.pad_size_divisor': 1, 'test_dataloader.batch_size': 2}
    found = evaluate(config, written.file, work_dir=str(tmp_path), cfg_options=options)
    assert found == pytest.approx(small, abs=1e-3)
    with pytest.raises(ConfigError, match=r'--fuse cannot be used with .*any\.onnx'):
        evaluate(config, written.file, work_dir=str(tmp_path), fuse=True, device='cpu')
    classes = {'test_dataloader.dataset.metainfo.classes': ('a', 'b', 'c', 'd', 'e')}
    model = onnx.load(written.file)
    meta = json.loads(model.metadata_props[0].value)
    onnx.helper.set_model_props(model, {'evit_mm': json.dumps({**meta, 'classes': [*'abcde']})})
    onnx.save(model, tmp_path / 'other.onnx')
    with pytest.raises(ConfigError, match='was trained with the classes'):
        evaluate(config, tmp_path / 'other.onnx', work_dir=str(tmp_path), device='cpu')
    with pytest.raises(DataError, match='classes|class'):
        evaluate(config, written.file, work_dir=str(tmp_path), cfg_options=classes)


def test_a_file_for_one_size_takes_no_other(trained, static, tmp_path):
    opened = ExportedModel(static.file)
    assert opened(images(1, 160, 192).numpy(), [[160, 192]])[0].dtype == np.float32
    for batch, height in ((1, 192), (2, 160)):
        with pytest.raises(DataError, match=rf"192x{height} pixels .*one\.onnx' .* of 192x160; "):
            opened(images(batch, height, 192).numpy(), [[height, 192]] * batch)
    options = {'test_dataloader.dataset.pipeline.1.scale': (96, 96)}
    with pytest.raises(DataError, match='with --static for one image of 192x160;'):
        evaluate(trained[0], static.file, work_dir=str(tmp_path), cfg_options=options)


def test_half_on_a_cpu(static, derive, openvino_file, folder):
    """ONNX Runtime computes it, and OpenVINO's file is half as large."""
    weights = onnx.load(static.file).graph.initializer
    assert any(w.data_type == onnx.TensorProto.FLOAT16 for w in weights)
    assert static.agreement.within(0.02, 1 / 50) and static.agreement.detections == 400
    found = derive(folder / 'half.xml', file_format='openvino', precision='float16')
    assert found.agreement.within(0.02, 1 / 50)
    sizes = [p.with_suffix('.bin').stat().st_size for p in (found.file, openvino_file.file)]
    assert sizes[0] < 0.6 * sizes[1]


def test_without_nms_all_boxes_come_out(trained, detector, folder, monkeypatch):
    exported = export(*trained, folder / 'all.onnx', nms='none', dynamic=False)
    assert exported.agreement is None
    opened = ExportedModel(exported.file)
    assert opened.metadata['outputs'] == ['boxes', 'scores']
    image = images(1, 160, 192)
    boxes, scores = opened(image.numpy(), [[150, 190]])
    assert boxes.shape == (1, 9 * (5 * 6 + 3 * 3), 4) and scores.shape[2] == 5
    # mmdet's own anchors, in its order
    head = detector.bbox_head
    with torch.inference_mode():
        logits, deltas = head(detector.extract_feat(image))
        anchors = torch.cat(
            head.prior_generator.grid_priors([x.shape[2:] for x in logits], device='cpu')
        )
        flat = [
            torch.cat([x[0].permute(1, 2, 0).reshape(-1, columns) for x in maps])
            for maps, columns in ((logits, 5), (deltas, 4))
        ]
        decoded = head.bbox_coder.decode(anchors, flat[1], max_shape=(150, 190))
    np.testing.assert_allclose(scores[0], flat[0].sigmoid(), atol=1e-5)
    np.testing.assert_allclose(boxes[0], decoded, atol=1e-2)
    # with NMS outside: what mmdet detects
    outputs = opened.detect(image.numpy(), [[150, 190]])
    pair = expected(detector, image[0], (150, 190)), to_instances(outputs)
    assert compare_detections([pair], 0, 100, 1e-5).within(1e-5)
    # what the check would have said of other boxes and scores, of pixels and shares
    file = folder / 'a.png'
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 255, (150, 190, 3), np.uint8))
    inputs = list(network_inputs(load_config(trained[0]), detector, [file]))
    real = ExportedModel.__call__
    for precision, allowed, too_much in (
        ('float32', (0.1, 5e-4), (0.3, 2e-3)),
        ('float16', (3, 0.01), (5, 0.03)),
    ):
        for off, good in (
            (allowed, True),
            ((too_much[0], 0), False),
            ((-too_much[0], 0), False),
            ((0, too_much[1]), False),
            ((0, float('nan')), False),
        ):
            monkeypatch.setattr(
                ExportedModel,
                '__call__',
                lambda *args, off=off, **inputs: [
                    x + y for x, y in zip(real(*args, **inputs), off, strict=True)
                ],
            )
            metadata = {**opened.metadata, 'precision': precision}
            arguments = detector, exported.file, inputs, metadata
            if good:
                assert run._check(*arguments) is None
            else:
                with pytest.raises(EvitError, match=rf"disagrees with PyTorch on '{file}' \("):
                    run._check(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_int8_reports_what_it_loses(derive, written, openvino_file, folder, suffix, monkeypatch):
    monkeypatch.setattr(run, 'CALIBRATION_IMAGES', 3)
    kind = {'.onnx': 'onnx', '.xml': 'openvino'}[suffix]
    found = derive(folder / f'int8{suffix}', file_format=kind, precision='int8')
    assert set(found.ap) == {'PyTorch', 'int8'} and found.agreement.detections == 400
    opened, exact = (ExportedModel(f) for f in (found.file, written.file.with_suffix(suffix)))
    assert opened.metadata == {**exact.metadata, 'precision': 'int8'}
    image, size = images(2, 96, 160).numpy(), [[96, 160]] * 2  # not what it was calibrated on
    near, far = (model(image, size)[1][0, :3] for model in (opened, exact))
    assert 0 < np.abs(near - far).max() < 0.1
    names = [p.suffix for p in folder.glob('int8.*')]
    assert set(names) >= ({'.xml', '.bin'} if suffix == '.xml' else {'.onnx'})
    text = found.file.read_bytes()
    assert b'QuantizeLinear' in text or b'FakeQuantize' in text


def test_last_nodes_predict():
    """Two branches end in a convolution of their own; the decoding follows."""

    def node(kind, inputs, output):
        return onnx.helper.make_node(kind, inputs, [output], name=output)

    nodes = [
        node('Conv', ['image', 'w'], 'stem'),
        node('Relu', ['stem'], 'relu'),
        node('Conv', ['relu', 'w'], 'tower'),
        node('Conv', ['relu', 'w'], 'boxes'),
        node('Conv', ['tower', 'w'], 'scores'),
        node('Sigmoid', ['scores'], 'probabilities'),
        node('Concat', ['probabilities', 'boxes'], 'out'),
    ]
    assert sorted(last_nodes(nodes, ['Conv'])) == ['boxes', 'scores']
    # a second stage cuts features out at the boxes
    nodes += [
        node('TopK', ['probabilities', 'k'], 'places'),
        node('Gather', ['boxes', 'places'], 'rois'),
        node('RoiAlign', ['tower', 'rois', 'rows'], 'parts'),
        node('Conv', ['parts', 'w'], 'hidden'),
        node('Conv', ['hidden', 'w'], 'masks'),
    ]
    assert sorted(last_nodes(nodes, ['Conv'])) == ['boxes', 'masks', 'scores']
    # scores that are multiplied into features are no predictions
    nodes += [
        node('Mul', ['parts', 'probabilities'], 'product'),
        node('Conv', ['product', 'w'], 'more'),
    ]
    assert sorted(last_nodes(nodes, ['Conv'])) == ['boxes', 'masks', 'more']


def test_int8_without_annotations_reports_no_ap(derive, written, data, tmp_path):
    cfg = {'test_evaluator.ann_file': 'nowhere.json', 'test_dataloader.dataset.ann_file': 'no.json'}
    found = derive(
        tmp_path / 'a.onnx', precision='int8', calibration=str(data / 'val'), cfg_options=cfg
    )
    assert found.ap == {} and found.file.is_file()


def naive_nms(boxes, scores, threshold, most):
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if scores[i] == 0 or len(kept) == most:
            continue
        clear = True
        for j in kept:
            sides = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
            inside = np.prod(sides.clip(0))
            areas = [np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (i, j)]
            clear &= inside <= threshold * (sum(areas) - inside)
        if clear:
            kept.append(i)
    return [float(i in kept) for i in range(len(scores))]


@pytest.mark.parametrize('most', [5, 100])
def test_nms_mask_is_the_naive_loop(most):
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (2, 80, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (2, 80, 2))], 2)
    scores = rng.permuted(np.linspace(0, 1, 80)[None].repeat(2, 0), axis=1)
    scores[:, :20] = 0
    found = nms_mask(torch.from_numpy(boxes), torch.from_numpy(scores), 0.5, most)
    wanted = [naive_nms(b, s, 0.5, most) for b, s in zip(boxes, scores, strict=True)]
    assert found.tolist() == wanted and 5 <= sum(wanted[0]) < 60


def detections(*rows):
    rows = torch.tensor(rows, dtype=torch.float32).view(-1, 6)
    return InstanceData(bboxes=rows[:, :4], scores=rows[:, 4], labels=rows[:, 5].long())


A, B = (0, 0, 100, 100), (200, 0, 300, 100)


@pytest.mark.parametrize(
    ('first', 'second', 'unmatched'),
    [
        ([(*A, 0.9, 1), (*B, 0.5, 0)], [(*B, 0.5, 0), (*A, 0.9, 1)], 0),
        ([(*A, 0.9, 1)], [], 1),
        ([], [(*A, 0.9, 1)], 1),
        ([(*A, 0.9, 1)], [(*A, 0.9, 0)], 2),  # another class
        ([(*A, 0.9, 1)], [(*B, 0.9, 1)], 2),
        ([(*A, 0.9, 1)], [(0, 0, float('nan'), 100, 0.9, 1)], 2),
        ([(*A, 0.9, 1), (*B, 0.3004, 1)], [(*A, 0.9, 1)], 0),  # at the threshold
        ([(*A, 0.9, 1), (*B, 0.302, 1)], [(*A, 0.9, 1)], 1),
        # three are reported at most: the last may be another
        ([(*A, 0.9, 1), (*A, 0.8, 0), (*B, 0.5, 1)], [(*A, 0.9, 1), (*A, 0.8, 0), (*B, 0.5, 0)], 0),
        ([(*A, 0.9, 1), (*B, 0.8, 0), (*B, 0.5, 1)], [(*A, 0.9, 1), (*A, 0.8, 0), (*B, 0.5, 1)], 2),
        ([], [], 0),
        ([(*A, 0.9, 1), (*A, 0.8, 1)], [(*A, 0.9, 1)], 1),  # each is matched once
        ([(*A, 0.9, 1)], [(0, 0, 100, 98.5, 0.9, 1)], 2),  # an IoU of 0.985
    ],
)
def test_agreement_counts_what_one_side_alone_has(first, second, unmatched):
    found = compare_detections([(detections(*first), detections(*second))], 0.3, most=3)
    assert (found.images, found.detections, found.unmatched) == (1, len(first), unmatched)
    assert found.within() == (unmatched == 0)


def test_agreement_measures_scores_and_boxes():
    pair = detections((*A, 0.9, 1)), detections((0, 0, 100, 99.5, 0.905, 1))
    found = compare_detections([pair, pair], 0.3, most=100)
    assert found.score_error == pytest.approx(0.005) and found.iou == pytest.approx(0.995)
    assert not found.within() and found.within(0.02) and found.images == 2
    assert '2 images, 2 detections, 0 found by only one side' in str(found)
    assert Agreement(1, 400, 2, 0, 1).within() and not Agreement(1, 400, 3, 0, 1).within()


def test_a_file_that_disagrees_is_not_kept(derive, trained, tmp_path, monkeypatch):
    real = run.ExportedModel.__call__

    def faulty(model, image, size):
        boxes, scores, labels = real(model, image, size)
        return boxes, scores * 0.99, labels

    monkeypatch.setattr(run.ExportedModel, '__call__', faulty)
    for kind, name in (('onnx', 'a.onnx'), ('openvino', 'a.xml')):
        with pytest.raises(EvitError, match='no file was written: .* disagrees with PyTorch'):
            derive(tmp_path / name, file_format=kind)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('precision', 'lost', 'lower', 'good'),
    [
        # of 400 detections, one in 200 may be lost, or in 50, or in 20
        ('float32', 2, 5e-4, True),
        ('float32', 3, 0, False),
        ('float32', 0, 2e-3, False),
        ('float16', 8, 0.01, True),
        ('float16', 9, 0, False),
        ('float16', 0, 0.03, False),
        ('bfloat16', 20, 0.04, True),
        ('bfloat16', 21, 0, False),
        ('bfloat16', 0, 0.06, False),
    ],
)
def test_how_much_a_file_may_differ(
    trained, detector, data, written, monkeypatch, precision, lost, lower, good
):
    real, lose = ExportedModel.__call__, [lost // 4 + (i < lost % 4) for i in range(4)]

    def faulty(model, image, size):
        boxes, scores, labels = real(model, image, size)
        scores = scores - np.float32(lower)
        scores[0, : lose.pop()] = 0
        return boxes, scores, labels

    monkeypatch.setattr(ExportedModel, '__call__', faulty)
    files = sorted((data / 'val').glob('*.jpg'))
    inputs = list(network_inputs(load_config(trained[0]), detector, files))
    metadata = {**ExportedModel(written.file).metadata, 'precision': precision}
    arguments = detector, written.file, inputs, metadata
    if good:
        assert run._check(*arguments).unmatched == lost
    else:
        fix = 'choose another --format' if precision == 'float32' else 'use float32'
        with pytest.raises(EvitError, match=f'disagrees with PyTorch .*{fix}'):
            run._check(*arguments)


def test_images_are_read_evenly_from_the_innermost_data_set(trained, detector, data):
    cfg = load_config(trained[0])
    inner = cfg.train_dataloader.dataset
    joined = dict(type='ConcatDataset', datasets=[inner, dict(data_root='nowhere')])
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', dataset=joined)
    found = run._read(cfg, detector, 'train', None, '--calibration', 4)
    names = [sample.img_path for _, sample in found]
    assert names == [str(path) for path in sorted((data / 'train').glob('*.jpg'))[::4]]
    assert run._of_size(found, (160, 192)) == found == run._of_size(found, None)
    assert run._of_size(found, (192, 160)) == []
    assert run._named(*found[0])['size'].tolist() == [[160, 192]]


def test_twenty_images_are_checked_and_padded_as_the_file_needs_it(derive, tmp_path):
    (tmp_path / 'in').mkdir()
    for index in range(40):
        pixels = np.random.default_rng(index).integers(0, 255, (71, 93, 3), np.uint8)
        cv2.imwrite(str(tmp_path / 'in' / f'{index}.png'), pixels)
    options = {'model.data_preprocessor.pad_size_divisor': 1}
    found = derive(tmp_path / 'a.onnx', check=tmp_path / 'in', cfg_options=options)
    assert found.agreement.images == 20 and found.agreement.unmatched == 0


@pytest.mark.parametrize('fast', [True, False])
def test_an_efficientvit_is_fused_and_another_network_is_not(detector, fast):
    other = detector if fast else copy.deepcopy(detector)
    if not fast:
        other.backbone = torch.nn.Identity()
    graph = run.build_graph(other, 'all', torch.float32)
    assert graph.detector is not other and graph.ending == 'all'
    kinds = {type(module).__name__ for module in graph.modules()}
    assert ('FusedWindowAttention' in kinds) == fast


def test_an_error_of_pytorch_is_one_sentence(detector, tmp_path, monkeypatch):
    def fail(program, *args, **kwargs):
        raise torch.onnx.OnnxExporterError('long') from ValueError('first line\nsecond line')

    monkeypatch.setattr(torch.onnx, 'export', fail)
    metadata = {'outputs': ['boxes', 'scores'], 'in_channels': 3}
    with pytest.raises(EvitError, match=r'exported to ONNX \(first line\); try --static'):
        OnnxFormat().write(DetectorGraph(detector), tmp_path / 'a.onnx', metadata, (96, 160))


def test_a_file_runs_on_as_many_threads_as_it_is_told(written):
    process = psutil.Process()
    before, opened = process.num_threads(), []
    for threads, more in ((1, 0), (4, 3)):
        opened.append(ExportedModel(written.file, threads))
        assert process.num_threads() == before + more


def test_a_batch_of_an_exported_detector_keeps_each_images_size_and_scale(written):
    model = ExportedDetector(written.file, dict(type='DetDataPreprocessor'))
    x = images(2, 96, 160)
    sizes, scales = [(90, 150), (70, 160)], [(0.5, 0.25), (2.0, 4.0)]
    samples = [
        DetDataSample(metainfo=dict(img_shape=size, scale_factor=scale))
        for size, scale in zip(sizes, scales, strict=True)
    ]
    found = model(x, samples, 'predict')
    for row, (sample, (across, down)) in enumerate(zip(found, scales, strict=True)):
        outputs = ExportedModel(written.file)(x[row : row + 1].numpy(), [sizes[row]])
        boxes, scores, labels = (part[0] for part in outputs)
        there, instances = scores > 0, sample.pred_instances
        expected = boxes[there] / np.float32([across, down, across, down])
        np.testing.assert_allclose(instances.bboxes, expected, rtol=1e-5)
        assert np.array_equal(instances.scores, scores[there])
        assert np.array_equal(instances.labels, labels[there])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(out='a.pt'), r"-o '.*a\.pt': the file name of --format onnx must end in \.onnx"),
        (dict(out='a.onnx', file_format='tflite'), 'must be one of onnx, openvino, torch'),
        (
            dict(out='a.onnx', precision='bfloat16'),
            'onnx has no bfloat16 .* float32, float16, int8',
        ),
        (dict(out='a.onnx', check='nowhere'), "'nowhere' does not exist; give a folder .* --check"),
        (dict(out='a.onnx', precision='int8', calibration='nowhere'), 'with --calibration DIR'),
        (dict(out='a.onnx', cfg_options={'model.test_cfg.nms.type': 'soft_nms'}), 'type nms'),
        (dict(out='a.onnx', cfg_options={'model.test_cfg.min_bbox_size': 9}), 'set it to 0'),
        (dict(out='a.onnx', cfg_options={'model.test_cfg.nms.class_agnostic': True}), 'type nms'),
        (dict(out='a.onnx', cfg_options={'model.test_cfg.nms_pre': -1}), 'nms_pre=-1'),
        (dict(out='a.onnx', cfg_options={'model.test_cfg.nms_pre': 0}), 'nms_pre=0'),
        (dict(out='a.onnx', cfg_options={'model.test_cfg.max_per_img': -1}), 'max_per_img=-1'),
        (dict(out='a.onnx', cfg_options={'model.test_cfg.min_bbox_size': 1}), 'set it to 0'),
        (dict(out='a.onnx', cfg_options={'modle': 1}), 'unknown key'),
        (
            dict(out='a.onnx', cfg_options={'model.bbox_head.bbox_coder.use_box_type': True}),
            'RetinaNet with SyncedRetinaHead cannot be exported',
        ),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(trained, tmp_path, arguments, message):
    arguments['out'] = tmp_path / arguments['out']
    with pytest.raises(EvitError, match=message):
        export(*trained, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_places_and_unusable_images_are_named(derive, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(EvitError, match='cannot be written'):
        derive(tmp_path / 'file' / 'a.onnx')
    (tmp_path / 'a.onnx').mkdir()
    with pytest.raises(ConfigError, match=r"a\.onnx' is a folder; choose another name"):
        derive(tmp_path / 'a.onnx')
    (tmp_path / 'in').mkdir()
    with pytest.raises(ConfigError, match='no image found in .*--check'):
        derive(tmp_path / 'b.onnx', check=tmp_path / 'in')
    (tmp_path / 'in' / 'a.jpg').write_bytes(b'\xff\xd8\xff\xe0 broken')
    with pytest.raises(DataError, match=r"a\.jpg': the image cannot be decoded"):
        derive(tmp_path / 'b.onnx', check=tmp_path / 'in')
    cv2.imwrite(str(tmp_path / 'in' / 'a.jpg'), np.zeros((2000, 3, 3), np.uint8))
    with pytest.raises(DataError, match='3x2000 pixels are too thin'):
        derive(tmp_path / 'b.onnx', check=tmp_path / 'in')
    # grey, sixteen bits, transparent: as every tool of ours reads them
    cv2.imwrite(str(tmp_path / 'in' / 'a.png'), np.full((50, 90), 30000, np.uint16))
    cv2.imwrite(str(tmp_path / 'in' / 'b.png'), np.full((50, 90, 4), 90, np.uint8))
    (tmp_path / 'in' / 'a.jpg').unlink()
    assert derive(tmp_path / 'b.onnx', check=tmp_path / 'in').agreement.images == 2
    with pytest.raises(ConfigError, match='--calibration is for --int8; add --int8'):
        derive(tmp_path / 'c.onnx', calibration=tmp_path / 'in')
    with pytest.raises(ConfigError, match='no calibration image has the size'):
        options = dict(precision='int8', dynamic=False, calibration=tmp_path / 'in')
        derive(tmp_path / 'c.onnx', **options)


@pytest.mark.parametrize('package', ['onnx', 'onnxscript', 'onnxruntime', 'openvino', 'nncf'])
def test_a_missing_package_is_named(trained, tmp_path, monkeypatch, package):
    real = importlib.import_module

    def without(name, *args):
        if name == package:
            raise ImportError('not here')
        return real(name, *args)

    monkeypatch.setattr(importlib, 'import_module', without)
    kind = 'onnx' if package == 'onnxruntime' else 'openvino'
    out = tmp_path / f'a{FORMATS[kind].suffixes[-1]}'
    with pytest.raises(EvitError, match=rf"package '{package}' cannot .*evit_mm\[export\]"):
        export(*trained, out, file_format=kind, precision='int8')


@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_damaged_and_foreign_files_are_named(written, openvino_file, tmp_path, suffix):
    whole = written.file.with_suffix(suffix)
    content = whole.read_bytes()
    cut = tmp_path / f'cut{suffix}'
    for part in (content[: len(content) // 2], b'', b'not a model'):
        cut.write_bytes(part)
        with pytest.raises(EvitError, match=rf"cut\{suffix}' cannot be opened"):
            ExportedModel(cut)
    shutil.copy(whole, tmp_path / f'lone{suffix}')
    if suffix == '.xml':
        with pytest.raises(EvitError, match='cannot be opened'):
            ExportedModel(tmp_path / 'lone.xml')
    with pytest.raises(EvitError, match='does not exist'):
        ExportedModel(tmp_path / f'none{suffix}')
    (tmp_path / 'a.pth').write_text('')
    with pytest.raises(EvitError, match=r'must end in \.onnx or \.xml or \.pt2'):
        ExportedModel(tmp_path / 'a.pth')


def test_a_file_without_our_metadata_is_named(tmp_path):
    value = onnx.helper.make_tensor_value_info('x', onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node('Identity', ['x'], ['y'])
    result = onnx.helper.make_tensor_value_info('y', onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], 'g', [value], [result])
    opset = [onnx.helper.make_opsetid('', 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.save(model, tmp_path / 'a.onnx')
    with pytest.raises(EvitError, match="has no 'evit_mm' in its metadata"):
        ExportedModel(tmp_path / 'a.onnx')


@pytest.mark.parametrize(
    'changes',
    [
        dict(test_cfg=dict(min_bbox_size=-1)),
        dict(test_cfg=dict(score_thr=0.3)),
        dict(test_cfg=dict(nms_pre=7)),
        dict(test_cfg=dict(nms=dict(iou_threshold=0.2))),
        dict(bbox_coder=dict(clip_border=False)),
        dict(prior_generator=dict(strides=[(32, 24), (64, 48)])),  # across and down
    ],
)
def test_the_graph_follows_the_head(detector, changes):
    other = randomise(copy.deepcopy(detector))
    for part, values in changes.items():
        for name, value in values.items():
            setattr(getattr(other.bbox_head, part), name, value)
    image, size = images(2, 96, 160), torch.tensor([[90.0, 150.0], [96.0, 160.0]])
    with torch.inference_mode():
        boxes, scores, labels = DetectorGraph(other)(image, size)
    for i in range(2):
        there = scores[i] > 0
        truth = expected(other, image[i], size[i].tolist())
        assert 0 < len(truth) == there.sum()
        torch.testing.assert_close(scores[i][there], truth.scores, atol=1e-6, rtol=0)
        torch.testing.assert_close(boxes[i][there], truth.bboxes, atol=1e-3, rtol=0)
        assert torch.equal(labels[i][there], truth.labels)


def test_a_file_without_nms_needs_none_of_its_options(trained, folder):
    options = {'model.test_cfg.nms.type': 'soft_nms', 'model.test_cfg.max_per_img': -1}
    file = export(
        *trained, folder / 'soft.onnx', nms='none', dynamic=False, cfg_options=options
    ).file
    opened = ExportedModel(file)
    assert opened.metadata['nms'] is None
    with pytest.raises(EvitError, match=r"soft\.onnx' has all boxes and no options for NMS"):
        opened.detect(images(1, 160, 192).numpy(), [[160, 192]])


def test_without_nms_its_options_do_not_matter(detector):
    other = copy.deepcopy(detector)
    other.bbox_head.test_cfg.update(nms=dict(type='soft_nms'), nms_pre=-1)
    with torch.inference_mode():
        boxes, scores = DetectorGraph(other, 'all')(images(1, 64, 64), torch.tensor([[64.0, 64.0]]))
    assert boxes.shape == (1, 9 * (2 * 2 + 1), 4) and scores.shape == (1, 45, 5)


@pytest.fixture(scope='module')
def torch_file(trained, folder):
    return export(*trained, folder / 'any.pt2', file_format='torch')


@pytest.mark.parametrize(('batch', 'size'), [(1, (32, 32)), (3, (96, 160)), (1, (480, 512))])
def test_a_torch_program_takes_any_batch_and_size(detector, torch_file, batch, size):
    assert torch_file.agreement.detections == 400 and torch_file.agreement.within(1e-5)
    image = images(batch, *size)
    outputs = ExportedModel(torch_file.file).detect(image.numpy(), [size] * batch)
    for i in range(batch):
        found = to_instances([x[i : i + 1] for x in outputs])
        agreement = compare_detections([(expected(detector, image[i], size), found)], 0, 100, 1e-5)
        assert agreement.detections > 4 and agreement.unmatched == 0
        assert agreement.score_error < 1e-5


def test_a_torch_program_runs_without_this_package(torch_file, tmp_path):
    program = f"""
import json, sys, torch
extra = {{'evit_mm': ''}}
model = torch.export.load({str(torch_file.file)!r}, extra_files=extra).module(check_guards=False)
boxes, scores, labels = model(torch.rand(1, 3, 64, 96), torch.tensor([[64.0, 96.0]]))
assert boxes.shape[2] == 4 and scores.shape == labels.shape
assert json.loads(extra['evit_mm'])['nms'] == {{'iou_threshold': 0.5, 'max_per_img': 100}}
assert not {{'evit_mm', 'mmdet', 'mmengine', 'torchvision'}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, '-I', '-c', program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert b'test_export0' not in torch_file.file.read_bytes()  # no path of this machine


def change(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


EVAL = '__import__("os").system("false")'
HOSTILE = {
    'models/model.json': [
        lambda text: re.sub(r'"expr_str": ".*?"', f'"expr_str": {json.dumps(EVAL)}', text),
        lambda text: change(text, '"torch.ops.aten.conv2d.default"', '"torch.os.system"'),
        lambda text: change(text, '"torch.ops.aten.conv2d.default"', '"_operator.call"'),
        lambda text: change(
            text, '"torch.ops.aten.conv2d.default"', '"torch.ops.aten.from_file.default"'
        ),
        lambda text: change(text, 'builtins.tuple', 'os.system'),
        lambda text: change(
            text, r'\"type\": \"builtins.tuple\"', r'\"type\":\"collections.defaultdict\"'
        ),
        lambda text: change(text, r'\"context\": \"[]\"', r'\"context\": \"[{}]\"'),
    ],
    'data/weights/model_weights_config.json': [
        lambda text: change(text, '"use_pickle": false', '"use_pickle": true')
    ],
    'data/sample_inputs/model.pt': [lambda text: 'pickle'],
    'data/aotinductor/model/a.so': [lambda text: 'library'],
    'data/constants/opaque_obj_0': [lambda text: 'pickle'],
}


@pytest.mark.parametrize(
    ('member', 'edit'), [(name, edit) for name, edits in HOSTILE.items() for edit in edits]
)
def test_a_torch_program_of_a_stranger_is_not_loaded(
    torch_file, tmp_path, monkeypatch, member, edit
):
    """torch.export.load would evaluate, unpickle or import these."""
    bad = tmp_path / 'bad.pt2'
    with zipfile.ZipFile(torch_file.file) as old, zipfile.ZipFile(bad, 'w') as new:
        entries = {name: old.read(name) for name in old.namelist()}
        root = old.namelist()[0].split('/')[0]
        name = f'{root}/{member}'
        entries[name] = edit(entries.get(name, b'').decode()).encode()
        for key, content in entries.items():
            new.writestr(key, content)
    monkeypatch.setattr(torch.export, 'load', lambda *args, **kwargs: pytest.fail('was loaded'))
    with pytest.raises(EvitError, match=r"bad\.pt2' contains .* could run code"):
        ExportedModel(bad)


def test_entries_that_only_torch_finds_are_not_loaded(torch_file, tmp_path, monkeypatch):
    """torch goes to the stored place of the directory, and Python to the end of the file."""
    good = torch_file.file.read_bytes()
    evil = io.BytesIO(good)
    with zipfile.ZipFile(evil, 'a') as archive:
        archive.writestr('a/data/sample_inputs/evil.pt', 'pickle')
    (tmp_path / 'two.pt2').write_bytes(evil.getvalue() + good)
    load, loaded = torch.export.load, []

    def watched(archive, **kwargs):
        loaded.append(archive.getvalue())
        return load(archive, **kwargs)

    monkeypatch.setattr(torch.export, 'load', watched)
    ExportedModel(tmp_path / 'two.pt2')
    assert b'evil.pt' not in loaded[0] and len(loaded[0]) < 1.1 * len(good)


def test_a_file_for_tensorrt_ends_with_its_operator(trained, folder):
    file = export(*trained, folder / 'trt.onnx', nms='tensorrt', dynamic=False).file
    model = onnx.load(file)
    node = model.graph.node[-1]
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert node.op_type == 'EfficientNMS_TRT' and list(node.input) == ['boxes', 'scores']
    assert (values['max_output_boxes'], values['background_class']) == (100, -1)
    assert (values['score_threshold'], values['iou_threshold']) == (0, 0.5)
    assert (values['score_activation'], values['box_coding'], values['class_agnostic']) == (0,) * 3
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in model.graph.output
    }
    assert shapes == {
        'num_detections': [1, 1],
        'detection_boxes': [1, 100, 4],
        'detection_scores': [1, 100],
        'detection_classes': [1, 100],
    }
    assert json.loads(model.metadata_props[0].value)['outputs'] == list(shapes)
    with pytest.raises(EvitError, match='cannot be opened .*EfficientNMS_TRT'):
        ExportedModel(file)
    options = {'model.test_cfg.nms.class_agnostic': True}
    with pytest.raises(ConfigError, match='class_agnostic'):
        export(*trained, folder / 'b.onnx', nms='tensorrt', dynamic=False, cfg_options=options)
    with pytest.raises(ConfigError, match='--tensorrt-nms needs --format onnx'):
        export(*trained, folder / 'a.xml', file_format='openvino', nms='tensorrt')


@pytest.fixture(scope='module')
def executorch_file(trained, folder):
    pytest.importorskip('executorch')
    return export(*trained, folder / 'one.pte', file_format='executorch', dynamic=False)


def test_executorch_detects_the_same(trained, detector, executorch_file, folder):
    found = executorch_file
    assert found.agreement.detections == 400 and found.agreement.within()
    opened = ExportedModel(found.file)
    assert opened.metadata['classes'] == ['circle', 'square', 'triangle', 'star', 'cross']
    image = images(1, 160, 192)
    pair = (
        expected(detector, image[0], (150, 190)),
        to_instances(opened.detect(image.numpy(), [[150, 190]])),
    )
    agreement = compare_detections([pair], 0, 100, 1e-5)
    assert agreement.detections == 100 and agreement.within(1e-5)
    with pytest.raises(DataError, match=r"one\.pte' .* of 192x160; export it without"):
        opened(images(1, 192, 192).numpy(), [[192, 192]])
    damaged = folder / 'cut.pte'
    damaged.write_bytes(found.file.read_bytes()[:1000])
    with pytest.raises(EvitError, match=r"cut\.pte' cannot be opened"):
        ExportedModel(damaged)
    with pytest.raises(ConfigError, match='executorch accepts one image size; add --static'):
        export(*trained, folder / 'any.pte', file_format='executorch')


def test_half_leaves_the_detector_as_it_is(detector):
    graph = DetectorGraph(detector, dtype=torch.float16)
    assert next(graph.parameters()).dtype == torch.float16
    assert next(detector.parameters()).dtype == torch.float32


def test_network_inputs_are_those_of_the_evaluation(trained, detector, data):
    """Sizes are padded and pixels normalised as mmdet's own loader does."""
    cfg = load_config(trained[0])
    files = sorted((data / 'val').glob('*.jpg'))
    runner = build_runner(cfg)
    batch = next(iter(runner.test_dataloader))
    batch = detector.data_preprocessor(batch, False)
    found = list(network_inputs(cfg, detector, files))
    for row, (image, sample) in enumerate(found):
        assert torch.equal(image[0], batch['inputs'][row])
        assert sample.img_shape == batch['data_samples'][row].img_shape == (160, 192)


@pytest.mark.parametrize('sides', [(71, 93), (160, 192)])  # the first is resized and padded
@pytest.mark.parametrize('name', ['onnx_numpy.py', 'openvino_numpy.py', 'detect.cpp'])
def test_an_example_finds_what_predict_finds(
    request, trained, detector, written, openvino_file, data, name, sides, tmp_path
):
    pixels = cv2.resize(cv2.imread(str(data / 'val' / '000001.jpg')), (192, 160))
    image = tmp_path / ('image.ppm' if name == 'detect.cpp' else 'image.png')
    cv2.imwrite(str(image), pixels[: sides[0], : sides[1]])
    command = [sys.executable, ROOT / 'examples' / name]
    if name == 'detect.cpp':
        command = [request.getfixturevalue('cpp_example')]
    file = (written if name == 'onnx_numpy.py' else openvino_file).file
    done = subprocess.run([*command, file, image], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = inference.predict(
        trained[1], image, tmp_path / 'out', trained[0], device='cpu'
    ).detections
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == len(results) == 100
    classes = detector.dataset_meta['classes']
    rows = [[*map(float, x[2:]), float(x[1]), classes.index(x[0])] for x in lines]
    truth = []
    for r in results:
        x, y, w, h = r['bbox']
        truth.append([x, y, x + w, y + h, r['score'], classes.index(r['category_name'])])
    np.testing.assert_allclose([r[4] for r in rows], [r[4] for r in truth], atol=1e-3)
    for row in rows[:20]:
        same = [t[:4] for t in truth if t[5] == row[5]]
        assert np.abs(np.array(same) - row[:4]).max(1).min() < 1.0, row


def test_an_exported_file_is_named_where_a_checkpoint_is_needed(trained, written, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"any.onnx' is an ONNX model, not a checkpoint; use it"
    ):
        load_detector(load_config(trained[0]), written.file)
    openvino = tmp_path / 'net.xml'
    openvino.write_text('<?xml version="1.0"?>\n<net name="Model0" version="11">\n</net>')
    with pytest.raises(CheckpointError, match=r"net.xml' is an OpenVINO model, not a checkpoint"):
        load_detector(load_config(trained[0]), openvino)


@pytest.mark.parametrize('exported', ['written', 'openvino_file', 'torch_file', 'executorch_file'])
def test_every_format_detects_as_the_checkpoint_does(request, trained, data, exported):
    file = request.getfixturevalue(exported).file
    images = sorted((data / 'val').glob('*.jpg'))
    expected = inference.Detector(trained[1], trained[0], 'cpu')(images)
    for found, other in zip(inference.Detector(file)(images), expected, strict=True):
        assert found.names == other.names and len(found) > 4
        assert found.scores == pytest.approx(other.scores, abs=1e-4)
        assert found.boxes == pytest.approx(other.boxes, abs=0.05)


def test_a_checkpoint_is_never_overwritten(trained, tmp_path):
    for name, out in (('m.bin', 'm.xml'), ('m.onnx', 'm.onnx')):
        mine = tmp_path / name
        shutil.copy(trained[1], mine)
        kind = 'openvino' if out.endswith('xml') else 'onnx'
        with pytest.raises(ConfigError, match='would overwrite the checkpoint'):
            export(trained[0], mine, tmp_path / out, file_format=kind)
        assert mine.read_bytes() == trained[1].read_bytes()


def test_a_check_that_compares_nothing_is_none(derive, tmp_path):
    options = {'model.test_cfg.score_thr': 1.0}
    with pytest.raises(EvitError, match='detected nothing on 4 images.*score_thr'):
        derive(tmp_path / 'a.onnx', cfg_options=options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'model.data_preprocessor.mean': [0, 0, 0]}, r'exported with mean=\[123.675'),
        ({'model.test_cfg.score_thr': 0.9}, r'score_thr=0.0, but the config has 0.9'),
        ({'model.data_preprocessor.std': [1, 2, 3]}, r'std=\[58.395'),
        ({'model.data_preprocessor.pad_value': 7}, r'pad_value=0.0, but the config has 7'),
        ({'model.data_preprocessor.bgr_to_rgb': False}, 'channels=RGB, but the config has BGR'),
    ],
)
def test_a_file_is_evaluated_as_it_was_exported(trained, written, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(trained[0], written.file, work_dir=str(tmp_path), cfg_options=options)


def test_a_model_that_torch_cannot_trace_is_named(trained, tmp_path, monkeypatch):
    def forward(self, image, size):
        return super(DetectorGraph, self).forward(image[: int(image.sum())])

    monkeypatch.setattr(DetectorGraph, 'forward', forward)
    for name, kind in (('a.onnx', 'onnx'), ('a.pt2', 'torch')):
        with pytest.raises(EvitError, match='torch.export cannot export the model .*try --static'):
            export(*trained, tmp_path / name, file_format=kind)
    assert list(tmp_path.iterdir()) == []


def test_calibration_needs_training_data(trained, tmp_path):
    options = {'train_dataloader': None}
    with pytest.raises(ConfigError, match='has no train_dataloader.dataset; .* with --calibration'):
        export(*trained, tmp_path / 'a.onnx', precision='int8', cfg_options=options)


def test_files_may_be_closed_in_any_order(openvino_file):
    """A child's end raises a signal, which killed the process when OpenVINO had two cores."""
    program = f"""
import faulthandler, gc, signal, subprocess
from evit_mm.deploy.export import ExportedModel
faulthandler.enable()
signal.signal(signal.SIGCHLD, lambda *_: None)
first, second = (ExportedModel({str(openvino_file.file)!r}) for _ in range(2))
del first
gc.collect()
del second
gc.collect()
subprocess.run(['true'])
print('alive')
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ['alive']), done.stderr
