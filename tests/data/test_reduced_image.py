import cv2
import numpy as np
import pytest
from mmcv.transforms import Compose
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from evit_mm.data import check_config_data
from evit_mm.data.reduced_image import LoadReducedImageFromFile
from evit_mm.errors import DataError
from tests.conftest import ROOT

FULL = {'type': 'LoadImageFromFile'}


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


def reduced(scale, **options):
    return {'type': 'LoadReducedImageFromFile', 'scale': scale, **options}


def sample(path, width, height, **image):
    """Write a smooth image, and return what a data set passes to its pipeline."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    pixels = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(pixels[..., ::-1]).save(path, quality=95, **image)
    x, y = width / 8, height / 8
    polygon = [x, y, 5 * x, y, 5 * x, 7 * y]
    instance = {
        'bbox': [x, y, 5 * x, 7 * y],
        'bbox_label': 2,
        'ignore_flag': 0,
        'mask': [polygon],
    }
    return {
        'img_path': str(path),
        'img_id': 3,
        'width': width,
        'height': height,
        'instances': [instance, {**instance, 'ignore_flag': 1}],
    }


def run(loading, results, scale=(320, 240), with_mask=True):
    steps = [
        loading,
        {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': with_mask},
        {'type': 'Resize', 'scale': scale, 'keep_ratio': True},
        {'type': 'PackDetInputs'},
    ]
    results = {**results, 'instances': [dict(item) for item in results.get('instances', [])]}
    return Compose([TRANSFORMS.build(step) for step in steps])(results)


@pytest.mark.parametrize(
    ('size', 'loaded'),
    [
        ((640, 480), (240, 320)),
        ((641, 479), (240, 321)),
        ((639, 479), (479, 639)),  # half of it is smaller than 320x240
        ((479, 643), (322, 240)),
        ((1281, 967), (242, 321)),
        ((4000, 3000), (375, 500)),
        ((4000, 500), (63, 500)),
    ],
)
def test_a_training_sees_the_same_boxes_and_almost_the_same_pixels(tmp_path, size, loaded):
    results = sample(tmp_path / 'a.jpg', *size)
    image = TRANSFORMS.build(reduced((320, 240)))({**results})['img']
    assert image.shape[:2] == loaded
    full, ours = run(FULL, results), run(reduced((320, 240)), results)
    expected, found = full['data_samples'], ours['data_samples']
    height, width = full['inputs'].shape[1:]
    assert np.abs(np.subtract(ours['inputs'].shape, full['inputs'].shape)).max() <= 1
    both = min(height, ours['inputs'].shape[1]), min(width, ours['inputs'].shape[2])
    pixels = [x['inputs'][:, : both[0], : both[1]].float() for x in (full, ours)]
    assert (pixels[0] - pixels[1]).abs().mean() < 2
    for name in ('gt_instances', 'ignored_instances'):
        boxes, others = (getattr(x, name).bboxes.tensor for x in (expected, found))
        assert len(boxes) == 1
        assert (boxes - others).abs().max() < 1
        assert getattr(found, name).labels.tolist() == [2]
        areas = [getattr(x, name).masks.areas for x in (expected, found)]
        assert abs(areas[0] / areas[1] - 1) < 0.03


@pytest.mark.parametrize('color_type', ['color', 'color_ignore_orientation'])
def test_exif_orientation(tmp_path, color_type):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    results = sample(tmp_path / 'a.jpg', 640, 480, exif=exif)
    if color_type == 'color':
        results.update(width=480, height=640)
    loaded = [
        TRANSFORMS.build({**loading, 'color_type': color_type})({**results})['img']
        for loading in (FULL, reduced((320, 240)))
    ]
    assert loaded[1].shape[:2] == tuple(side // 2 for side in loaded[0].shape[:2])
    small = cv2.resize(loaded[0], loaded[1].shape[1::-1])
    assert np.abs(small.astype(int) - loaded[1]).mean() < 2


def png(results):
    Image.open(results['img_path']).save(results['img_path'] + '.png')
    results['img_path'] += '.png'


def other_size(results):
    results.update(width=480, height=640)


def no_size(results):
    results.pop('width')


def only_a_path(results):
    for key in ('width', 'height', 'instances'):
        results.pop(key)


def rle(results):
    results['instances'][1]['mask'] = {'size': [480, 640], 'counts': 'PPd9'}


@pytest.mark.parametrize('change', [png, other_size, no_size, only_a_path, rle])
def test_what_cannot_be_reduced_is_read_in_full(tmp_path, change):
    results = sample(tmp_path / 'a.jpg', 640, 480)
    change(results)
    full, ours = (run(x, results, with_mask=False) for x in (FULL, reduced((320, 240))))
    assert full['inputs'].equal(ours['inputs'])
    boxes = [x['data_samples'].gt_instances.bboxes.tensor for x in (full, ours)]
    assert boxes[0].equal(boxes[1])


def test_options_of_the_full_reader(tmp_path):
    results = sample(tmp_path / 'a.jpg', 640, 480)
    image = TRANSFORMS.build(reduced([320, 240], to_float32=True))({**results})['img']
    assert image.dtype == np.float32
    (tmp_path / 'a.jpg').write_bytes(b'')
    assert TRANSFORMS.build(reduced((320, 240), ignore_empty=True))({**results}) is None
    assert repr(LoadReducedImageFromFile((320, 240))).endswith('scale=(320, 240))')


@pytest.mark.parametrize('scale', [(320,), (0, 240), 320])
def test_wrong_scale(scale):
    with pytest.raises(ValueError, match='scale must be a positive'):
        LoadReducedImageFromFile(scale)


@pytest.mark.parametrize('options', [{'color_type': 'grayscale'}, {'imdecode_backend': 'pillow'}])
def test_wrong_decoding(options):
    with pytest.raises(ValueError, match='use LoadImageFromFile'):
        LoadReducedImageFromFile((320, 240), **options)


def test_it_is_refused_in_a_test_pipeline():
    cfg = Config.fromfile(ROOT / 'configs' / 'retinanet_evit_m4_bccd.py')
    cfg.val_dataloader.dataset.pipeline[0] = reduced((320, 240))
    with pytest.raises(
        DataError, match='val: its pipeline loads images by LoadReduced.* for traini'
    ):
        check_config_data(cfg, ('val',))
