"""The benchmark measures what it says, and says what it measured. No test asserts a time."""

import importlib
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import re
import sys
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from evit_mm.compare.benchmark import forms, machine, networks, report, run_suite, suites, timing
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


@pytest.mark.parametrize(
    'name', ['mobilenetv2_035', 'spos', 'efficientvit_m0', 'repvit_m0_9', 'shvit_s1']
)
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


def _good():
    assert torch.get_num_threads() == 3 and not torch.backends.cudnn.allow_tf32
    return lambda: None


def _broken():
    raise RuntimeError('no compiler\nand more')


def _death():
    os._exit(3)


def _mortal():
    calls = iter(range(3))
    return lambda: os._exit(3) if next(calls) == 2 else None


def test_what_cannot_be_built_says_why_and_the_rest_is_timed(monkeypatch):
    builders = {'good': _good, 'bad': _broken, 'dead': _death, 'mortal': _mortal}
    monkeypatch.setattr(timing, 'CALLS_OF_A_PROCESS', 2)  # the third call is in a new one
    timed = [(Row('group', name), build) for name, build in builders.items()]
    rows = time_in_processes(timed, rounds=3, warmup=1, threads=3)
    assert [(row.name, len(row.seconds)) for row in rows if row.seconds] == [('good', 3)]
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
    assert all(row.work == 1 for row in rows)
    assert 'published 3.0 on an Intel CPU' in text and 'EfficientNet-B0' not in text


def test_the_second_call_of_each_turn_is_timed_until_the_limit(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: clock[0])

    def calls(first, second):
        turn = itertools.cycle((first, second))
        return lambda: clock.__setitem__(0, clock[0] + next(turn))

    functions = {'a': calls(8.0, 1.0), 'b': calls(16.0, 2.0)}
    assert timing.time_interleaved(functions, 3, 2) == {'a': [1.0] * 3, 'b': [2.0] * 3}
    # a round is 27 seconds; the limit includes the warm-up, and one round is always timed
    for limit, rounds in ((0, 1), (80, 2), (81, 3)):
        found = timing.time_interleaved(functions, 9, 1, limit)
        assert found == {'a': [1.0] * rounds, 'b': [2.0] * rounds}, limit
    counts = [0, 0]
    timing.time_interleaved({0: lambda: counts.__setitem__(0, counts[0] + 1)})
    rows = [Row('', 'x'), Row('', 'y', [5.0])]
    timing.time_rows(
        [(rows[0], calls(8, 1)), (rows[1], lambda: counts.__setitem__(1, counts[1] + 1))], 3
    )
    assert counts == [2 * (20 + 3), 2 * (3 + 1)]
    assert [row.seconds for row in rows] == [[1.0] * 3, [0.0] * 3]


def test_an_error_is_one_short_line():
    assert timing.sentence(ValueError()) == 'ValueError: '
    assert timing.sentence(ValueError('\n ' + 'x' * 200 + '\ny')) == f'ValueError: {"x" * 160}'


def test_rates_and_bars_are_those_of_the_medians(monkeypatch, tmp_path):
    rows = [
        Row('a', 'slow', [0.004, 0.002, 0.006], 16e6),
        Row('a', 'idle', [0.001]),
        Row('b', 'gone', note='no compiler'),
        Row('b', 'fast', [0.001], 4e6, note='8 MiB kept'),
        Row('machine', 'convolution', [0.002], 16e6),
    ]
    flop, images = (report.markdown('', rows, {}, [], unit) for unit in ('flop', 'images'))
    assert '| a | slow | 3 | 4.0 (3.0 to 5.0) | - | 4 | 50% |' in flop
    assert '| a | idle | 1 | 1.0 (1.0 to 1.0) | - | - | - |' in flop
    assert '| b | fast (8 MiB kept) | 1 | 1.0 (1.0 to 1.0) | - | 4 | 50% |' in flop
    assert '| a | slow | 3 | 4.0 (3.0 to 5.0) | - | 4000000000.0 |' in images
    assert '| a | idle | 1 | 1.0 (1.0 to 1.0) | - |\n' in report.markdown('', rows, {}, [], '')
    assert '50%' not in report.markdown('', rows[:4], {}, [], 'flop')
    figures = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *_, **__: figures.append(figure))
    report.write(tmp_path / 'new' / 'x', 'Title', flop, rows, {'cpu': 'any'})
    (axes,) = figures[0].axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([4, 1, 1, 2])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ['a: slow', 'a: idle', 'b: fast', 'machine: convolution']
    assert len({bar.get_facecolor() for bar in axes.patches}) == 3  # one for each group
    (whiskers, *_) = (c for c in axes.collections)
    assert whiskers.get_segments()[0][:, 0] == pytest.approx([3, 5])
    content = json.loads((tmp_path / 'new' / 'x.json').read_text())
    assert content['about'] == {'cpu': 'any'} and content['rows'][0]['seconds'] == rows[0].seconds


def test_the_reference_convolution_has_the_operations_it_is_counted_with():
    call = machine.build_convolution('cpu')
    with FlopCounterMode(display=False) as counter:
        output = call()
    assert counter.get_total_flops() == machine.CONV_FLOP == 2 * 10_000 * 9 * 256 * 256
    assert output.shape[2:] == (100, 100)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert machine.peak_memory(call, 'cpu') is None


def test_tf32_is_set_for_both_and_restored_after_an_error():
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for allowed in (True, False):
        with pytest.raises(KeyError), machine.tf32(allowed):
            assert [backend.allow_tf32 for backend in backends] == [allowed] * 2
            raise KeyError
        assert [backend.allow_tf32 for backend in backends] == before


def test_a_suite_is_measured_with_the_setting_that_it_reports(monkeypatch, tmp_path):
    seen = []

    def measure(setting):
        seen.append((setting, torch.get_num_threads(), torch.backends.cudnn.allow_tf32))
        if setting.rounds == 4:
            raise KeyError
        return [Row('a', 'b', [0.5], 3)], ['A note.']

    monkeypatch.setitem(suites.SUITES, 'mine', suites.Suite('My title', measure, 3, 'images'))
    before = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    rows, text = run_suite('mine', tmp_path)
    assert '# My title' in text and 'A note.' in text and '| 6.0 |' in text
    assert 'device: CPU; ' in text and 'threads: 3; ' in text
    assert 'command: python tools/benchmark.py mine --threads 3 --rounds 10.' in text
    with pytest.raises(KeyError):
        run_suite('mine', tmp_path, 2, 4)
    assert seen == [(Setting(3, 10), 3, False), (Setting(2, 4), 2, False)]
    assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == before


def test_each_form_is_counted_and_built_at_its_size(monkeypatch):
    taken = []

    def take(timed, *arguments):
        taken.append((dict((row.name, build) for row, build in timed), arguments))
        return [row for row, _ in timed]

    monkeypatch.setattr(suites, 'time_in_processes', take)
    monkeypatch.setattr(networks, 'BATCH', 3)
    rows, _ = suites.measure_variants(Setting(5, 7, 'meta'))
    assert len(rows) == 6 * 5 + 1 and rows[5].group == 'M1 backbone'
    macs = [rows[5 * k].work / 2 / 3e6 for k in range(6)]
    assert macs == pytest.approx([79.2, 167.1, 201.0, 262.7, 299.3, 521.6], rel=0.01)
    assert rows[-1].work == 2 * 10_000 * 9 * 256 * 256
    assert {row.against for row in rows[:-1]} == {'timm, eager'}
    assert taken[0][1] == (7, 2, 5)
    assert taken[0][0]['fused'].args == ('fused', 'm5', (3, 3, 224, 224), 5, 'meta')
    rows, _ = suites.measure_forms(Setting(1, 1))
    assert [row.name for row in rows] == [*suites.FORMS, 'convolution']
    assert rows[0].work / 2e9 == pytest.approx(6.10, rel=0.02)  # 800 x 1344
    assert taken[1][0]['plain'].args[2] == (1, 3, 800, 1344)
    for name, (which, how) in suites.FORMS.items():  # each is built as it is named
        network, _, form = name.partition(', ')
        assert which == ('contiguous' if form == 'contiguous' else network), name
        words = form.lower().removesuffix(' bf16').removesuffix(' int8').split()
        named = '_'.join(words) if words != ['onnx', 'runtime'] else 'onnxruntime'
        expected = 'eager' if named in ('', 'contiguous') else named
        assert getattr(how, 'func', how).__name__ == expected, name


def test_measured_ratios_stand_beside_the_published_ones():
    rows = [
        Row('eager', 'EfficientViT-M3', [1.0, 2.0, 1.0]),
        Row('compiled', 'MobileNetV2', [90.0] * 3),
        Row('eager', 'MobileNetV2', [4.0, 8.0, 2.0]),
    ]
    (line,) = [line for line in suites._claims(rows).splitlines() if line.startswith('-')]
    assert line.startswith('- EfficientViT-M3 over MobileNetV2, eager: here 4.00, published 3.0')


def test_evaluations_are_timed_as_often_as_said(monkeypatch):
    pytest.importorskip('hotcoco')
    monkeypatch.setenv('RAYON_NUM_THREADS', '')
    monkeypatch.setattr(suites, 'EVALUATED_IMAGES', 10)
    rows, (note,) = suites.measure_evaluation(Setting(2, 25))
    assert os.environ['RAYON_NUM_THREADS'] == '2'
    assert [(row.name, len(row.seconds)) for row in rows] == [('pycocotools', 2), ('hotcoco', 2)]
    assert rows[0].seconds != rows[1].seconds and rows[1].against == 'pycocotools'
    assert re.fullmatch(r'10 images, \d+ detections', rows[0].group)
    assert float(note.split()[-1].strip('.')) < 1e-9


@pytest.mark.parametrize('out_stem', [False, True])
def test_timms_backbone_has_the_maps_of_ours(out_stem):
    pytest.importorskip('timm')
    theirs = networks.TimmBackbone('m0', norm_eval=True, out_stem=out_stem).train()
    assert not any(m.training for m in theirs.modules() if isinstance(m, nn.BatchNorm2d))
    ours = EfficientViT('m0', out_stem=out_stem).eval()
    image = torch.rand(1, 3, 256, 192)
    with torch.no_grad():
        for _ in range(2):
            shapes = [[x.shape for x in network(image)] for network in (theirs, ours)]
            assert shapes[0] == shapes[1]
    for side, window in ((224, 4), (256, 7)):
        models = networks.backbone('m0', side), networks.timm_backbone('m0', side).eval()
        counted = [suites.count_macs(model, torch.rand(1, 3, side, side)) for model in models]
        assert counted[0] == pytest.approx(counted[1], rel=0.01)
        for model in models:  # one bias for each offset in a window of the last stage
            *_, biases = (p for name, p in model.named_parameters() if 'attention_bias' in name)
            assert biases.shape[-1] == window**2 and not model.training


def test_a_runtime_of_the_cpu_and_a_cuda_graph_need_their_device():
    for form, arguments, match in (
        (forms.onnxruntime, (1,), 'ONNX Runtime needs --device cpu, got meta'),
        (forms.openvino, (1,), 'OpenVINO needs --device cpu, got meta'),
        (forms.graphed, (), 'a CUDA graph needs --device cuda, got meta'),
    ):
        with pytest.raises(ConfigError, match=match):
            form(nn.Identity(), torch.empty(1, device='meta'), *arguments)
    call = forms.eager(nn.Linear(2, 2), torch.rand(1, 2))
    assert forms.amp(call, 'cpu', torch.bfloat16)().dtype == torch.bfloat16
    assert call().dtype == torch.float32 and call().is_inference()


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
    assert '1 image, 100 detections, 0 found by only one side' in text
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


def test_data_loading(monkeypatch, tmp_path):
    pytest.importorskip('mmdet')
    from evit_mm.compare.benchmark import loading

    monkeypatch.setattr(loading, 'CASES', [((128, 96), (64, 48)), ((64, 48), (128, 96))])
    monkeypatch.setattr(loading, 'TRAININGS', [((128, 96), (64, 64))])
    monkeypatch.setattr(loading, 'WARMUP', 1)
    rows, text = run_suite('loading', tmp_path, threads=1, rounds=2)
    names = [
        *(loading.FROM_FILE, loading.TORCHVISION, loading.REDUCED),
        f'{loading.FROM_FILE}, only this step',
    ]
    assert [row.name for row in rows[:8]] == 2 * names
    steps = {row.name: row.seconds for row in rows[8:]}
    assert {row.group for row in rows[8:]} == {'training, 128x96 to 64x64'}
    for name in (loading.FROM_FILE, loading.REDUCED):
        waiting, whole = steps[f'{name}, waiting for data'], steps[f'{name}, iteration']
        assert all(0 < part < all_ for part, all_ in zip(waiting, whole, strict=True))
        share = f'{sum(waiting) / sum(whole):.1%}'
        assert f'- training, 128x96 to 64x64, {name}: {share}' in text
    assert all(row.seconds for row in rows)
    with loading.photo((128, 96)) as file:
        image = loading.load_by_torchvision({'img_path': str(file)})['img']
        assert np.abs(image.astype(int) - cv2.imread(str(file))).max() <= 3


def test_slow_detectors_are_timed_in_fewer_rounds(monkeypatch):
    pytest.importorskip('mmdet')
    from evit_mm.compare.benchmark import detection

    taken = []

    def take(calls, rounds):
        taken.append(rounds)
        return [row for row, _ in calls]

    def predict(config, size, batch, file, device):
        assert device == 'meta' and cv2.imread(str(file)).shape == (480, 640, 3)
        return [(Row(f'{config} {size} {batch}', 'any'), None)], 'alike'

    monkeypatch.setattr(detection, 'time_rows', take)
    monkeypatch.setattr(detection, 'prediction', predict)
    for rounds, slow in ((12, 4), (3, 2)):
        rows, notes = detection.measure(Setting(1, rounds, 'meta'))
        expected = [
            slow if height * width * batch > 1e6 else rounds
            for _, (height, width), batch in detection.CASES
        ]
        assert taken == expected and {slow, rounds} == set(expected)
        assert len(rows) == len(taken) and f'- {rows[-1].group}: alike.' in notes[1]
        taken.clear()


def test_each_stage_of_a_prediction_has_the_work_of_its_name():
    pytest.importorskip('mmdet')
    from evit_mm.compare.benchmark import detection

    with detection.photo() as file:
        timed, agreement = detection.prediction('retinanet_lite_evit_m0_coco', (96, 160), 1, file)
        calls = {row.name: (row, call()) for row, call in timed}
    assert calls['decode and resize, mmdet'][1]['inputs'][0].shape == (3, 96, 160)
    for path in ('mmdet', 'fused'):
        found = {name.removesuffix(f', {path}'): out for name, (_, out) in calls.items()}
        assert found['normalise and pad']['inputs'].shape == (1, 3, 96, 160)
        assert [x.shape[2] for x in found['backbone']] == [12, 6, 3, 2]
        assert {x.shape[1] for x in found['neck']} == {96}
        scores, boxes = found['head']
        assert (scores[0].shape[1], boxes[0].shape[1]) == (6 * 80, 6 * 4)
        (sample,) = found['whole, from tensors']
        assert torch.equal(found['boxes and NMS'][0].bboxes, sample.pred_instances.bboxes)
        (other,) = found['whole, from the file']
        assert torch.equal(other.pred_instances.bboxes, sample.pred_instances.bboxes)
        # the boxes are those in the photograph of 640 x 480
        corner = sample.pred_instances.bboxes.max(0).values
        assert 400 < corner[2] <= 640 and 300 < corner[3] <= 480
    passing = sum((x.sigmoid() > 0.05).sum() for x in calls['head, mmdet'][1][0])
    assert 900 <= passing <= 1100
    against = {row.against for name, (row, _) in calls.items() if name.startswith('neck')}
    assert against == {None, 'neck, mmdet'}


def test_bytes_kept_for_the_backward_pass_are_counted_once():
    pytest.importorskip('mmdet')
    from evit_mm.compare.benchmark import training

    a, b = (torch.ones(1000, requires_grad=True) for _ in range(2))
    weight = nn.Parameter(torch.ones(1000))

    def step():
        product = a * b  # keeps both
        (product * weight + product[:500].exp().sum()).sum().backward()

    # two inputs, the product, and the exponentials of its half
    assert training._kept(step) == 4 * (3 * 1000 + 500)


def test_steps_are_set_against_timms_in_their_precision(monkeypatch):
    pytest.importorskip('mmdet')
    from evit_mm.compare.benchmark import training

    timm = training.TIMM
    assert training.timm_row('ours, with_cp') == timm
    assert training.timm_row('ours, contiguous, AMP') == f'{timm}, AMP'
    for name, options in training.GPU_FORMS.items():
        assert training.timm_row(name) in training.GPU_FORMS
        assert (options.get('amp', False), options.get('tf32', False)) == (
            name.endswith('AMP'),
            name.endswith('TF32'),
        )
    monkeypatch.setattr(training, '_kept', lambda step: 5 * 2**20)
    (row,) = training._time('group', {'ours': lambda: None}, 9)
    assert (len(row.seconds), row.note, row.against) == (4, '5 MiB kept', timm)
    assert len(training._time('group', {'ours': lambda: None}, 1)[0].seconds) == 2


def test_training_steps_are_in_the_layout_of_their_name(monkeypatch):
    pytest.importorskip('mmdet')
    pytest.importorskip('timm')
    from evit_mm.compare.benchmark import training

    monkeypatch.setattr(networks, 'BATCH', 2)
    monkeypatch.setattr(networks, 'SIDE', 128)
    seen = []

    def record(module, inputs, output):
        if type(module) is nn.BatchNorm2d or isinstance(module, nn.Conv2d):
            image, last = inputs[0], torch.channels_last
            if image.shape[1] == 3:
                assert module.training and image.shape[0] == 2
            elif image.shape[1] > 1 and image.shape[3] > 1 and not seen:
                seen.append((image.shape[2:], image.is_contiguous(memory_format=last)))

    handle = nn.modules.module.register_module_forward_hook(record)
    config = 'retinanet_lite_evit_m0_coco'
    try:
        for name, options in training.LAYOUTS.items():
            steps = (
                training._backbone_step('m0', options, 'cpu'),
                training.detector_step(config, (128, 160), 2, options, 'cpu'),
            )
            for step, size in zip(steps, ((128, 128), (128, 160)), strict=True):
                seen.clear()
                step()
                expected = name in ('ours', f'{training.TIMM}, channels last')
                assert seen == [(tuple(side // 2 for side in size), expected)], name
    finally:
        handle.remove()


def test_operators_are_timed_with_the_ones_that_they_are_named_for(monkeypatch):
    pytest.importorskip('mmdet')
    from evit_mm.compare.benchmark import operators

    nms = importlib.import_module('mmcv.ops.nms')
    compiled = ModuleType('mmcv._ext')
    compiled.__file__ = 'mmcv/_ext.so'
    monkeypatch.setitem(sys.modules, 'mmcv._ext', compiled)
    monkeypatch.setattr(nms, 'ext_module', compiled)
    used = []
    cases = {'_suppression': lambda _: [('one', lambda: used.append(nms.ext_module))]}
    for name in ('_suppression', '_pooling', '_convolutions', '_prediction'):
        monkeypatch.setattr(operators, name, cases.get(name, lambda _: []))
    rows, _ = operators.measure(Setting(1, 3))
    assert [(row.group, row.name, row.against, len(row.seconds)) for row in rows] == [
        ('one', 'compiled', None, 3),
        ('one', 'evit_mm.ops', 'compiled', 3),
    ]
    assert [x is compiled for x in used] == [True, True, False, False] * 4
    assert used[2].nms is operators.OPERATORS['nms'] and nms.ext_module is compiled


def test_both_passes_of_an_operator_are_called():
    pytest.importorskip('mmdet')
    from evit_mm.compare.benchmark import operators

    layer, x = nn.Linear(2, 3), torch.ones(4, 2, requires_grad=True)
    (label, forward), (other, backward) = operators._both_ways('linear', layer, x)
    assert (label, other) == ('linear', 'linear, backward') and not forward().requires_grad
    for _ in range(2):
        inputs, weight, bias = backward()
        assert torch.allclose(inputs, layer.weight.sum(0).expand(4, 2))
        assert weight.eq(4).all() and bias.eq(4).all()


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
    with pytest.raises(ConfigError, match='must be at least 1, got 1 and 0'):
        run_suite('variants', tmp_path, rounds=0)


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
