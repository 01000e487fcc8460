"""Large images in tiles, with a stand-in that finds coloured squares, so that all is known."""

import json
import logging
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from PIL import Image

from evit_mm import Detector, inference
from evit_mm.data import make_shapes
from evit_mm.errors import ConfigError
from evit_mm.inference import Detections
from evit_mm.inference.tiles import Tiles, join_tiles
from tests.exported import CLASSES, write_exported
from tests.inference.test_run import read_video

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('sahi')

GREY = 40
# the blue of a square is 100 + 10 * its class, and its red is its score in percent
SIDES = 384, 640  # of the image
SQUARES = [  # class, left, top, side
    (0, 5, 7, 20),
    (1, 620, 360, 20),  # in the right lower corner
    (2, 100, 90, 24),  # over the borders of four tiles
    (3, 300, 200, 12),
    (4, 312, 212, 12),  # its corner touches the one before
    (0, 500, 100, 24),
    (0, 530, 100, 24),
]


def draw(squares=SQUARES, sides=SIDES):
    image = np.full((*sides, 3), GREY, np.uint8)
    for row, (label, left, top, side) in enumerate(squares):
        image[top : top + side, left : left + side] = (100 + 10 * label, 0, 50 + row)
    return image


class Thresholding:
    """Find squares of at least five pixels by their colours; a cut one has a lower score."""

    def __init__(self, detector, masks):
        self.dataset_meta, self.masks, self.shapes = detector.model.dataset_meta, masks, []

    def test_step(self, batch):
        self.shapes.append([tuple(image.shape[1:]) for image in batch['inputs']])
        return list(map(self.find, batch['inputs'], batch['data_samples']))

    def find(self, image, sample):
        width, height = sample.ori_shape[::-1]
        pixels = image.numpy().transpose(1, 2, 0)
        scale = sample.img_shape[1] / width
        found = []
        for red in np.unique(pixels[..., 2]):
            mask = (pixels[..., 2] == red) & (pixels[..., 0] >= 100)
            if mask.sum() < 25:
                continue
            ys, xs = np.nonzero(mask)
            box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / scale
            cut = min(box[2] - box[0], box[3] - box[1]) < max(box[2] - box[0], box[3] - box[1])
            label = (int(pixels[ys[0], xs[0], 0]) - 100) // 10
            found.append((box, red / 100 - 0.3 * cut, label, mask))
        boxes, scores, labels, masks = zip(*found, strict=True) if found else ((), (), (), ())
        sample.pred_instances = InstanceData(
            bboxes=torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
            scores=torch.tensor(scores, dtype=torch.float32),
            labels=torch.tensor(labels, dtype=torch.int64),
        )
        if self.masks:
            whole = np.array([cv2.resize(m.astype(np.uint8), (width, height)) for m in masks])
            sample.pred_instances.masks = torch.from_numpy(
                whole.reshape(-1, height, width).astype(bool)
            )
        return sample


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make a detector that works at 128 pixels and sees only what is large enough there."""

    def made(masks=False):
        detector = Detector(write_exported(tmp_path / 'a.onnx', scale=[128, 128]))
        # nearest pixels keep the colours
        for step in detector.pipeline._further:
            if hasattr(step, 'interpolation'):
                step.interpolation = 'nearest'
        detector.model = Thresholding(detector, masks)
        return detector

    return made


def known(found, squares=SQUARES):
    """The detections are the squares, no more and no less, the best first."""
    expected = [
        ([x, y, x + side, y + side], CLASSES[label]) for label, x, y, side in reversed(squares)
    ]
    assert [(box, name) for box, name in zip(found.boxes.tolist(), found.names, strict=True)] == (
        expected
    )
    scores = [(50 + row) / 100 for row in reversed(range(len(squares)))]
    assert found.scores == pytest.approx(scores)
    assert [CLASSES[label] for label in found.labels] == found.names


@pytest.mark.parametrize('batch_size', [1, 4, 100])
def test_tiles_find_what_the_whole_image_does_not_show(make, batch_size):
    detector = make()
    assert len(detector(draw())) == 0
    detector.model.shapes.clear()
    known(detector(draw(), batch_size=batch_size, tile=128))
    (whole,), *batches = detector.model.shapes
    assert whole == (77, 128)
    assert all(len(batch) <= batch_size for batch in batches)
    assert sum(map(len, batches)) == 4 * 6  # 384 and 640 in steps of 103
    assert len(batches) == -(-24 // batch_size)


def test_the_last_tiles_end_at_the_border_and_every_pixel_is_in_a_tile():
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 900, 2)
        tiles = Tiles(int(rng.integers(32, 400)), float(rng.uniform(0, 0.7)))
        seen = np.zeros((height, width), int)
        places = tiles.places(int(height), int(width))
        for place in places:
            assert seen[place].shape == (min(tiles.size, height), min(tiles.size, width))
            seen[place] += 1
        assert seen.min() == 1 or len(places) > 1
        assert seen.min() >= 1


@pytest.mark.parametrize('sides', [(128, 128), (100, 128), (60, 30)])
def test_an_image_no_larger_than_a_tile_is_as_without_tiles(make, sides):
    detector = make()
    squares = [(1, 3, 4, 10), (2, 20, 30, 9)]
    image = draw(squares, sides)
    one, other = detector(image), detector(image, tile=128)
    assert detector.model.shapes[0] == detector.model.shapes[1]
    assert len(detector.model.shapes) == 2 and len(one) == 2
    for name in ('boxes', 'scores', 'labels'):
        assert np.array_equal(getattr(one, name), getattr(other, name))


def test_a_strip_is_cut_in_one_direction(make):
    squares = [(3, 900, 5, 20), (1, 2, 30, 20)]
    known(make()(draw(squares, (60, 1000)), tile=128), squares)


def test_an_object_larger_than_a_tile_comes_from_the_whole_image(make):
    squares = [(2, 40, 100, 20), (4, 100, 120, 260)]
    found = make()(draw(squares), tile=128)
    large = found.boxes[np.argmax(found.boxes[:, 2] - found.boxes[:, 0])]
    assert large == pytest.approx([100, 120, 360, 380], abs=5.1)  # a pixel of the resized image
    assert found.names.count('triangle') == 1


def test_masks_are_at_their_places_in_the_whole_image(make):
    found = make(masks=True)(draw(), tile=128)
    known(found)
    assert found.masks.dtype == bool
    image = draw()
    for row, mask in enumerate(found.masks[::-1]):
        assert np.array_equal(mask, image[..., 2] == 50 + row)
    assert len(found.masks) == len(SQUARES)
    nothing = make(masks=True)(draw([]), tile=128)
    assert nothing.masks.shape == (0, *SIDES)


def test_a_turned_file_a_list_and_a_folder_are_cut_upright(make, tmp_path):
    (tmp_path / 'in').mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # the file is turned clockwise when it is read
    path = tmp_path / 'in' / 'a.tif'
    turned = np.ascontiguousarray(np.rot90(draw())[..., ::-1])
    Image.fromarray(turned).save(path, exif=exif)
    detector = make()
    known(detector(path, tile=128))
    for found in detector([path, draw(), Image.open(path)], tile=128, batch_size=3):
        known(found)
    (found,) = detector(tmp_path / 'in', tile=128)
    known(found)


def test_the_tool_cuts_images_and_frames(make, tmp_path, monkeypatch):
    detector = make()
    monkeypatch.setattr('evit_mm.inference.run.Detector', lambda *_: detector)
    (tmp_path / 'in').mkdir()
    cv2.imwrite(str(tmp_path / 'in' / 'a.png'), draw())
    cv2.imwrite(str(tmp_path / 'in' / 'b.png'), draw(SQUARES[:2]))
    result = inference.predict('a.onnx', tmp_path / 'in', tmp_path / 'out', tile=128, batch_size=4)
    expected = [('a.png', s) for s in reversed(SQUARES)]
    expected += [('b.png', s) for s in reversed(SQUARES[:2])]
    assert json.loads((tmp_path / 'out' / 'results.json').read_text()) == result.detections
    assert [(e['file_name'], e['category_name'], e['bbox']) for e in result.detections] == [
        (name, CLASSES[label], [x, y, side, side]) for name, (label, x, y, side) in expected
    ]
    assert (cv2.imread(str(tmp_path / 'out' / 'a.png')) != draw()).any()
    film = cv2.VideoWriter(
        str(tmp_path / 'film.avi'), cv2.VideoWriter_fourcc(*'FFV1'), 8.0, SIDES[::-1]
    )
    for _ in range(2):
        film.write(draw())
    film.release()
    result = inference.predict('a.onnx', tmp_path / 'film.avi', tmp_path / 'film', tile=128)
    assert {e['frame'] for e in result.detections} == {0, 1}
    assert len(read_video(tmp_path / 'film' / 'film.mp4')[0]) == 2


def test_boxes_of_several_parts_are_joined_by_class():
    def part(*rows):
        boxes, scores, labels = zip(*rows, strict=True)
        return InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32),
            scores=torch.tensor(scores),
            labels=torch.tensor(labels),
        )

    left = (slice(0, 100), slice(0, 100)), part(([70, 10, 100, 30], 0.6, 1), ([0, 0, 9, 9], 0.2, 0))
    right = (
        (slice(0, 100), slice(60, 160)),
        part(([10, 10, 60, 30], 0.9, 1), ([10, 10, 60, 30], 0.7, 2), ([80, 80, 90, 90], 0.1, 1)),
    )
    joined = join_tiles([left, right], 100, 160)
    assert joined.bboxes.tolist() == [
        [70, 10, 120, 30], [70, 10, 120, 30], [0, 0, 9, 9], [140, 80, 150, 90],
    ]  # fmt: skip
    assert joined.labels.tolist() == [1, 2, 0, 1]
    assert joined.scores.tolist() == pytest.approx([0.9, 0.7, 0.2, 0.1])


def test_what_cannot_be_cut_is_named(make, monkeypatch):
    detector, kind = make(), logging.getLoggerClass()
    with pytest.raises(ConfigError, match='tile must be an integer of at least 32 pixels, got 0'):
        detector(draw(), tile=0)
    for overlap in (-0.1, 0.95, float('nan'), 'x'):
        with pytest.raises(ConfigError, match='overlap of tiles must be from 0 to 0.9'):
            detector(draw(), tile=128, overlap=overlap)
    assert logging.getLoggerClass() is kind
    monkeypatch.setitem(sys.modules, 'sahi', None)
    with pytest.raises(ConfigError, match=r"tiles need sahi; .*pip install 'evit_mm\[tiles\]'"):
        detector(draw(), tile=128)


def test_the_joined_image_of_the_command_has_the_objects_of_its_parts(tmp_path):
    from pycocotools.coco import COCO

    import tiles_ap

    root = make_shapes(tmp_path / 'set', 1, 3, size=(96, 64), quiet=True)
    coco = COCO(str(root / 'annotations' / 'instances_val.json'))
    image, annotations = tiles_ap.join(coco, root / 'val', 2)
    assert image.shape == (128, 192, 3)
    parts = [cv2.imread(str(root / 'val' / f'00000{n}.jpg')) for n in (1, 2, 3, 1)]
    rows = [np.hstack(parts[:2]), np.hstack(parts[2:])]
    assert np.array_equal(image, np.vstack(rows))
    counts = [len(coco.getAnnIds([n])) for n in (1, 2, 3, 1)]
    assert len(annotations) == sum(counts) > 4
    last = annotations[-1]
    x, y, *sides = coco.loadAnns(coco.getAnnIds([1]))[-1]['bbox']
    assert last['bbox'] == [x + 96, y + 64, *sides]
    whole = COCO()
    whole.dataset = {**coco.dataset, 'images': [{'id': 1}], 'annotations': annotations}
    whole.createIndex()
    kept = [a for a in annotations if not a['iscrowd']]
    boxes = np.array([a['bbox'] for a in kept], np.float32)
    boxes[:, 2:] += boxes[:, :2]
    names = [coco.cats[a['category_id']]['name'] for a in kept]
    labels = np.array([CLASSES.index(name) for name in names])

    def ap(count):
        scores = np.linspace(1, 0.5, count, dtype=np.float32)
        found = Detections(boxes[:count], scores, labels[:count], None, names[:count])
        return tiles_ap.average_precision(whole, {1: found}, CLASSES)

    assert ap(len(kept)) == pytest.approx(1)
    assert 0 < ap(len(kept) // 2) < 1
