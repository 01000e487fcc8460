"""The examples give a model what mmdet gives it, and say what is wrong."""

import asyncio
import functools
import io
import json
import re
import runpy
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from evit_mm import Detector
from evit_mm.deploy.export.files import describe
from tests.conftest import ROOT
from tests.exported import CLASSES, write_exported
from tests.trainings import save_weights, write_config

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
openvino = pytest.importorskip('openvino')

RANDOM = np.random.default_rng(0)
PICTURE = RANDOM.integers(0, 256, (36, 52, 3), np.uint8)
SUFFIXES = {'onnx_numpy': '.onnx', 'openvino_numpy': '.xml', 'detect.cpp': '.xml'}
SMALL = """
model['backbone']['arch'].update(depths=(1, 1, 1), num_heads=(1, 1, 2))
model['test_cfg'].update(max_per_img=20, nms_pre=50)
"""


def load(name):
    spec = spec_from_file_location(name, ROOT / 'examples' / f'{name}.py')
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(request, capsys):
    """Return a function that runs an example and returns its output and its error."""

    def python(name, file, picture):
        try:
            load(name).main(str(file), str(picture))
        except SystemExit as error:
            return '', error.code
        return capsys.readouterr().out, ''

    def function(name, file, picture):
        if name != 'detect.cpp':
            return python(name, file, picture)
        program = request.getfixturevalue('cpp_example')
        done = subprocess.run([program, file, picture], capture_output=True, text=True)
        assert done.returncode == bool(done.stderr)
        return done.stdout, done.stderr.strip()

    return function


def mirror():
    """Return a model with the values of its input plus 10 as scores, its size as boxes, label 1."""
    helper, node = onnx.helper, onnx.helper.make_node
    image, size = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (('image', ['b', 3, 'h', 'w']), ('size', ['b', 2]))
    )
    kinds = {'boxes': (1, ['b', 'n', 4]), 'scores': (1, ['b', 'n']), 'labels': (7, ['b', 'n'])}
    outputs = [helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]
    constants = {
        'rows': np.array([0, -1], np.int64),
        'ten': np.float32([10]),
        'one': np.array([1], np.int64),
        'four': np.array([4], np.int64),
    }
    nodes = [
        node('Reshape', ['image', 'rows'], ['values']),
        node('Add', ['values', 'ten'], ['scores']),
        node('Shape', ['scores'], ['shape']),
        node('Expand', ['one', 'shape'], ['labels']),
        node('Concat', ['shape', 'four'], ['box_shape'], axis=0),
        node('Concat', ['size', 'size'], ['sides'], axis=1),
        node('Unsqueeze', ['sides', 'one'], ['row']),
        node('Expand', ['row', 'box_shape'], ['boxes']),
    ]
    stored = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, 'mirror', [image, size], outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)


@functools.cache
def converted():
    return openvino.convert_model(io.BytesIO(mirror().SerializeToString()))


def write_mirror(file, metadata):
    """Write the mirror with metadata; without them, as no file of ours."""
    if file.suffix == '.onnx':
        content = mirror()
        if metadata:
            onnx.helper.set_model_props(content, {'evit_mm': json.dumps(metadata)})
        onnx.save_model(content, str(file))
    else:
        model = converted().clone()
        if metadata:
            model.set_rt_info(json.dumps(metadata), ['evit_mm'])
        openvino.save_model(model, str(file), compress_to_fp16=False)
    return file


def config(steps, preprocessor):
    pipeline = [dict(type='LoadImageFromFile'), *steps, dict(type='PackDetInputs', meta_keys=())]
    preprocessor = dict(type='DetDataPreprocessor', **preprocessor)
    dataset = dict(type='CocoDataset', pipeline=pipeline)
    model = dict(data_preprocessor=preprocessor, test_cfg=dict(score_thr=0.05))
    content = dict(default_scope='mmdet', model=model, test_dataloader=dict(dataset=dataset))
    return Config(content)


def prepared(cfg, path, divisor):
    """Return what mmdet gives the network for an image, with its height and width."""
    from mmcv.transforms import Compose
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    steps = cfg.test_dataloader.dataset.pipeline
    steps[-1].meta_keys = ('img_shape',)
    packed = Compose(steps)({'img_path': str(path), 'img_id': 0})
    preprocessor = MODELS.build({**cfg.model.data_preprocessor, 'pad_size_divisor': divisor})
    sample = packed['data_samples']
    batch = {'inputs': [packed['inputs']], 'data_samples': [sample]}
    return preprocessor(batch)['inputs'][0].numpy(), sample.img_shape


IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
SAME = dict(type='Resize', scale=(52, 36), keep_ratio=True)
SETTINGS = {
    'no resizing': ([SAME], dict(IMAGENET, pad_size_divisor=32)),
    'BGR': ([SAME], dict(mean=[1, 2, 3], std=[50, 60, 70], pad_size_divisor=48, pad_value=7)),
    'padded like RTMDet': (
        [SAME, dict(type='Pad', size=(80, 60), pad_val=dict(img=(114, 114, 114)))],
        dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], bgr_to_rgb=False),
    ),
    'padded to a square': ([SAME, dict(type='Pad', pad_to_square=True, pad_val=9)], IMAGENET),
    'larger': ([dict(type='Resize', scale=(70, 90), keep_ratio=True)], IMAGENET),
    'smaller': ([dict(type='Resize', scale=(31, 90), keep_ratio=True)], IMAGENET),
    'other sides': ([dict(type='Resize', scale=(70, 30), keep_ratio=False)], IMAGENET),
}
RESIZED = ('larger', 'smaller', 'other sides')


@pytest.mark.parametrize('name', SUFFIXES)
@pytest.mark.parametrize('setting', SETTINGS)
def test_an_example_gives_a_model_what_mmdet_gives_it(run, setting, name, tmp_path):
    cfg = config(*SETTINGS[setting])
    metadata = {**describe(cfg, CLASSES), 'in_channels': 3, 'outputs': ['boxes', 'labels']}
    file = write_mirror(tmp_path / f'mirror{SUFFIXES[name]}', metadata)
    picture = tmp_path / ('a.ppm' if name == 'detect.cpp' else 'a.png')
    assert cv2.imwrite(str(picture), PICTURE)
    truth, size = prepared(cfg, picture, metadata['pad_size_divisor'])
    output, error = run(name, file, picture)
    assert not error
    rows = [line.split() for line in output.splitlines()]
    assert len(rows) == truth.size and {row[0] for row in rows} == {'square'}
    values = np.array([float(row[1]) for row in rows]).reshape(truth.shape) - 10
    levels = np.abs(values - truth) * np.reshape(metadata['std'], (3, 1, 1))
    if name == 'detect.cpp' and setting in RESIZED:  # OpenVINO rounds some values differently
        assert levels.max() < 1.01 and levels.mean() < 0.2
    else:
        assert levels.max() < 0.1
    box = np.array(rows[-1][2:], float)
    scale = cfg.test_dataloader.dataset.pipeline[1].scale
    pad = metadata['pad_to']
    resized = np.array([size[1], size[0]])
    if pad:  # the image itself was not resized
        resized = np.array(scale)
    expected = np.array([*size, *size]) * np.tile(np.array([52, 36]) / resized, 2)
    np.testing.assert_allclose(box, expected, atol=0.1)


STEP = {'type': 'LoadImageFromFile', 'color_type': 'color', 'imdecode_backend': 'cv2'}


@pytest.mark.parametrize('name', SUFFIXES)
def test_an_example_says_in_one_sentence_what_is_wrong(run, name, tmp_path):
    metadata = {**describe(config([SAME], IMAGENET), CLASSES), 'in_channels': 3}
    metadata['outputs'] = ['boxes', 'scores', 'labels']
    suffix = SUFFIXES[name]
    picture, text = tmp_path / 'a.ppm', tmp_path / 'text.png'
    assert cv2.imwrite(str(picture), PICTURE)
    text.write_text('no image')
    cases = [
        ('good', {}, tmp_path / 'none.png', "none.png' "),
        ('good', {}, text, "text.png' "),
        ('all', {'outputs': ['boxes', 'scores']}, picture, f"all{suffix}' "),
        ('grey', {'reader': [{**STEP, 'color_type': 'grayscale'}]}, picture, f"grey{suffix}' "),
        (
            'deep',
            {'reader': [{**STEP, 'imdecode_backend': 'tifffile'}]},
            picture,
            f"deep{suffix}' ",
        ),
        ('numpy', {'reader': [{'type': 'LoadNumpy'}]}, picture, f"numpy{suffix}' "),
        ('two', {'reader': [STEP, {'type': 'LoadMask'}]}, picture, f"two{suffix}' "),
    ]
    if name == 'detect.cpp':
        cases += [('values', {'pad_pixel': [1.0, 2.0, 3.0]}, picture, "values.xml' ")]
        (tmp_path / 'cut.ppm').write_bytes(picture.read_bytes()[:-1])
        cases += [('good', {}, tmp_path / 'cut.ppm', "cut.ppm' is incomplete")]
    else:
        cases += [('one', {'static_size': [64, 32]}, picture, f"one{suffix}' accepts only images")]
    cases += [('none', None, picture, f"none{suffix}' cannot be opened")]
    for stem, changed, image, said in cases:
        file = tmp_path / f'{stem}{suffix}'
        if changed is not None:
            write_mirror(file, {**metadata, **changed})
        output, error = run(name, file, image)
        assert not output and error.startswith('error: ') and said in error
        assert len(error.splitlines()) == 1 and not error.endswith(': '), error
    assert run(name, tmp_path / f'good{suffix}', picture)[0]
    output, error = run(name, write_mirror(tmp_path / f'bare{suffix}', {}), picture)
    assert not output and f"bare{suffix}' " in error and 'tools/export.py' in error


WITHOUT_TORCH = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
assert not {'torch', 'mmcv', 'mmdet', 'evit_mm'} & set(sys.modules)
"""


@pytest.mark.parametrize('name', ['onnx_numpy', 'openvino_numpy'])
def test_an_example_needs_no_torch(name, tmp_path):
    metadata = {**describe(config([SAME], IMAGENET), CLASSES), 'in_channels': 3}
    metadata['outputs'] = ['boxes', 'scores', 'labels']
    file = write_mirror(tmp_path / f'a{SUFFIXES[name]}', metadata)
    cv2.imwrite(str(tmp_path / 'a.png'), PICTURE)
    script = ROOT / 'examples' / f'{name}.py'
    command = [sys.executable, '-I', '-c', WITHOUT_TORCH, script]
    done = subprocess.run([*command, file, tmp_path / 'a.png'], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith('square '), done.stderr
    done = subprocess.run([*command, file], capture_output=True, text=True)
    usage = f'usage: python {script} MODEL{SUFFIXES[name]} IMAGE'
    assert (done.returncode, done.stderr.strip()) == (1, usage)


# --- the server


@pytest.fixture(scope='module', params=['checkpoint', 'exported file'])
def detector(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp('server')
    if request.param == 'exported file':
        return Detector(write_exported(folder / 'quarter.onnx'))
    file = write_config(folder, folder, SMALL)
    return Detector(save_weights(file, folder / 'random.pth'), file, 'cpu')


def png(pixels):
    return cv2.imencode('.png', pixels)[1].tobytes()


def answers(detector, files, **options):
    """Send files to the server at the same time, and return its answers."""
    httpx = pytest.importorskip('httpx')
    pytest.importorskip('fastapi')
    pytest.importorskip('multipart')
    pytest.importorskip('uvicorn')

    async def send():
        app = load('server').create_app(detector, **options)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url='http://test') as client:
            assert (await client.get('/')).json() == list(detector.classes)
            posts = [client.post('/detect', files={'image': content}) for content in files]
            return await asyncio.wait_for(asyncio.gather(*posts), 60)

    return asyncio.run(send())


@pytest.fixture
def batches(detector, monkeypatch):
    """The shape of each batch that the detector gets."""
    seen, detect = [], detector.detect

    def watched(images, *arguments):
        seen.append((len(images), *images[0]['inputs'].shape))
        return detect(images, *arguments)

    monkeypatch.setattr(detector, 'detect', watched)
    return seen


# wide and high images in turn; they differ in their most red pixel
SHAPES = [(40, 60, 3), (60, 40, 3)] * 4
PICTURES = [RANDOM.integers(0, 255 - 20 * i, x, np.uint8) for i, x in enumerate(SHAPES)]


def test_images_sent_together_are_one_batch_per_shape(detector, batches):
    replies = answers(detector, [png(x) for x in PICTURES], seconds=1.0)
    assert sorted(number for number, *_ in batches) == [4, 4]
    assert len({shape for _, *shape in map(tuple, batches) for shape in [tuple(shape)]}) == 2
    for reply, pixels in zip(replies, PICTURES, strict=True):
        assert reply.status_code == 200
        found, truth = reply.json(), detector(pixels)
        assert found['names'] == truth.names and len(truth) > 0
        assert found['labels'] == truth.labels.tolist()
        np.testing.assert_allclose(found['scores'], truth.scores, atol=1e-4)
        np.testing.assert_allclose(found['boxes'], truth.boxes, atol=1e-2)


def test_each_image_of_a_batch_that_fails_gets_an_answer(tmp_path, monkeypatch):
    detector = Detector(write_exported(tmp_path / 'one.onnx', static_size=[128, 96]))
    good, bad = (np.full((48, width, 3), 200, np.uint8) for width in (64, 48))
    replies = answers(detector, [png(x) for x in (good, bad, bad, good)], seconds=1.0)
    assert [reply.status_code for reply in replies] == [200, 400, 400, 200]
    assert 'was exported with --static' in replies[1].json()['detail']
    monkeypatch.setattr(detector, 'detect', lambda images: 1 / 0)
    replies = answers(detector, [png(good)] * 3, seconds=1.0)
    assert [reply.status_code for reply in replies] == [500] * 3


def test_a_batch_has_a_limit(detector, batches):
    replies = answers(detector, [png(x) for x in PICTURES[::2] * 2], seconds=1.0, most=3)
    assert [reply.status_code for reply in replies] == [200] * 8
    assert [number for number, *_ in batches] == [3, 3, 2]


def test_a_bad_image_is_refused_and_the_others_are_detected(detector, batches):
    good = png(PICTURES[0])
    thin = png(np.zeros((1, 5000, 3), np.uint8))
    replies = answers(detector, [good, b'text', b'', good[:300], thin, good])
    assert [reply.status_code for reply in replies] == [200, 400, 400, 400, 400, 200]
    said = [reply.json()['detail'] for reply in replies[1:5]]
    assert said[0] == said[1] == 'the file is not an image that Pillow can read'
    assert 'too thin to resize' in said[3]
    assert all(len(text.splitlines()) == 1 for text in said)
    assert sum(number for number, *_ in batches) == 2
    assert answers(detector, []) == []


def test_a_failure_of_a_batch_is_answered(detector, monkeypatch):
    def fail(images):
        raise RuntimeError('out of memory')

    monkeypatch.setattr(detector, 'detect', fail)
    replies = answers(detector, [png(x) for x in PICTURES[:3]])
    assert [reply.status_code for reply in replies] == [500] * 3


FREE_PORT = """
import functools, runpy, sys, uvicorn
uvicorn.run = functools.partial(uvicorn.run, port=0)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.slow
def test_the_command_starts_the_server(tmp_path):
    httpx = pytest.importorskip('httpx')
    file, picture = write_exported(tmp_path / 'a.onnx'), png(PICTURES[0])
    command = [sys.executable, '-c', FREE_PORT, ROOT / 'examples' / 'server.py']
    server = subprocess.Popen([*command, file], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        lines = iter(server.stderr.readline, '')
        found = next(filter(None, (re.search(r'running on (http://\S+)', x) for x in lines)))
        reply = httpx.post(f'{found[1]}/detect', files={'image': picture}, timeout=60).json()
    finally:
        server.kill()
        server.communicate()
    truth = Detector(file)(PICTURES[0])
    assert reply['boxes'] == truth.boxes.tolist() and reply['names'] == ['star']


def test_the_server_says_what_is_wrong_with_its_model(tmp_path, monkeypatch):
    pytest.importorskip('fastapi')
    monkeypatch.setattr(sys, 'argv', ['server.py', str(tmp_path / 'none.onnx')])
    with pytest.raises(SystemExit, match=r"^error: exported file '.*none\.onnx' does not exist$"):
        runpy.run_path(str(ROOT / 'examples' / 'server.py'), run_name='__main__')
    monkeypatch.setattr(sys, 'argv', ['server.py'])
    with pytest.raises(SystemExit, match=r'^usage: python .*server\.py MODEL \[CONFIG\]$'):
        runpy.run_path(str(ROOT / 'examples' / 'server.py'), run_name='__main__')
