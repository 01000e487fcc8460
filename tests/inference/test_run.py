"""Prediction: images of every kind, videos, cameras; batches, half precision, the fast form."""

import json
import runpy
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from evit_mm import inference
from evit_mm.data import make_shapes
from evit_mm.errors import CheckpointError, ConfigError, DataError
from evit_mm.inference import sources
from evit_mm.inference.run import Speed
from evit_mm.runner.config import load_config
from tests.conftest import ROOT, relative_error
from tests.trainings import save_weights, write_config


@pytest.fixture(autouse=True)
def _interruptible():
    """Ctrl-C interrupts, also where the tests were started in the background of a shell."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


FPS = 8.0


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'set', 1, 8, size=(96, 80), quiet=True)


@pytest.fixture(scope='module')
def model(data, tmp_path_factory):
    """A config, and random weights for it with which it finds something everywhere."""
    folder = tmp_path_factory.mktemp('model')
    config = write_config(folder, data, 'model["test_cfg"]["max_per_img"] = 20\n')
    return config, save_weights(config, folder / 'random.pth')


def predict(model, source, out, device='cpu', **options):
    config, checkpoint = model
    return inference.predict(checkpoint, source, out, config, device=device, **options)


def noise(seed: int, height: int = 80, width: int = 96) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def write_video(path: Path, frames: int = 10, codec: str = 'mp4v') -> Path:
    """A white square that moves over grey, one frame after the other."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), FPS, (96, 80))
    assert writer.isOpened()
    for index in range(frames):
        picture = np.full((80, 96, 3), 90, np.uint8)
        picture[20:50, 5 * index : 5 * index + 30] = 255
        writer.write(picture)
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        there, frame = capture.read()
        if not there:
            return frames, capture.get(cv2.CAP_PROP_FPS)
        frames.append(frame)


def assert_alike(found, expected, score=1e-4, pixels=1e-2):
    """The same images have the same boxes, in any order where scores are equal."""
    assert len(found) == len(expected) > 0
    key = ('file_name', 'category_name', 'image_id')
    for entry in expected:
        same = [f for f in found if all(f[k] == entry[k] for k in key)]
        distance = [
            max(abs(a - b) for a, b in zip(f['bbox'], entry['bbox'], strict=True))
            for f in same
            if abs(f['score'] - entry['score']) <= score
        ]
        assert min(distance, default=np.inf) <= pixels, entry


def save_odd_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (60, 90, 3), np.uint8)
    (folder / 'deep').mkdir(parents=True)
    cv2.imwrite(str(folder / '17.jpg'), image)
    cv2.imwrite(str(folder / 'deep' / '17.png'), image)
    cv2.imwrite(str(folder / 'grey.png'), image[..., 0])
    Image.fromarray(np.dstack([image, image[..., :1]])).save(folder / 'rgba.png')
    cv2.imwrite(str(folder / 'sixteen.png'), image[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(folder / 'turned.jpg', exif=exif)
    Image.fromarray(image).save(folder / 'browser.jfif')
    cv2.imwrite(str(folder / 'thin.png'), rng.integers(0, 255, (2000, 5, 3), np.uint8))
    cv2.imwrite(str(folder / 'wide.bmp'), rng.integers(0, 255, (5, 2000, 3), np.uint8))
    (folder / 'empty.jpg').write_bytes(b'')
    (folder / 'broken.jpg').write_bytes(b'\xff\xd8\xff\xe0 broken')
    (folder / 'cut.jpg').write_bytes((folder / 'turned.jpg').read_bytes()[:-30])
    (folder / 'notes.txt').write_text('not an image')


def test_prediction_takes_odd_images_and_names_the_broken_one(model, tmp_path):
    save_odd_images(tmp_path / 'in')
    results, faults, _ = predict(
        model,
        tmp_path / 'in',
        tmp_path / 'out',
        score_thr=0.0,
        cfg_options={'test_dataloader.dataset.pipeline.1.scale': (800, 400)},
    )
    assert len(faults) == 3 and 'broken.jpg' in faults[0] and 'empty.jpg' in faults[2]
    assert "cut.jpg' was skipped" in faults[1] and 'the file is truncated' in faults[1]
    assert all('cannot be decoded' in fault for fault in faults)
    names = {
        '17.jpg',
        'deep/17.png',
        'grey.png',
        'rgba.png',
        'sixteen.png',
        'turned.jpg',
        'thin.png',
        'wide.bmp',
        'browser.jfif',
    }
    assert {r['file_name'] for r in results} == names
    for name in [*names - {'browser.jfif'}, 'browser.jfif.png']:
        assert (tmp_path / 'out' / name).is_file()
    assert cv2.imread(str(tmp_path / 'out' / 'turned.jpg')).shape[:2] == (90, 60)
    assert json.loads((tmp_path / 'out' / 'results.json').read_text()) == results
    seen = {r['file_name']: r for r in results}
    assert seen['deep/17.png']['image_id'] == 'deep/17.png'  # in no annotation file
    assert all(
        r['category_name'] in ('circle', 'square', 'triangle', 'star', 'cross') for r in results
    )
    for r in results:
        x, y, w, h = r['bbox']
        limit = (2000, 5) if r['file_name'] == 'wide.bmp' else (90, 2000)
        assert x >= 0 and y >= 0 and x + w <= limit[0] + 1e-3 and y + h <= limit[1] + 1e-3


def test_an_image_too_thin_for_the_scale_is_named_and_nothing_is_written(model, tmp_path):
    cv2.imwrite(str(tmp_path / 'thin.png'), np.zeros((2000, 5, 3), np.uint8))
    with pytest.raises(DataError, match=r"thin\.png' was skipped: 5x2000 pixels are too thin"):
        predict(model, tmp_path / 'thin.png', tmp_path / 'out')
    assert list((tmp_path / 'out').iterdir()) == []


def test_sixteen_bit_and_grey_images_are_seen_alike(model, tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), grey)
    cv2.imwrite(str(tmp_path / 'b.png'), grey.astype(np.uint16) * 257)
    found = [predict(model, tmp_path / n, tmp_path / 'out').detections for n in ('a.png', 'b.png')]
    assert len(found[0]) == len(found[1]) > 0
    for a, b in zip(*found, strict=True):
        assert a['bbox'] == pytest.approx(b['bbox'], abs=1)


def test_predictions_carry_the_data_sets_ids(model, data, tmp_path):
    results = predict(model, data / 'val', tmp_path).detections
    coco = json.loads((data / 'annotations' / 'instances_val.json').read_text())
    names = {c['id']: c['name'] for c in coco['categories']}
    files = {i['id']: i['file_name'] for i in coco['images']}
    assert len({r['image_id'] for r in results}) == 8
    assert all(names[r['category_id']] == r['category_name'] for r in results)
    assert all(files[r['image_id']] == r['file_name'] for r in results)


def test_one_unknown_image_gives_every_image_its_name_as_id(model, data, tmp_path, monkeypatch):
    """A file with ids and names together can be evaluated by no tool."""
    said = []
    monkeypatch.setattr('evit_mm.inference.run.print_log', lambda text, *_: said.append(text))
    shutil.copytree(data / 'val', tmp_path / 'set' / 'val')
    shutil.copytree(data / 'annotations', tmp_path / 'set' / 'annotations')
    cv2.imwrite(str(tmp_path / 'set' / 'val' / 'new.png'), noise(0))
    options = {'test_dataloader.dataset.data_root': str(tmp_path / 'set')}
    source = tmp_path / 'set' / 'val'
    results = predict(model, source, tmp_path / 'out', cfg_options=options).detections
    assert len({r['file_name'] for r in results}) == 9
    assert all(r['image_id'] == r['file_name'] for r in results)
    assert 'does not list 1 of the 9 images, so image_id' in said.pop()
    (source / 'new.png').unlink()
    results = predict(model, source, tmp_path / 'out', cfg_options=options).detections
    assert {type(r['image_id']) for r in results} == {int}
    assert not said


def test_category_ids_of_coco_without_its_annotation_file():
    cfg = load_config(ROOT / 'configs' / 'retinanet_evit_m4_coco.py')
    cfg.test_dataloader.dataset.data_root = 'nowhere'
    from mmdet.datasets import CocoDataset

    classes = CocoDataset.METAINFO['classes']
    _, ids = inference.coco_ids(cfg, classes)
    assert (len(ids), ids[0], ids[11], ids[-1]) == (80, 1, 13, 90)  # stop sign is 13
    assert inference.coco_ids(cfg, ('a', 'b'))[1] == [1, 2]


def test_prediction_never_writes_over_its_input(model, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ConfigError, match='is the folder of the images'):
        predict(model, tmp_path, tmp_path)
    for _ in range(2):  # the second run must not detect on its own pictures
        predict(model, tmp_path, tmp_path / 'out')
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['a.png', 'results.json']


def test_sources_and_folders_that_cannot_be_are_named(model, tmp_path):
    with pytest.raises(DataError, match='does not exist'):
        predict(model, tmp_path / 'none', tmp_path / 'out')
    with pytest.raises(DataError, match='no image found in'):
        predict(model, tmp_path, tmp_path / 'out')
    cv2.imwrite(str(tmp_path / 'a.png'), noise(0))
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match="--out: folder '.*file' cannot be created"):
        predict(model, tmp_path / 'a.png', tmp_path / 'file')
    (tmp_path / 'out' / 'a.png').mkdir(parents=True)
    with pytest.raises(OSError, match=r'out/a\.png'):
        predict(model, tmp_path / 'a.png', tmp_path / 'out')
    with pytest.raises(ConfigError, match='--batch-size must be at least 1'):
        predict(model, tmp_path / 'a.png', tmp_path / 'out', batch_size=0)
    for score in (7.0, -0.1, float('nan')):
        with pytest.raises(ConfigError, match='--score-thr must be between 0 and 1'):
            predict(model, tmp_path / 'a.png', tmp_path / 'out', score_thr=score)


def test_a_checkpoint_of_another_model_or_other_classes_is_refused(model, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), noise(0))
    source, out = tmp_path / 'a.png', tmp_path / 'out'
    other = {'model.backbone.arch.depths': [1, 1, 1]}
    with pytest.raises(CheckpointError, match='does not fit'):
        predict(model, source, out, cfg_options=other)
    classes = ('square', 'circle', 'triangle', 'star', 'cross')
    options = {'test_dataloader.dataset.metainfo.classes': classes}
    with pytest.raises(ConfigError, match='was trained with the classes'):
        predict(model, source, out, cfg_options=options)


def test_the_threshold_decides_what_is_drawn_not_what_is_written(model, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), noise(0))
    all_of_them = predict(model, tmp_path / 'a.png', tmp_path / 'all', score_thr=0.0)
    none = predict(model, tmp_path / 'a.png', tmp_path / 'none', score_thr=1.0)
    assert all_of_them.detections == none.detections
    drawn, bare = (cv2.imread(str(tmp_path / name / 'a.png')) for name in ('all', 'none'))
    assert np.array_equal(bare, noise(0)) and not np.array_equal(drawn, bare)


def test_what_is_not_said_is_as_documented(model, tmp_path):
    """One image per batch, drawn from a score of 0.3 on, on a device that exists."""
    cv2.imwrite(str(tmp_path / 'a.png'), noise(0))
    content = torch.load(model[1], weights_only=True)
    content['state_dict']['bbox_head.retina_cls.bias'] -= 1.55  # scores of about 0.3
    torch.save(content, tmp_path / 'unsure.pth')
    model, drawn = (model[0], tmp_path / 'unsure.pth'), []
    options = {'model.test_cfg.max_per_img': 300}
    for said in ({}, {'score_thr': 0.3}, {'score_thr': 0.25}, {'score_thr': 0.35}):
        found = predict(model, tmp_path / 'a.png', tmp_path / 'out', cfg_options=options, **said)
        drawn.append(cv2.imread(str(tmp_path / 'out' / 'a.png')))
    scores = np.array([entry['score'] for entry in found.detections])
    assert all(((low < scores) & (scores < low + 0.05)).any() for low in (0.25, 0.3))
    assert [np.array_equal(drawn[0], other) for other in drawn[1:]] == [True, False, False]
    with pytest.raises(ConfigError, match=r"--device 'xla' is not available|--device 'nowhere'"):
        predict(model, tmp_path / 'a.png', tmp_path / 'out', device='nowhere')


def test_boxes_have_the_colours_of_their_classes(model):
    cfg = load_config(model[0])
    cfg.test_dataloader.dataset.metainfo.palette = [(250, 0, 0), *[(0, 0, 250)] * 4]
    detector = inference.Detector(model[1], cfg, 'cpu')
    pixels = np.full((80, 96, 3), (90, 100, 110), np.uint8)
    (sample,) = detector.detect([detector.prepare(pixels)])
    sample.pred_instances = sample.pred_instances[:2]
    sample.pred_instances.bboxes = torch.tensor([[20.0, 30, 40, 60], [60.0, 30, 80, 60]])
    sample.pred_instances.labels = torch.tensor([0, 1])
    drawn = detector.draw(pixels, sample, 0.0).astype(int)
    redder = drawn[..., 2] - drawn[..., 0]
    assert drawn.shape == pixels.shape and redder[45, 20] > 100 and redder[45, 60] < -100
    assert drawn[0, 0].tolist() == [90, 100, 110]


def test_detectors_beside_each_other_keep_their_names_and_colours(model, tmp_path):
    cfg, other = (load_config(model[0]) for _ in range(2))
    other.test_dataloader.dataset.metainfo.palette = [(0, 0, 0)] * 5
    first = inference.Detector(model[1], cfg, 'cpu')
    (sample,) = first.detect([first.prepare(noise(0))])
    before = first.draw(noise(0), sample, 0.0)
    second = inference.Detector(model[1], other, 'cpu')
    assert not np.array_equal(second.draw(noise(0), sample, 0.0), before)
    assert np.array_equal(first.draw(noise(0), sample, 0.0), before)


def test_a_batch_finds_what_each_image_finds_alone(model, tmp_path, monkeypatch):
    """Of two sizes, so that a batch of both would be padded."""
    (tmp_path / 'in').mkdir()
    for index in range(7):
        size = (96, 64) if index < 4 else (80, 96)
        cv2.imwrite(str(tmp_path / 'in' / f'{index}.png'), noise(index, *size))
    alone = predict(model, tmp_path / 'in', tmp_path / 'alone', score_thr=0.0)
    seen = []
    detect = inference.Detector.detect
    monkeypatch.setattr(
        inference.Detector,
        'detect',
        lambda self, items, _: seen.append(len(items)) or detect(self, items),
    )
    together = predict(model, tmp_path / 'in', tmp_path / 'out', score_thr=0.0, batch_size=3)
    assert seen == [3, 1, 3]
    assert_alike(together.detections, alone.detections)
    assert [e['file_name'] for e in together.detections] == [
        e['file_name'] for e in alone.detections
    ]
    pictures = [cv2.imread(str(tmp_path / 'out' / f'{i}.png')) for i in range(7)]
    assert [p.shape[:2] for p in pictures[3:5]] == [(96, 64), (80, 96)]


@pytest.mark.parametrize('fuse', [False, True])
def test_half_precision_gives_the_same_maps_within_its_rounding(model, fuse):
    """bfloat16 has 8 bits, and the maps come after some fifty layers."""
    exact, half = (
        inference.Detector(model[1], model[0], 'cpu', half=half, fuse=fuse)
        for half in (False, True)
    )
    inside = []
    for part in (half.model.backbone, half.model.neck, half.model.bbox_head):
        layers = [m for m in part.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        layers[-1].register_forward_hook(lambda m, i, o: inside.append(o.dtype))
    x = torch.randn(1, 3, 256, 320)
    with torch.no_grad():
        maps = [d.model.bbox_head(d.model.extract_feat(x)) for d in (exact, half)]
    assert set(inside) == {torch.bfloat16}
    for ours, theirs in zip(maps[1][0] + maps[1][1], maps[0][0] + maps[0][1], strict=True):
        assert ours.dtype == torch.float32  # boxes are decoded so
        assert 1e-4 < relative_error(ours, theirs) < 0.05


def test_half_precision_is_asked_for(model, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), noise(3))
    exact, half = (
        predict(model, tmp_path / 'a.png', tmp_path / 'out', half=half).detections
        for half in (False, True)
    )
    scores = [sorted(e['score'] for e in found) for found in (exact, half)]
    assert scores[0] != scores[1]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)


def test_the_fast_form_finds_the_same(model, tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / 'a.png'), noise(3))
    plain = predict(model, tmp_path / 'a.png', tmp_path / 'plain')
    kinds = []
    detect = inference.Detector.detect

    def watch(self, items, _):
        kinds.append({type(module).__name__ for module in self.model.modules()})
        return detect(self, items)

    monkeypatch.setattr(inference.Detector, 'detect', watch)
    fused = predict(model, tmp_path / 'a.png', tmp_path / 'fused', fuse=True)
    assert 'FusedWindowAttention' in kinds[0]
    assert_alike(fused.detections, plain.detections, score=1e-3, pixels=0.1)


def test_the_speed_says_what_took_how_long(model, tmp_path):
    (tmp_path / 'in').mkdir()
    for index in range(2):
        cv2.imwrite(str(tmp_path / 'in' / f'{index}.png'), noise(index))
    speed = predict(model, tmp_path / 'in', tmp_path / 'out').speed
    assert speed.frames == 2
    assert min(speed.seconds.values()) > 0
    speed = Speed(4, {'decode': 0.2, 'detect': 1.0, 'draw': 0.4})
    assert str(speed) == (
        '4 images in 1.6 s, 2.5 per second '
        '(per image: decode 50.0 ms, detect 250.0 ms, draw 100.0 ms)'
    )


@pytest.mark.parametrize('name', ['film.mp4', 'film.avi'])
def test_a_video_becomes_a_video_and_entries_with_their_time(model, tmp_path, name):
    film = write_video(tmp_path / name, codec='MJPG' if name.endswith('avi') else 'mp4v')
    found = predict(model, film, tmp_path / 'out', score_thr=0.0, batch_size=4)
    assert found.faults == [] and found.speed.frames == 10
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['film.mp4', 'results.json']
    frames, fps = read_video(tmp_path / 'out' / 'film.mp4')
    assert len(frames) == 10 and fps == FPS and frames[0].shape == (80, 96, 3)
    assert json.loads((tmp_path / 'out' / 'results.json').read_text()) == found.detections
    assert {e['frame'] for e in found.detections} == set(range(10))
    for entry in found.detections:
        assert entry['image_id'] == entry['frame']
        assert entry['seconds'] == pytest.approx(entry['frame'] / FPS, abs=2e-3)
        assert entry['file_name'] == name


def test_a_video_shows_each_frame_with_its_own_detections(model, tmp_path):
    """Each frame as a picture of its own gives the same boxes and the same drawing."""
    film = write_video(tmp_path / 'film.mp4', 4)
    (tmp_path / 'pictures').mkdir()
    for index, frame in enumerate(read_video(film)[0]):
        cv2.imwrite(str(tmp_path / 'pictures' / f'{index}.png'), frame)
    pictures = predict(model, tmp_path / 'pictures', tmp_path / 'a', score_thr=0.0)
    moving = predict(model, film, tmp_path / 'b', score_thr=0.0, batch_size=3)
    assert [e['bbox'] for e in moving.detections] == [
        pytest.approx(e['bbox'], abs=1e-2) for e in pictures.detections
    ]
    for index, drawn in enumerate(read_video(tmp_path / 'b' / 'film.mp4')[0]):
        expected = cv2.imread(str(tmp_path / 'a' / f'{index}.png'))
        difference = np.abs(drawn.astype(float) - expected)
        assert difference.mean() < 12, index  # what MPEG-4 does to noise of lines
        others = [cv2.imread(str(tmp_path / 'a' / f'{i}.png')) for i in range(4) if i != index]
        assert difference.mean() < min(np.abs(drawn.astype(float) - o).mean() for o in others)


def interrupt_at(monkeypatch, last: int):
    """Send Ctrl-C to this process while a frame is being drawn."""
    draw, drawn = inference.Detector.draw, []

    def watch(self, *arguments):
        drawn.append(1)
        if len(drawn) == last:
            signal.raise_signal(signal.SIGINT)
        return draw(self, *arguments)

    monkeypatch.setattr(inference.Detector, 'draw', watch)


def test_an_interrupted_video_keeps_what_was_written(model, tmp_path, monkeypatch):
    film = write_video(tmp_path / 'film.mp4')
    interrupt_at(monkeypatch, 4)
    found = predict(model, film, tmp_path / 'out')
    assert len(read_video(tmp_path / 'out' / 'film.mp4')[0]) == 3
    written = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert written == found.detections and {e['frame'] for e in written} == {0, 1, 2}


def test_an_interrupt_before_anything_was_found_is_one(model, tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / 'a.png'), noise(0))
    interrupt_at(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        predict(model, tmp_path / 'a.png', tmp_path / 'out')
    assert list((tmp_path / 'out').iterdir()) == []


def test_an_error_on_the_way_keeps_what_was_written(model, tmp_path, monkeypatch):
    film = write_video(tmp_path / 'film.mp4')
    draw, drawn = inference.Detector.draw, []

    def fail(self, *arguments):
        drawn.append(1)
        if len(drawn) == 6:
            raise MemoryError
        return draw(self, *arguments)

    monkeypatch.setattr(inference.Detector, 'draw', fail)
    with pytest.raises(MemoryError):
        predict(model, film, tmp_path / 'out')
    assert len(read_video(tmp_path / 'out' / 'film.mp4')[0]) == 5
    written = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert {e['frame'] for e in written} == set(range(5))


def test_broken_videos_are_named(model, tmp_path):
    film = write_video(tmp_path / 'film.mp4')
    half = film.read_bytes()[: film.stat().st_size // 2]
    for name, content in (('cut.mp4', half), ('empty.mp4', b''), ('text.avi', b'no film' * 99)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}' cannot be opened: the video is damaged"):
            predict(model, tmp_path / name, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_video_never_replaces_its_source_nor_a_folder(model, tmp_path):
    film = write_video(tmp_path / 'film.mp4', 2)
    with pytest.raises(ConfigError, match='is the folder of the images'):
        predict(model, film, tmp_path)
    (tmp_path / 'out' / 'film.mp4').mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"film\.mp4' cannot be written"):
        predict(model, film, tmp_path / 'out')
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['film.mp4']


class Camera:
    """A stand-in for cv2.VideoCapture: no camera can be had here."""

    def __init__(self, frames, last=None):
        self.frames, self.last = frames, last

    def isOpened(self):  # noqa: N802 - OpenCV's name
        return True

    def read(self):
        if self.frames == self.last:
            signal.raise_signal(signal.SIGINT)
        self.frames += 1
        return True, noise(0)

    def get(self, key):
        return {cv2.CAP_PROP_FPS: 10.0, cv2.CAP_PROP_FRAME_COUNT: -1.0}[key]


def test_a_camera_runs_until_the_interrupt_and_its_video_keeps_the_time(
    model, tmp_path, monkeypatch
):
    camera = Camera(0, last=4)
    opened, clock = [], iter(np.arange(100) * 0.3)
    capture = cv2.VideoCapture
    monkeypatch.setattr(
        cv2, 'VideoCapture', lambda s: opened.append(s) or (camera if s == 0 else capture(s))
    )
    monkeypatch.setattr(sources, 'monotonic', lambda: next(clock))
    found = predict(model, '0', tmp_path / 'out')
    assert opened[0] == 0
    times = sorted({(e['frame'], e['seconds']) for e in found.detections})
    assert [index for index, _ in times] == [0, 1, 2, 3]
    assert [seconds for _, seconds in times] == pytest.approx([0.3, 0.6, 0.9, 1.2])
    frames, fps = read_video(tmp_path / 'out' / 'camera_0.mp4')
    assert (len(frames), fps) == (13, 10.0)  # 1.2 s at its rate, though only 4 were looked at


def test_an_absent_camera_is_named(model, tmp_path):
    with pytest.raises(DataError, match="'93' cannot be opened: .* or not connected"):
        predict(model, '93', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'tool', ['predict', 'browse_dataset', 'visualize_attention', 'demo', 'test', 'export', 'report']
)
def test_ctrl_c_is_one_sentence(tool, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    for method in ('parse_args', 'parse_intermixed_args'):
        monkeypatch.setattr(f'argparse.ArgumentParser.{method}', interrupt)
    with pytest.raises(SystemExit, match='^130$'):
        runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'), run_name='__main__')
    assert capsys.readouterr().err.startswith('interrupted')
