"""The demo's page in a real browser, with two detectors and a photograph of blood cells."""

import json
import os
import shutil
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from PIL import Image

from evit_mm import inference
from evit_mm.data import make_shapes
from evit_mm.errors import CheckpointError, ConfigError, DataError
from evit_mm.inference import demo
from evit_mm.runner.config import load_config
from tests.exported import write_exported
from tests.trainings import save_weights, write_config

SAID = '#said textarea'


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Two configs and their random weights; the second one is surer of everything."""
    folder, pairs = tmp_path_factory.mktemp('models'), []
    for name, prior in (('first', 0.0), ('second', 0.7)):
        (folder / name).mkdir()
        config = write_config(
            folder / name, folder, 'model["test_cfg"].update(max_per_img=30, nms_pre=100)\n'
        )
        checkpoint = save_weights(config, folder / f'{name}.pth')
        content = torch.load(checkpoint, weights_only=True)
        content['state_dict']['bbox_head.retina_cls.bias'] += prior
        torch.save(content, checkpoint)
        pairs += [config, str(checkpoint)]
    return pairs


@pytest.fixture(scope='module')
def detectors(models):
    return demo.load_detectors(models, 'cpu')


@pytest.fixture(scope='module')
def runs():
    """How often the network ran."""
    return []


@pytest.fixture(scope='module')
def outside():
    """Every address outside this machine that something here asks for."""
    asked = []
    connect = socket.socket.connect

    def watched(self, address):
        is_internet = self.family in (socket.AF_INET, socket.AF_INET6)
        if is_internet and not address[0].startswith(('127.', '::1', 'localhost')):
            asked.append(address)
            raise ConnectionRefusedError('no network in this test')
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, 'connect', watched)
        yield asked


@pytest.fixture(scope='module')
def address(detectors, runs, outside):
    for detector in detectors.values():
        detect = detector.detect
        detector.detect = lambda items, detect=detect: runs.append(1) or detect(items)
    page = demo.build_page(detectors, score_thr=0.25)
    yield demo.serve(page, port=None)
    page.close()


def wait_for(page, text):
    page.wait_for_function(f'document.querySelector({SAID!r})?.value.includes({text!r})')
    return page.input_value(SAID)


def wait_for_scores(page, expected):
    """Wait until the table's second column begins so; each part of the page comes in its time."""
    cells = [page.locator(f'[data-testid="cell-{row}-1"]').last for row in range(len(expected))]
    for _ in range(200):
        found = [float(cell.inner_text() or 'nan') for cell in cells]
        if found == pytest.approx(expected, abs=6e-4):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f'{found} in place of {expected}')


def test_a_photograph_its_threshold_and_the_choice_of_a_checkpoint(
    page, real_data, models, address, runs, outside, tmp_path
):
    photograph = sorted((real_data('bccd') / 'images').glob('*.jpg'))[0]
    expected = {}
    for number, name in enumerate(('first', 'second')):
        config, checkpoint = models[2 * number : 2 * number + 2]
        predicted = inference.predict(checkpoint, photograph, tmp_path / name, config, device='cpu')
        found = predicted.detections
        expected[name] = sorted((e['score'] for e in found), reverse=True)
    middle = round((expected['first'][9] + expected['first'][10]) / 2, 2)
    urls = []
    page.on('request', lambda request: urls.append(request.url))
    page.goto(address)
    page.set_input_files('input[type=file]', photograph)
    shown = sum(score >= 0.25 for score in expected['first'])
    said = wait_for(page, f"{shown} detections in '{photograph.name}' (640 x 480 pixels, ")
    assert said.endswith(' ms)')
    first_picture = page.get_attribute('#picture img', 'src')
    page.wait_for_function("document.querySelector('#picture img')?.naturalWidth === 640")

    fewer = sum(score >= middle for score in expected['first'])
    assert 0 < fewer < shown
    beyond = page.locator(f'[data-testid="cell-{fewer}-1"]')
    beyond.first.wait_for()

    already = len(runs)
    page.get_by_role('spinbutton').fill(str(middle))
    page.get_by_role('spinbutton').press('Tab')
    wait_for(page, f'{fewer} detections')
    page.wait_for_function(
        "old => document.querySelector('#picture img')?.src !== old", arg=first_picture
    )
    assert len(runs) == already  # the network has not run again
    wait_for_scores(page, expected['first'][:5])
    beyond.first.wait_for(state='detached')

    page.get_by_label('second', exact=False).check()
    more = sum(score >= middle for score in expected['second'])
    assert more != fewer
    wait_for(page, f'{more} detections')
    assert len(runs) == already + 1
    wait_for_scores(page, expected['second'][:5])

    # nothing but this machine has been asked for, by the page or by the server
    assert len(urls) > 10 and not outside
    assert not [url for url in urls if not url.startswith((address, 'data:', 'blob:'))]


def test_a_broken_upload_gives_a_sentence_and_the_next_one_works(
    page, real_data, address, tmp_path
):
    (tmp_path / 'broken.jpg').write_bytes(b'\xff\xd8 no image')
    page.goto(address)
    page.set_input_files('input[type=file]', tmp_path / 'broken.jpg')
    said = wait_for(page, 'Error')
    assert said == "Error: 'broken.jpg': the image cannot be decoded because the file is truncated."
    assert page.locator('#picture img').count() == 0
    page.set_input_files('input[type=file]', real_data('photos') / 'chelsea.png')
    assert "in 'chelsea.png' (451 x 300 pixels" in wait_for(page, 'detections')


def test_an_example_of_the_test_set_is_shown_with_a_click(page, models, tmp_path):
    data = make_shapes(tmp_path / 'set', 1, 4, size=(96, 80), quiet=True)
    options = {'test_dataloader.dataset.data_root': str(data)}
    detectors = demo.load_detectors(models[:2], 'cpu', options)
    coco = json.loads((data / 'annotations' / 'instances_val.json').read_text())
    names = [image['file_name'] for image in coco['images']]
    (data / 'val' / names[1]).unlink()  # one that is not there is left out
    examples = demo.example_pictures(next(iter(detectors.values())))
    assert examples == [(data / 'val' / name).resolve() for name in names if name != names[1]]
    blocks = demo.build_page(detectors, score_thr=0.0)
    page.goto(demo.serve(blocks, port=None))
    page.wait_for_selector('h1')
    assert page.locator('h1').inner_text() == 'Object detection with EfficientViT'
    # nothing is shown yet, and the place for it is not higher than what is beside it
    assert page.locator('#picture').bounding_box()['height'] < 250
    pictures = page.locator('.gallery-item')
    assert pictures.count() == 3
    pictures.nth(1).click()
    assert f"in '{names[2]}' (96 x 80 pixels" in wait_for(page, 'detections')
    page.wait_for_function("document.querySelector('#picture img')?.naturalWidth === 96")
    blocks.close()


def test_a_demo_without_its_data_set_has_no_examples(detectors):
    assert demo.example_pictures(next(iter(detectors.values()))) == []


def test_the_list_has_the_detections_that_the_picture_shows(detectors, tmp_path):
    """A score that equals the threshold is in both; mmdet alone draws only those above it."""
    detector = next(iter(detectors.values()))
    Image.new('RGB', (96, 80), (90, 120, 30)).save(tmp_path / 'a.png')
    found = demo.detect(detector, str(tmp_path / 'a.png'))
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = detector.model.dataset_meta
    scores = found.sample.pred_instances.scores
    scores[:3] = torch.tensor([0.9, 0.7, 0.3])
    scores[3:] = 0.1
    for score_thr, number in ((0.3, 3), (0.31, 2), (0.7, 2), (0.71, 1), (0.91, 0)):
        picture, rows, said = demo.show(found, score_thr)
        first = DetDataSample(pred_instances=found.sample.pred_instances[:number])
        visualizer.add_datasample(
            'a', found.pixels[..., ::-1], first, draw_gt=False, pred_score_thr=0
        )
        assert np.array_equal(picture, visualizer.get_image())
        assert len(rows) == number and said.startswith(f'{number} detection')


def test_it_is_heard_on_this_machine_alone(address):
    assert address.startswith('http://127.0.0.1:')
    port = int(address.rstrip('/').rsplit(':', 1)[1])
    with socket.create_connection(('127.0.0.1', port), timeout=5):
        pass
    for other in ('127.0.0.2', socket.gethostbyname(socket.gethostname())):
        if other != '127.0.0.1':
            with pytest.raises(OSError), socket.create_connection((other, port), timeout=5):
                pass


def test_another_host_is_listened_on_where_it_is_asked_for(detectors):
    page = demo.build_page(detectors)
    address = demo.serve(page, '127.0.0.2', None)
    port = int(address.rstrip('/').rsplit(':', 1)[1])
    with socket.create_connection(('127.0.0.2', port), timeout=5):
        pass
    with pytest.raises(OSError), socket.create_connection(('127.0.0.1', port), timeout=5):
        pass
    page.close()


def test_a_taken_port_is_named(detectors, address):
    port = int(address.rstrip('/').rsplit(':', 1)[1])
    with pytest.raises(OSError, match=str(port)):
        demo.serve(demo.build_page(detectors), port=port)


def test_gradio_missing_is_named(detectors, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(ConfigError, match=r"needs gradio; .*: pip install 'evit_mm\[demo\]'"):
        demo.build_page(detectors)


def test_the_page_starts_with_the_first_checkpoint_and_a_threshold_of_0_3(
    models, detectors, monkeypatch
):
    for name in ('GRADIO_ANALYTICS_ENABLED', 'GRADIO_RUN_HISTORY', 'HF_HUB_DISABLE_TELEMETRY'):
        monkeypatch.delenv(name, raising=False)
    page = demo.build_page(detectors)
    parts = {part['type']: part['props'] for part in page.config['components']}
    slider, radio = parts['slider'], parts['radio']
    assert [slider[key] for key in ('minimum', 'maximum', 'value', 'step')] == [0, 1, 0.3, 0.01]
    assert radio['value'] == f'tiny · {Path(models[1]).name}' == next(iter(detectors))
    assert [value for value, _ in radio['choices']] == list(detectors)
    assert parts['dataframe']['headers'] == ['class', 'score', 'x', 'y', 'width', 'height']
    assert {'.jpg', '.png'} < set(parts['file']['file_types'])
    # no event can be called by a program
    assert {event['api_visibility'] for event in page.config['dependencies']} == {'private'}
    assert os.environ['GRADIO_ANALYTICS_ENABLED'] == os.environ['GRADIO_RUN_HISTORY'] == 'False'
    assert os.environ['HF_HUB_DISABLE_TELEMETRY'] in ('1', 'True')
    try:
        address = demo.serve(page)
    except OSError as error:  # taken by another program
        address = str(error)
    page.close()
    assert '7860' in address


def test_rows_are_what_the_json_has(models, detectors, tmp_path):
    import cv2

    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), pixels)
    config, checkpoint = models[:2]
    inference.predict(checkpoint, tmp_path / 'a.png', tmp_path / 'out', config, device='cpu')
    written = json.loads((tmp_path / 'out' / 'results.json').read_text())
    detector = next(iter(detectors.values()))
    start = time.perf_counter()
    found = demo.detect(detector, str(tmp_path / 'a.png'))
    assert 1 < found.milliseconds <= 1000 * (time.perf_counter() - start)
    picture, rows, said = demo.show(found, 0.0)
    assert said.endswith(f', {found.milliseconds:.0f} ms)')
    assert picture.shape == (90, 120, 3) and len(rows) == len(written)
    assert said.startswith(f"{len(rows)} detections in 'a.png' (120 x 90 pixels, ")
    for row, entry in zip(rows, sorted(written, key=lambda e: -e['score']), strict=True):
        assert row[1] == pytest.approx(entry['score'], abs=6e-4)
        assert row[2:] == pytest.approx(entry['bbox'], abs=0.051)
    third = sorted(found.sample.pred_instances.scores.tolist())[-3]
    assert len(demo.show(found, third)[1]) == 3  # a score at the threshold is shown
    classes = sorted((entry['category_name'], round(entry['score'], 3)) for entry in written)
    assert sorted((row[0], row[1]) for row in rows) == classes
    bare, nothing, _ = demo.show(found, 1.0)
    assert nothing == [] and np.array_equal(bare, pixels[..., ::-1])
    assert demo.show(None, 0.5) == (None, [], '')


def test_pictures_too_thin_and_pairs_that_are_none_are_named(models, detectors, tmp_path):
    Image.new('RGB', (2, 3000)).save(tmp_path / 'a.png')
    with pytest.raises(DataError, match='2x3000 pixels are too thin'):
        demo.detect(next(iter(detectors.values())), str(tmp_path / 'a.png'))
    for number, alone in ((3, models[2]), (1, models[0])):
        with pytest.raises(ConfigError, match=f"the config '{alone}' needs a MODEL after it"):
            demo.load_detectors(models[:number])
    with pytest.raises(ConfigError, match=f"the config '{models[0]}' needs a MODEL after it"):
        demo.load_detectors([models[0], *models[:2]])
    with pytest.raises(CheckpointError, match='no.pth'):
        demo.load_detectors([models[0], 'no.pth'])


def test_exported_files_stand_alone_or_with_their_config(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (96, 80), 'white').save('a.png')
    for name in ('a.onnx', 'b.onnx'):
        write_exported(Path(name))
    load_config(models[0]).dump('beside.py')
    shutil.copy(models[1], 'c.pth')
    detectors = demo.load_detectors(['a.onnx', *models[:2], 'b.onnx', 'c.pth'])
    assert list(detectors) == ['a.onnx', f'tiny · {Path(models[1]).name}', 'b.onnx', 'c.pth']
    assert demo.example_pictures(detectors['a.onnx']) == []
    shown = [demo.show(demo.detect(d, 'a.png'), 0.0)[1] for d in detectors.values()]
    assert shown[0] == shown[2] == [['star', 1.0, 0.0, 0.0, 48.0, 40.0]]
    assert shown[1] == shown[3] and len(shown[1]) == 30
    assert demo.build_page(detectors)
    own = 'retinanet_evit_m4_shapes'  # a config of the package by its name
    with pytest.raises(CheckpointError, match='does not fit'):
        demo.load_detectors([own, models[1]])


def test_options_reach_each_detector(models, tmp_path):
    Image.new('RGB', (96, 80)).save(tmp_path / 'a.png')
    (detector,) = demo.load_detectors(models[:2], 'cpu', {'model.test_cfg.max_per_img': 3}).values()
    found = demo.detect(detector, str(tmp_path / 'a.png'))
    assert len(found.sample.pred_instances) == 3
