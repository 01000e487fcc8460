"""The benchmark measures what it says, and says what it measured. No test asserts a time."""

import importlib
import importlib.metadata
import json
import multiprocessing
import os
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from evit_mm.compare.benchmark import forms, networks, report, run_suite, suites, timing
from evit_mm.compare.benchmark.timing import Row, Setting, ratio_of, time_in_processes
from evit_mm.errors import ConfigError
from evit_mm.models import EfficientViT
from evit_mm.utils.provenance import versions
from tests.conftest import randomise, relative_error


def test_the_ratio_is_taken_round_by_round():
    # both slowed down threefold in the second round: the ratio stays
    rows = [
        Row('a', 'slow', [4.0, 12.0, 4.0], 8.0),
        Row('a', 'fast', [1.0, 3.0, 2.0], 8.0, 'slow'),
        Row('b', 'slow', [1.0]),
        Row('b', 'alone', [1.0], None, 'missing'),
        Row('b', 'fast', [0.5], None, 'slow'),
        Row('b', 'absent', [], None, 'slow', 'no such compiler'),
        Row('machine', 'convolution', [1.0], 16.0),
    ]
    assert ratio_of(rows[1], rows) == (4.0, 3.0, 4.0)
    assert ratio_of(rows[4], rows) == (2.0, 2.0, 2.0)  # of its own group's
    assert ratio_of(rows[0], rows) is ratio_of(rows[3], rows) is None
    text = report.markdown('Title', rows, {'threads': 2}, ['A note.'], 'flop')
    assert '| a | fast | 3 | 2000.0 (1500.0 to 2500.0) | 4.00 (3.00 to 4.00) | 0 | 25% |' in text
    assert '| b | absent | 0 | not run: no such compiler |' in text
    assert 'A note.' in text and 'Measured with threads: 2.' in text
    assert '| images/s |' in report.markdown('', rows, {}, [], 'images')


@pytest.mark.parametrize('name', ['mobilenetv2_035', 'spos', 'efficientvit_m0'])
def test_peers_are_folded_exactly(name):
    if name == 'spos':
        from evit_mm.models import SPOSNet

        model = SPOSNet()
    else:
        timm = pytest.importorskip('timm')
        model = timm.create_model(name, features_only=True)
    model = randomise(model).eval()
    image = torch.randn(2, 3, 64, 64)
    folded = forms.fold_batchnorms(model, image)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    other = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        for found, expected in zip(folded(other), model(other), strict=True):
            assert relative_error(found, expected) < 1e-3


def test_a_batchnorm_elsewhere_stays_and_a_wrong_fold_is_refused(monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))
    model = randomise(model).eval()
    image = torch.randn(1, 3, 8, 8)
    assert isinstance(forms.fold_batchnorms(model, image)[2], nn.BatchNorm2d)
    monkeypatch.setattr(forms, 'fold_conv_bn', lambda conv, bn: conv)  # noqa: ARG005
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))).eval()
    with pytest.raises(RuntimeError, match='gives other outputs'):
        forms.fold_batchnorms(model, image)


def test_other_runtimes_run_the_same_network(tiny):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('openvino')
    pytest.importorskip('onnxscript')
    model = randomise(EfficientViT(arch=tiny)).eval()
    image = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        expected = model(image)
    runtimes = (
        forms.eager(model, image)(),
        forms.onnxruntime(model, image, 1)(),
        list(forms.openvino(model, image, 1)().values()),
    )
    for outputs in runtimes:
        for found, wanted in zip(outputs, expected, strict=True):
            assert relative_error(torch.as_tensor(found), wanted) < 1e-4


def _nothing():
    return lambda: None


def _broken():
    raise RuntimeError('no compiler\nand more')


def _death():
    os._exit(3)


def _mortal():
    calls = iter(range(3))
    return lambda: os._exit(3) if next(calls) == 2 else None


def test_what_cannot_be_built_says_why_and_the_rest_is_timed(monkeypatch):
    builders = {'good': _nothing, 'bad': _broken, 'dead': _death, 'mortal': _mortal}
    monkeypatch.setattr(timing, 'CALLS_OF_A_PROCESS', 1)  # the second call is in a new one
    timed = [(Row('group', name), build) for name, build in builders.items()]
    rows = time_in_processes(timed, rounds=2, warmup=1, threads=1)
    assert [(row.name, len(row.seconds)) for row in rows if row.seconds] == [('good', 2)]
    assert {row.name: row.note for row in rows if row.note} == {
        'bad': 'RuntimeError: no compiler',
        'dead': 'the process died',
        'mortal': 'the process died during the measurement',
    }
    assert not multiprocessing.active_children()


def test_a_suite_writes_its_figures_with_their_circumstances(monkeypatch, tmp_path):
    pytest.importorskip('timm')
    monkeypatch.setattr(suites, 'VARIANTS', ('m0',))
    monkeypatch.setattr(networks, 'SIDE', 64)
    monkeypatch.setattr(networks, 'BATCH', 1)
    threads = torch.get_num_threads()
    rows, text = run_suite('variants', tmp_path, threads=1, rounds=2)
    assert torch.get_num_threads() == threads
    assert [row.name for row in rows] == [*suites.EAGER_FORMS, 'convolution']
    assert (tmp_path / 'variants.md').read_text() == text
    content = json.loads((tmp_path / 'variants.json').read_text())
    assert [len(row['seconds']) for row in content['rows']] == [2] * 6
    about = content['about']
    assert about['threads'] == 1 and about['torch'] == torch.__version__.split('+')[0]
    assert about['command'] == 'python tools/benchmark.py variants --threads 1 --rounds 2'
    assert about['cpu'] and about['date'] and about['command'] in text
    assert (tmp_path / 'variants.png').stat().st_size > 1000


def test_the_paper_s_protocol(monkeypatch, tmp_path):
    pytest.importorskip('timm')
    monkeypatch.setattr(suites, 'VARIANTS', ('m3',))
    monkeypatch.setattr(suites, 'PEERS', ('mobilenetv2',))
    monkeypatch.setattr(networks, 'SIDE', 64)
    monkeypatch.setattr(networks, 'BATCH', 1)

    def broken(*args):
        raise RuntimeError('no compiler\nand more')

    built = {'eager': forms.eager, 'compiled': broken, 'ONNX Runtime': lambda *_: lambda: None}
    monkeypatch.setattr(suites, 'CLASSIFIER_FORMS', built)
    rows, text = run_suite('backbones', tmp_path, rounds=1)
    assert len(rows) == 6 and {row.against for row in rows} == {'MobileNetV2'}
    assert '| compiled | MobileNetV2 | 0 | not run: RuntimeError: no compiler |' in text
    assert 'EfficientViT-M3 over MobileNetV2, eager: here ' in text
    assert 'published 3.0 on an Intel CPU' in text and 'EfficientNet-B0' not in text


def test_operators_need_compiled_ones(monkeypatch, tmp_path):
    pytest.importorskip('mmdet')
    monkeypatch.setitem(sys.modules, 'mmcv._ext', ModuleType('mmcv._ext'))
    with pytest.raises(ConfigError, match='needs an mmcv with compiled operators'):
        run_suite('operators', tmp_path, rounds=1)


@pytest.mark.slow
def test_operators_beside_compiled_ones(monkeypatch, tmp_path):
    """Ours in the place of the compiled ones too: every call must go through."""
    pytest.importorskip('mmdet')
    from evit_mm.ops.operators import OPERATORS

    importlib.import_module('mmcv.ops')
    compiled = ModuleType('mmcv._ext')
    vars(compiled).update(OPERATORS, __file__='mmcv/_ext.so')
    monkeypatch.setitem(sys.modules, 'mmcv._ext', compiled)
    for name, module in sys.modules.items():
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', compiled)
    monkeypatch.setattr('evit_mm.compare.benchmark.operators.REGIONS', 10)
    rows, text = run_suite('operators', tmp_path, rounds=1)
    assert {row.name for row in rows} == {'compiled', 'evit_mm.ops'}
    assert 'RoIAlign maximum, sampling_ratio=0, backward' in text and 'prediction' in text


def test_detection_by_stage(monkeypatch, tmp_path):
    pytest.importorskip('mmdet')
    from evit_mm.compare.benchmark import detection

    small = [('retinanet_lite_evit_m0_coco', (96, 160), batch) for batch in (1, 2)]
    monkeypatch.setattr(detection, 'CASES', small)
    rows, text = run_suite('detection', tmp_path, threads=1, rounds=1)
    stages = {row.name.removesuffix(', mmdet') for row in rows if row.name.endswith(', mmdet')}
    assert {'backbone', 'neck', 'head', 'boxes and NMS', 'decode and resize'} < stages
    assert len(rows) == 7 * 2 + 1 + 2
    assert '1 images, 100 detections, 0 found by only one side' in text
    assert '2 images, 200 detections, 0 found by only one side' in text


def test_training_steps(monkeypatch):
    pytest.importorskip('mmdet')
    pytest.importorskip('timm')
    from evit_mm.compare.benchmark import training

    monkeypatch.setattr(training, 'CASES', [('retinanet_lite_evit_m0_coco', (64, 64), 2)])
    monkeypatch.setattr(training, 'VARIANTS', ('m0',))
    monkeypatch.setattr(networks, 'SIDE', 64)
    monkeypatch.setattr(networks, 'BATCH', 2)
    forms_of_detector = [name for name in training.FORMS if not name.endswith('compiled')]
    chosen = {name: training.FORMS[name] for name in forms_of_detector}
    monkeypatch.setattr(training, 'FORMS', chosen)
    rows, _ = training.measure(Setting(1, 2))
    assert [row.name for row in rows] == [*forms_of_detector, *training.LAYOUTS]
    assert all(len(row.seconds) == 2 for row in rows)
    assert len({row.group for row in rows}) == 2
    kept = {row.name: int(row.note.split()[0]) for row in rows[: len(forms_of_detector)]}
    assert 0 < kept['ours, with_cp'] < kept['ours'] <= kept["timm's backbone"]


@pytest.mark.parametrize(
    ('form', 'channels_last'),
    [('timm, eager', False), ('timm, channels last', True), ('plain', True)]
    + [('plain, contiguous', False), ('fused', True)],
)
def test_forms_are_in_the_layout_of_their_name(form, channels_last):
    pytest.importorskip('timm')
    maps = suites.build_form(form, 'm0', (1, 3, 256, 256), 1)()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert all(x.is_contiguous(memory_format=layout) for x in maps)


def test_an_unknown_suite_and_impossible_numbers(tmp_path):
    with pytest.raises(ConfigError, match="unknown suite 'fast'; choose from forms, "):
        run_suite('fast', tmp_path)
    with pytest.raises(ConfigError, match='must be at least 1, got 0 and 10'):
        run_suite('variants', tmp_path, threads=0)


def test_versions_say_whose_they_are(monkeypatch):
    installed = {'torch': '2.11.0', 'onedl-mmdetection': '3.5.1'}

    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, 'version', version)
    assert versions(['torch', 'mmdet', 'mmcv']) == {
        'torch': '2.11.0',
        'mmdet': '3.5.1 (onedl-mmdetection)',
        'mmcv': 'not installed',
    }
