"""``Detector`` with images of every kind, from a checkpoint and from an exported file."""

import json
import os
import runpy
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_api

import evit_mm
from evit_mm import Detector, inference
from evit_mm.data import make_shapes
from evit_mm.deploy.export import ExportedDetector
from evit_mm.errors import CheckpointError, ConfigError, DataError, EvitError
from evit_mm.runner.config import load_config
from tests.conftest import ROOT, TINY
from tests.exported import CLASSES, write_exported
from tests.inference.test_run import noise, write_video
from tests.trainings import save_weights, write_config

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

SMALL = """
model['backbone']['arch'].update(depths=(1, 1, 1), num_heads=(1, 1, 2))
model['backbone'].update(out_indices=(1, 2))
model['neck'].update(in_channels=[24, 32], num_outs=2, num_extra_trans_convs=0)
model['bbox_head'].update(anchor_generator=dict(strides=[32, 64]))
model['test_cfg'].update(max_per_img=20, nms_pre=50)
test_dataloader['dataset']['pipeline'] = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
         'scale_factor')),
]
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('detector')


@pytest.fixture(scope='module')
def model(folder):
    """A config and a checkpoint with random weights, in different folders."""
    (folder / 'weights').mkdir()
    config = write_config(folder, folder, SMALL)
    return config, save_weights(config, folder / 'weights' / 'random.pth')


@pytest.fixture(scope='module')
def exported(folder):
    return write_exported(folder / 'quarter.onnx')


@pytest.fixture(scope='module', params=['checkpoint', 'exported file'])
def detector(request, model, exported):
    if request.param == 'checkpoint':
        return Detector(model[1], model[0], 'cpu')
    return Detector(exported)


def assert_equal(found, expected):
    assert len(found) == len(expected) > 0
    for name in ('boxes', 'scores', 'labels'):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert found.names == expected.names


def save(path, **options):
    """Return a function that saves an RGB picture with PIL, in the format of the suffix."""

    def saved(pixels, folder, mode=None):
        image = Image.fromarray(pixels[..., ::-1].copy())
        (image if mode is None else image.convert(mode)).save(folder / path, **options)
        return folder / path

    return saved


def rgba(pixels):
    return np.dstack([pixels, pixels[..., 0]])


def written(path, pixels):
    cv2.imwrite(str(path), pixels)
    return path


PICTURE = noise(7, 60, 90)
GREY = PICTURE[..., 0].copy()
DEEP = PICTURE.astype(np.uint16) << 8 | np.uint16(200)

# the same picture in other forms: each is a function of a folder
COLOURED = {
    'path': lambda f: written(f / 'a.png', PICTURE),
    'text': lambda f: str(written(f / 'a.png', PICTURE)),
    'bmp': lambda f: written(f / 'a.bmp', PICTURE),
    'tiff': lambda f: written(f / 'a.tiff', PICTURE),
    'webp': lambda f: save('a.webp', lossless=True)(PICTURE, f),
    'name without a suffix': lambda f: written(f / 'a.png', PICTURE).rename(f / 'picture'),
    'name of another kind': lambda f: written(f / 'a.png', PICTURE).rename(f / 'b.jpg'),
    'name in other letters': lambda f: written(f / 'a.png', PICTURE).rename(f / 'Ä 象 #%.png'),
    'rgba file': lambda f: written(f / 'a.png', rgba(PICTURE)),
    '16-bit file': lambda f: written(f / 'a.png', DEEP),
    '16-bit rgba file': lambda f: written(f / 'a.png', rgba(DEEP)),
    'column order': lambda f: np.asfortranarray(PICTURE),
    'negative strides': lambda f: PICTURE[::-1].copy()[::-1],
    'bgra array': lambda f: rgba(PICTURE),
    '16-bit array': lambda f: DEEP,
    '16-bit array, big-endian': lambda f: DEEP.astype('>u2'),
    'memory map': lambda f: np.memmap(f / 'a', np.uint8, 'w+', shape=PICTURE.shape)
    + PICTURE,
    'pil': lambda f: Image.fromarray(PICTURE[..., ::-1]),
    'pil file': lambda f: Image.open(written(f / 'a.png', PICTURE)),
    'pil rgba': lambda f: Image.fromarray(rgba(PICTURE)[..., [2, 1, 0, 3]]),
    'pil rgbx': lambda f: Image.fromarray(PICTURE[..., ::-1]).convert('RGBX'),
}  # fmt: skip
GREYS = {
    'path': lambda f: written(f / 'a.png', GREY),
    'bmp': lambda f: written(f / 'a.bmp', GREY),
    'pgm': lambda f: written(f / 'a.pgm', GREY),
    '16-bit file': lambda f: written(f / 'a.png', DEEP[..., 0]),
    '16-bit tiff': lambda f: written(f / 'a.tif', DEEP[..., 0]),
    'alpha file': lambda f: save('a.png')(np.dstack([GREY] * 3), f, 'LA'),
    'two dimensions': lambda f: GREY,
    'one channel': lambda f: GREY[..., None],
    '16-bit array': lambda f: DEEP[..., 0],
    'pil': lambda f: Image.fromarray(GREY),
    'pil with alpha': lambda f: Image.fromarray(GREY).convert('LA'),
    'pil palette': lambda f: Image.fromarray(GREY).convert('P'),
    'pil of 16 bits': lambda f: Image.fromarray(DEEP[..., 0]),
    'pil of 16 bits in 32': lambda f: Image.fromarray(DEEP[..., 0].astype(np.int32)),
    'gif': lambda f: save('a.gif')(np.dstack([GREY] * 3), f, 'L'),
}


@pytest.mark.parametrize('form', COLOURED)
def test_a_picture_in_any_form_gives_the_same(detector, form, tmp_path):
    assert_equal(detector(COLOURED[form](tmp_path)), detector(PICTURE))


@pytest.mark.parametrize('form', GREYS)
def test_a_grey_picture_in_any_form_gives_the_same(detector, form, tmp_path):
    assert_equal(detector(GREYS[form](tmp_path)), detector(np.dstack([GREY] * 3)))


@pytest.mark.parametrize('turn', range(1, 9))
def test_an_orientation_turns_a_file_and_a_pil_image_alike(detector, turn, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = turn
    path = save('a.jpg', exif=exif)(PICTURE, tmp_path)
    upright = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x),
    }[turn](cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION))
    for image in (path, Image.open(path)):
        assert_equal(detector(image), detector(upright))


@pytest.mark.parametrize('color_type', ['color', 'color_ignore_orientation'])
def test_a_pil_image_is_turned_if_the_config_turns_files(model, color_type, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save('a.jpg', exif=exif)(PICTURE, tmp_path)
    options = {'test_dataloader.dataset.pipeline.0.color_type': color_type}
    detector = Detector(model[1], model[0], 'cpu', cfg_options=options)
    found = detector(Image.open(path))
    assert_equal(found, detector(path))
    assert (found.boxes[:, 2].max() > 61) == (color_type != 'color')


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def content(path, data):
    path.write_bytes(data)
    return path


def late(path):
    """A PIL image whose file is damaged behind its header."""
    return Image.open(cut(path, 0.5))


# images that give detections in an image of this height and width
SIZES = {
    'one pixel': (lambda f: written(f / 'a.png', PICTURE[:1, :1]), (1, 1)),
    'one pixel in memory': (lambda f: PICTURE[:1, :1], (1, 1)),
    'one pixel of pil': (lambda f: Image.new('1', (1, 1), 1), (1, 1)),
    'large': (lambda f: noise(3, 1500, 1400), (1500, 1400)),
    'cmyk jpeg': (lambda f: save('a.jpg')(PICTURE, f, 'CMYK'), (60, 90)),
    'cmyk tiff': (lambda f: save('a.tif')(PICTURE, f, 'CMYK'), (60, 90)),
    'pil cmyk': (lambda f: Image.fromarray(PICTURE).convert('CMYK'), (60, 90)),
    'pil ycbcr': (lambda f: Image.fromarray(PICTURE).convert('YCbCr'), (60, 90)),
    'pil lab': (lambda f: Image.new('LAB', (90, 60), (200, 128, 128)), (60, 90)),
    'pil hsv': (lambda f: Image.fromarray(PICTURE).convert('HSV'), (60, 90)),
    'palette': (lambda f: save('a.png')(PICTURE, f, 'P'), (60, 90)),
    'transparent palette': (
        lambda f: save('a.png', transparency=3)(PICTURE, f, 'P'), (60, 90)),
    'bilevel': (lambda f: save('a.png')(PICTURE, f, '1'), (60, 90)),
    'gif': (lambda f: save('a.gif')(PICTURE, f), (60, 90)),
    'moving gif': (lambda f: save('a.gif', save_all=True, append_images=[
        Image.new('RGB', (90, 60))])(PICTURE, f), (60, 90)),
    'progressive jpeg': (lambda f: save('a.jpg', progressive=True)(PICTURE, f), (60, 90)),
    'jpeg 2000': (lambda f: save('a.jp2')(PICTURE, f), (60, 90)),
    'lossy webp': (lambda f: save('a.webp', quality=5)(PICTURE, f), (60, 90)),
    'interlaced tiff': (lambda f: save('a.tif', compression='tiff_lzw')(PICTURE, f), (60, 90)),
}  # fmt: skip


@pytest.mark.parametrize('kind', SIZES)
def test_an_odd_image_gives_detections_within_it(detector, kind, tmp_path):
    make, (height, width) = SIZES[kind]
    found = detector(make(tmp_path))
    assert len(found) > 0 and found.masks is None
    assert (found.boxes >= 0).all() and (found.boxes <= [[width, height] * 2]).all()
    assert [CLASSES[label] for label in found.labels] == found.names
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (
        np.float32, np.float32, np.int64,
    )  # fmt: skip
    if isinstance(detector.model, ExportedDetector):
        assert found.boxes[0] == pytest.approx([0, 0, width / 2, height / 2], rel=1e-5)


FILES = {
    'empty': (lambda f: content(f / 'a.jpg', b''), "a.jpg': the image cannot be decoded"),
    'text': (lambda f: content(f / 'a.jpg', b'no image'), "a.jpg': the image cannot be decoded"),
    'truncated jpeg': (lambda f: cut(save('a.jpg')(PICTURE, f), 0.5), "a.jpg': .*is truncated"),
    'half a header': (lambda f: cut(save('a.png')(PICTURE, f), 0.003), "a.png': .*be decoded"),
    'float tiff': (
        lambda f: written(f / 'a.tif', PICTURE.astype(np.float32)), "a.tif'.*be decoded"),
    'missing': (lambda f: f / 'a.jpg', "a.jpg' does not exist"),
    'missing text': (lambda f: str(f / 'a.jpg'), "a.jpg' does not exist"),
    'content in place of a path': (lambda f: 5000 * 'x', "x' cannot be opened: File name too long"),
    'nothing': (lambda f: '', 'the path of the image is empty'),
    'folder without images': (lambda f: f, 'no image found in'),
    'broken video': (lambda f: content(f / 'a.mp4', b'none'), "a.mp4' cannot be opened"),
    'absent camera': (lambda f: '91', "'91' cannot be opened"),
    'flat': (lambda f: written(f / 'a.png', noise(0, 5, 2000)), "a.png': 2000x5 pixels .* thin"),
    'thin': (lambda f: written(f / 'a.png', noise(0, 2000, 5)), "a.png': 5x2000 pixels .* thin"),
}  # fmt: skip
VALUES = {
    'floats': (lambda f: PICTURE / 255, 'the pixels are of type float64; convert them to uint8'),
    'single floats': (lambda f: PICTURE.astype(np.float32), 'of type float32; convert'),
    'half floats': (lambda f: PICTURE.astype(np.float16), 'of type float16; convert'),
    'bool': (lambda f: PICTURE > 9, 'of type bool; convert'),
    'signed': (lambda f: PICTURE.astype(np.int64), 'of type int64; convert'),
    'wide': (lambda f: PICTURE.astype(np.uint32), 'of type uint32; convert'),
    'complex': (lambda f: PICTURE.astype(complex), 'of type complex128; convert'),
    'objects': (lambda f: PICTURE.astype(object), 'of type object; convert'),
    'characters': (lambda f: PICTURE.astype('S3'), 'of type .S3; convert'),
    'no rows': (lambda f: PICTURE[:0], r'the shape \(0, 90, 3\); give'),
    'no columns': (lambda f: PICTURE[:, :0], r'the shape \(60, 0, 3\); give'),
    'no channels': (lambda f: PICTURE[..., :0], r'the shape \(60, 90, 0\); give'),
    'two channels': (lambda f: PICTURE[..., :2], r'the shape \(60, 90, 2\); give'),
    'five channels': (lambda f: np.dstack([GREY] * 5), r'the shape \(60, 90, 5\); give'),
    'channels first': (lambda f: PICTURE.transpose(2, 0, 1), r'the shape \(3, 60, 90\); give'),
    'batch': (lambda f: PICTURE[None], r'the shape \(1, 60, 90, 3\); give'),
    'row': (lambda f: GREY[0], r'the shape \(90,\); give'),
    'number': (lambda f: np.array(3, np.uint8), r'the shape \(\); give'),
    'pil floats': (lambda f: Image.fromarray(GREY.astype(np.float32)), 'of type float32'),
    'pil negative': (lambda f: Image.fromarray(GREY.astype(np.int32) - 9), 'of type int32'),
    'pil empty': (lambda f: Image.new('RGB', (0, 5)), r'the shape \(5, 0, 3\); give'),
    'pil truncated': (lambda f: late(save('a.png')(PICTURE, f)), 'the PIL image cannot be decoded'),
    'pil premultiplied': (lambda f: Image.new('La', (9, 9)), 'the PIL image cannot be decoded'),
    'none': (lambda f: None, 'must be a path, an array or a PIL image, got NoneType'),
    'integer': (lambda f: 3, 'must be a path, an array or a PIL image, got int'),
    'bytes': (lambda f: b'\xff\xd8', 'got bytes'),
    'dictionary': (lambda f: {'img': PICTURE}, 'got dict'),
    'tensor': (lambda f: torch.zeros(3, 8, 8), 'got Tensor'),
    'generator': (lambda f: (x for x in [PICTURE]), 'got generator'),
}  # fmt: skip


@pytest.mark.parametrize('kind', FILES)
def test_a_file_that_cannot_be_used_gives_one_sentence(detector, kind, tmp_path):
    make, sentence = FILES[kind]
    with pytest.raises(DataError, match=sentence) as error:
        detector(make(tmp_path))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('kind', VALUES)
def test_another_value_gives_one_sentence_and_its_place_in_a_list(detector, kind, tmp_path):
    make, sentence = VALUES[kind]
    with pytest.raises(DataError, match=f'^the image: .*{sentence}') as error:
        detector(make(tmp_path))
    assert '\n' not in str(error.value)
    with pytest.raises(DataError, match=rf'^image\[1\]: .*{sentence}'):
        detector([PICTURE, make(tmp_path)])


def test_cmyk_of_a_file_and_of_pil_are_close(tmp_path):
    """OpenCV and PIL convert it with roundings of their own."""
    from evit_mm.data.images import to_bgr

    path = save('a.jpg', quality=95)(PICTURE, tmp_path, 'CMYK')
    difference = np.abs(to_bgr(Image.open(path)).astype(int) - cv2.imread(str(path)))
    assert difference.max() <= 3 and difference.mean() < 1


def test_an_image_in_memory_stays_as_it_is(detector):
    image = PICTURE.copy()
    image.flags.writeable = False
    detector(image)
    turned = Image.fromarray(PICTURE)
    detector(turned)
    assert np.array_equal(image, PICTURE) and np.array_equal(np.asarray(turned), PICTURE)


# --- lists, folders, videos


def test_a_list_gives_a_list_in_its_order(detector, monkeypatch, tmp_path):
    path = written(tmp_path / 'a.png', PICTURE)
    images = [path, noise(1), str(path), Image.fromarray(GREY), noise(2), noise(3), noise(4)]
    alone = [detector(image) for image in images]
    sizes, detect = [], detector.detect
    monkeypatch.setattr(detector, 'detect', lambda x, _: sizes.append(len(x)) or detect(x))
    for given in (images, tuple(images)):
        together = detector(given, batch_size=2)
        assert (
            type(together) is list and [x.path for x in together] == [path, None, path] + [None] * 4
        )
        for found, expected in zip(together, alone, strict=True):
            assert len(found) == len(expected) > 0 and found.frame is None
            assert found.boxes == pytest.approx(expected.boxes, abs=1e-2)
    assert sizes == 2 * [1, 1, 2, 2, 1]
    assert detector([]) == []
    with pytest.raises(ConfigError, match='batch_size must be an integer of at least 1, got 0'):
        detector(images, batch_size=0)


def test_a_list_with_a_bad_image_is_refused_by_its_name(detector, tmp_path):
    bad = content(tmp_path / 'bad.png', b'')
    with pytest.raises(DataError, match=r"bad.png': the image cannot be decoded"):
        detector([PICTURE, bad, PICTURE])
    with pytest.raises(DataError, match=r'^image\[1\]: an image must be .* got list'):
        detector([PICTURE, [PICTURE]])


def test_a_folder_gives_an_iterator_that_skips_with_a_warning(detector, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('evit_mm.inference.detector.print_log', lambda text, *_: said.append(text))
    (tmp_path / 'deep').mkdir()
    good = [written(tmp_path / name, PICTURE) for name in ('a.png', 'deep/b.bmp', 'z.jpg')]
    bad = content(tmp_path / 'c.jpg', b'')
    content(tmp_path / 'notes.txt', b'no image')
    found = detector(tmp_path)
    assert iter(found) is found and not said
    assert [x.path for x in found] == good
    assert said == [f"skipped '{bad}': the image cannot be decoded"]
    assert_equal(next(detector(str(tmp_path))), detector(PICTURE))


def test_a_video_gives_its_frames_one_after_the_other(detector, tmp_path, monkeypatch):
    film = write_video(tmp_path / 'film.mp4', 5)
    capture, read = cv2.VideoCapture(str(film)), []
    expected = [detector(capture.read()[1]) for _ in range(5)]
    found = []
    monkeypatch.setattr(
        type(detector.pipeline), 'load', watched(type(detector.pipeline).load, read)
    )
    for index, frame in enumerate(detector(film, batch_size=1)):
        assert len(read) <= index + 2  # not the whole video in advance
        found.append(frame)
    assert [(x.path, x.frame) for x in found] == [(film, index) for index in range(5)]
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)


def watched(function, calls):
    return lambda *args: calls.append(1) or function(*args)


# --- what is opened


def test_the_config_beside_a_checkpoint_is_taken_if_it_is_the_only_one(model, tmp_path):
    cfg = load_config(model[0])
    weights = tmp_path / 'a.pth'
    weights.write_bytes(model[1].read_bytes())
    with pytest.raises(ConfigError, match=r"a.pth' has no config \(\*\.py\); give the config"):
        Detector(weights)
    cfg.dump(tmp_path / 'tiny.py')
    detector = Detector(weights, device='cpu')
    assert detector.cfg.filename == str(tmp_path / 'tiny.py') and detector.classes == (*CLASSES,)
    expected = Detector(model[1], model[0], 'cpu')(PICTURE)
    for given in (None, tmp_path / 'tiny.py', cfg):
        assert_equal(Detector(str(weights), given, 'cpu')(PICTURE), expected)
    cfg.dump(tmp_path / 'other.py')
    with pytest.raises(ConfigError, match=r'has 2 configs \(other.py, tiny.py\); give the config'):
        Detector(weights)


def test_an_exported_file_under_another_suffix_is_named(exported, tmp_path):
    file = tmp_path / 'a.ONNX'
    file.write_bytes(exported.read_bytes())
    with pytest.raises(CheckpointError, match=r"a\.ONNX' is an ONNX model, .* name \*\.onnx in"):
        Detector(file)


def test_images_of_another_size_than_that_of_a_static_file_are_named(tmp_path, monkeypatch):
    file = write_exported(tmp_path / 'one.onnx', static_size=[128, 96])
    detector, good = Detector(file), np.full((48, 64, 3), 200, np.uint8)
    bad = good[:, :48]
    said = (
        r"one image of 128x128 pixels after resizing, but '.*one\.onnx' was exported with --static"
    )
    with pytest.raises(DataError, match=rf'^image\[1\]: {said}'):
        detector([good, bad])
    with pytest.raises(DataError, match=rf'^the image: {said}'):
        detector(bad)
    images = tmp_path / 'images'
    images.mkdir()
    for name, pixels in (('a', good), ('b', bad), ('c', bad), ('d', good)):
        cv2.imwrite(str(images / f'{name}.png'), pixels)
    with pytest.raises(DataError, match=rf"^'.*b\.png': {said}"):
        detector(images / 'b.png')
    skipped = []
    log = 'evit_mm.inference.detector.print_log'
    monkeypatch.setattr(log, lambda text, *_: skipped.append(text))
    assert [found.path.stem for found in detector(images, batch_size=2)] == ['a', 'd']
    assert [text.partition(': one image of')[0] for text in skipped] == [
        f"skipped '{images / name}'" for name in ('b.png', 'c.png')
    ]
    film = write_video(tmp_path / 'film.mp4')  # 96x80
    with pytest.raises(DataError, match=rf"^'.*film\.mp4': {said}"):
        list(detector(film))
    with pytest.raises(DataError, match=rf"^'.*film\.mp4': {said}"):
        inference.predict(file, film, tmp_path / 'film')
    prediction = inference.predict(file, images, tmp_path / 'out')
    assert {found['file_name'] for found in prediction.detections} == {'a.png', 'd.png'}
    assert [
        fault.partition("' was skipped: one image of 128x128")[0] for fault in prediction.faults
    ] == [f"'{images / name}" for name in ('b.png', 'c.png')]


def test_a_config_stays_as_it_is_and_takes_options(model):
    cfg = load_config(model[0])
    before = cfg.pretty_text
    options = {'model.test_cfg.max_per_img': 3}
    for config in (cfg, model[0]):
        assert len(Detector(model[1], config, 'cpu', cfg_options=options)(PICTURE)) == 3
    assert cfg.pretty_text == before


def test_what_cannot_be_opened_is_named(model, exported, tmp_path):
    with pytest.raises(CheckpointError, match="no.pth' does not exist"):
        Detector(tmp_path / 'no.pth')
    with pytest.raises(EvitError, match="no.onnx' does not exist"):
        Detector(tmp_path / 'no.onnx')
    with pytest.raises(ConfigError, match=r"tiny.py' is a config, not a model; give a checkpoint"):
        Detector(model[0])
    with pytest.raises(ConfigError, match='is a classifier, not a detector'):
        Detector(model[1], ROOT / 'configs' / 'evit_m0_imagenet.py')
    classifier = write_exported(tmp_path / 'a.onnx', task='classification')
    with pytest.raises(EvitError, match=r"a.onnx' is for classification, but detection is needed"):
        Detector(classifier)
    with pytest.raises(EvitError, match=r"b.onnx' has all boxes and no options for NMS"):
        Detector(write_exported(tmp_path / 'b.onnx', outputs=['boxes', 'scores']))
    for name, value in (('device', 'cpu'), ('half', True), ('fuse', True)):
        said = f"{name}={value} cannot be used with the exported file '.*quarter.onnx'.*; remove"
        with pytest.raises(ConfigError, match=said):
            Detector(exported, **{name: value})
    with pytest.raises(ConfigError, match='cfg_options cannot change the exported file'):
        Detector(exported, cfg_options={'model.test_cfg.max_per_img': 3})
    reader = [{'type': 'LoadSecretly'}]
    with pytest.raises(ConfigError, match='LoadSecretly') as error:
        Detector(write_exported(tmp_path / 'c.onnx', reader=reader))
    assert 'give the config' in str(error.value)


# --- exported files


@pytest.mark.parametrize(('channels', 'score'), [('RGB', 200), ('BGR', 10)])
def test_an_exported_file_says_all_that_it_needs(channels, score, tmp_path):
    """Its score is the largest value of the first channel."""
    detector = Detector(write_exported(tmp_path / 'a.onnx', channels=channels))
    found = detector(np.full((50, 100, 3), (10, 20, 200), np.uint8))
    assert found.names == ['star'] and found.labels.tolist() == [3]
    assert found.scores == pytest.approx([score / 255])
    assert found.boxes.tolist() == [[0, 0, 50, 25]]


def test_mean_and_deviation_of_an_exported_file_are_used(tmp_path):
    detector = Detector(write_exported(tmp_path / 'a.onnx', mean=[50, 0, 0], std=[2, 1, 1]))
    found = detector(np.full((50, 100, 3), (10, 20, 200), np.uint8))
    assert found.scores == pytest.approx([75 / 255])
    padded = {'mean': [50, 0, 0], 'std': [2, 1, 1], 'pad_value': 90, 'pad_size_divisor': 96}
    found = Detector(write_exported(tmp_path / 'b.onnx', **padded))(PICTURE[:, :, :] // 9)
    assert found.scores == pytest.approx([90 / 255])


@pytest.mark.parametrize(('pad_to', 'sides'), [('square', (128, 128)), ([160, 192], (192, 160))])
@pytest.mark.parametrize('reader', ['color', 'grayscale'])
def test_padding_of_the_pipeline_is_used(pad_to, sides, reader, tmp_path):
    grey = {'in_channels': 1, 'mean': [0.0], 'std': [1.0], 'channels': 'BGR'}
    step = {'type': 'LoadImageFromFile', 'color_type': reader}
    more = {'reader': [step], **(grey if reader == 'grayscale' else {})}
    file = write_exported(tmp_path / 'a.onnx', pad_to=pad_to, pad_pixel=114.0, **more)
    path = written(tmp_path / 'a.png', np.full((50, 100, 3), 9, np.uint8))
    image = Detector(file).prepare(path)['inputs'].numpy()
    assert image.shape == (len(more.get('mean', [0] * 3)), *sides)
    assert (image[:, :64, :128] == 9).all()
    assert (image[:, 64:] == 114).all() and (image[:, :, 128:] == 114).all()


def test_an_exported_file_takes_a_config_that_fits(model, exported, tmp_path):
    cfg = load_config(model[0])
    cfg.model.data_preprocessor.update(mean=[0.0] * 3, std=[1.0] * 3)
    cfg.test_dataloader.dataset.metainfo.palette = [(1, 2, 3)] * 5
    cfg.test_dataloader.dataset.pipeline[1].scale = (128, 128)
    detector = Detector(exported, cfg)
    assert_equal(detector(PICTURE), Detector(exported)(PICTURE))
    assert detector.model.dataset_meta['palette'] == [(1, 2, 3)] * 5
    with pytest.raises(ConfigError, match='quarter.onnx.* was exported with mean='):
        Detector(exported, model[0])
    options = {'test_dataloader.dataset.metainfo.classes': ['a', 'b', 'c', 'd', 'e']}
    with pytest.raises(ConfigError, match='quarter.onnx.* with the classes'):
        Detector(exported, cfg, cfg_options=options)


STRANGERS = {
    'a program': [{'type': 'subprocess.Popen', 'args': ['touch', 'RAN']}],
    'a program in a step': [{'type': 'Compose', 'transforms': [{'type': 'os.system'}]}],
    'a module': [{'type': 'antigravity'}],
    'a scope': [{'type': 'LoadImageFromFile', '_scope_': 'antigravity'}],
    'a connection': [{'type': 'LoadImageFromFile', 'backend_args': {'backend': 'http'}}],
    'no list': {'type': 'subprocess.Popen', 'args': ['touch', 'RAN']},
    'no dict': ['subprocess.Popen'],
}


@pytest.mark.parametrize('kind', STRANGERS)
def test_a_reader_of_a_stranger_is_not_built(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_exported(tmp_path / 'a.onnx', reader=STRANGERS[kind])
    with pytest.raises(ConfigError, match=r"a\.onnx': its reader .*; give the config"):
        Detector(file)
    assert not (tmp_path / 'RAN').exists() and 'antigravity' not in sys.modules


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('classes', 'http://127.0.0.1/names.txt'),
        ('classes', [1, 2]),
        ('outputs', None),
        ('mean', 'red'),
        ('std', [0, 0, 0]),
        ('channels', 5),
        ('scale', [-5, 0]),
        ('scale', [320]),
        ('keep_ratio', 'no'),
        ('pad_to', 'oval'),
        ('pad_to', [0, 2]),
        ('pad_pixel', 'grey'),
        ('pad_size_divisor', -32),
        ('pad_value', None),
        ('score_thr', 'x'),
        ('in_channels', '3'),
        ('nms', {'iou_threshold': 0.5}),
    ],
)
def test_damaged_metadata_are_named(key, value, tmp_path):
    file = write_exported(tmp_path / 'a.onnx', **{key: value})
    with pytest.raises(EvitError, match=rf"a\.onnx': its metadata 'evit_mm' is damaged \({key}: "):
        Detector(file)


def test_missing_metadata_are_named(tmp_path):
    import onnx

    file = write_exported(tmp_path / 'a.onnx')
    content = onnx.load(file)
    whole = json.loads(content.metadata_props[0].value)
    for key in ('classes', 'mean', 'scale', 'pad_value'):
        rest = {name: value for name, value in whole.items() if name != key}
        onnx.helper.set_model_props(content, {'evit_mm': json.dumps(rest)})
        onnx.save_model(content, str(file))
        with pytest.raises(EvitError, match=rf'is damaged \({key}: missing\)'):
            Detector(file)


# --- results


@pytest.fixture(scope='module')
def mask_rcnn(tmp_path_factory):
    folder = tmp_path_factory.mktemp('masks')
    config = folder / 'mask_rcnn.py'
    config.write_text(
        f'_base_ = {str(ROOT / "configs" / "mask_rcnn_evit_m4_coco.py")!r}\n'
        f'model = dict(backbone=dict(arch=dict({TINY!r}, _delete_=True), init_cfg=None),\n'
        '    neck=dict(in_channels=[16, 24, 32]),\n'
        '    test_cfg=dict(rpn=dict(max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=6)))\n'
        'test_dataloader = dict(dataset=dict(pipeline=[\n'
        "    dict(type='LoadImageFromFile'),\n"
        "    dict(type='Resize', scale=(128, 128), keep_ratio=True),\n"
        "    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape',\n"
        "         'img_shape', 'scale_factor'))]))\n"
    )
    return str(config), save_weights(str(config), folder / 'random.pth')


def test_masks_are_those_of_the_json_file(mask_rcnn, real_data, tmp_path):
    photograph = real_data('photos') / 'chelsea.png'
    detector = Detector(mask_rcnn[1], mask_rcnn[0], 'cpu')
    found = detector(photograph)
    assert found.masks.shape == (6, 300, 451) and found.masks.dtype == bool
    entries = inference.predict(
        mask_rcnn[1], photograph, tmp_path, mask_rcnn[0], device='cpu'
    ).detections
    for row, entry in enumerate(entries):
        assert np.array_equal(found.masks[row], mask_api.decode(entry['segmentation']))
        assert entry['category_name'] == found.names[row]
    assert found.masks.any()
    none = Detector(*mask_rcnn[::-1], 'cpu', cfg_options={'model.test_cfg.rcnn.score_thr': 1.0})
    nothing = none(photograph)
    assert len(nothing) == 0 and nothing.masks.shape == (0, 300, 451) and nothing.names == []
    supervision = pytest.importorskip('supervision')
    assert nothing.to_supervision() == supervision.Detections.empty() or (
        len(nothing.to_supervision()) == 0
    )


def test_supervision_draws_boxes_labels_and_masks(mask_rcnn, real_data):
    supervision = pytest.importorskip('supervision')
    path = real_data('photos') / 'chelsea.png'
    found = Detector(mask_rcnn[1], mask_rcnn[0], 'cpu')(path)
    given = found.to_supervision()
    assert given.data['class_name'].tolist() == found.names and len(given) == len(found) == 6
    assert given[given.confidence >= np.median(found.scores)].mask.shape == (3, 300, 451)
    picture = cv2.imread(str(path))
    for annotator, where in (
        (supervision.MaskAnnotator(), found.masks.any(0)),
        (supervision.BoxAnnotator(thickness=2), None),
        (supervision.LabelAnnotator(), None),
    ):
        drawn = annotator.annotate(picture.copy(), given)
        changed = (drawn != picture).any(2)
        assert changed.any()
        if where is not None:
            assert not changed[~where].any() and changed[where].mean() > 0.9


def test_supervision_missing_is_named(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, 'supervision', None)
    with pytest.raises(ConfigError, match=r"needs supervision; .*: pip install 'evit_mm\[demo\]'"):
        Detector(exported)(PICTURE).to_supervision()


# --- the package and the tools


@pytest.mark.slow
def test_the_package_loads_it_at_its_first_use():
    code = (
        'import sys, evit_mm\n'
        'before = {"mmdet", "evit_mm.inference", "evit_mm.deploy"} & set(sys.modules)\n'
        'from evit_mm import Detector\n'
        'print(before, Detector.__module__, "Detector" in evit_mm.__all__)\n'
    )
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == 'set() evit_mm.inference.detector True'
    with pytest.raises(AttributeError, match="module 'evit_mm' has no attribute 'Detektor'"):
        evit_mm.Detektor  # noqa: B018


def test_the_tool_takes_options_between_its_arguments_and_no_config(tmp_path, monkeypatch):
    parse = runpy.run_path(str(ROOT / 'tools' / 'predict.py'), run_name='tool')['parse_args']
    for words, expected in (
        ('a.onnx b.jpg --out c', (None, 'a.onnx', 'b.jpg')),
        ('--out c a.onnx b.jpg', (None, 'a.onnx', 'b.jpg')),
        ('a.onnx --out c b.jpg', (None, 'a.onnx', 'b.jpg')),
        ('a.py b.pth --out c d.jpg', ('a.py', 'b.pth', 'd.jpg')),
        ('a.py b.pth d.jpg --out c --half', ('a.py', 'b.pth', 'd.jpg')),
    ):
        monkeypatch.setattr(sys, 'argv', ['predict.py', *words.split()])
        args = parse()
        assert (args.config, args.model, args.source) == expected and args.out_dir == 'c'


def test_prediction_with_an_exported_file_has_ids_with_a_config_only(model, exported, tmp_path):
    data = make_shapes(tmp_path / 'set', 1, 3, size=(96, 80), quiet=True)
    cfg = load_config(model[0])
    cfg.model.data_preprocessor.update(mean=[0.0] * 3, std=[1.0] * 3)
    cfg.test_dataloader.dataset.data_root = str(data)
    alone = inference.predict(exported, data / 'val', tmp_path / 'alone')
    ours = inference.predict(exported, data / 'val', tmp_path / 'ours', cfg)
    coco = json.loads((data / 'annotations' / 'instances_val.json').read_text())
    assert [e['image_id'] for e in ours.detections] == [image['id'] for image in coco['images']]
    for found in (alone, ours):
        assert [e['file_name'] for e in found.detections] == [
            image['file_name'] for image in coco['images']
        ]
        for entry in found.detections:
            assert entry['bbox'] == pytest.approx([0, 0, 48, 40], abs=1e-3)
            assert (entry['category_name'], entry['category_id']) == ('star', 4)
    assert [e['image_id'] for e in alone.detections] == [e['file_name'] for e in alone.detections]
    assert len(list((tmp_path / 'alone').glob('*.*'))) == 4
