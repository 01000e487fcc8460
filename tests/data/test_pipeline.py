import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from evit_mm.data.pipeline import (
    ImageReader,
    PredictionPipeline,
    dataset_reader,
    describe_loading,
    loading_steps,
    without_annotations,
)
from evit_mm.errors import ConfigError, DataError
from tests.conftest import ROOT


@TRANSFORMS.register_module(force=True)
class LoadNumpy(BaseTransform):
    """A transform as users write it for multispectral images."""

    def transform(self, results):
        image = np.load(results['img_path'])
        return {**results, 'img': image, 'img_shape': image.shape[:2], 'ori_shape': image.shape[:2]}


@TRANSFORMS.register_module(force=True)
class LoadNothing(BaseTransform):
    def transform(self, results):
        return results


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


def config(*loading, **options):
    cfg = Config.fromfile(ROOT / 'configs' / 'retinanet_evit_m4_coco.py')
    loading = loading or ({'type': 'LoadImageFromFile', **options},)
    cfg.test_dataloader.dataset.pipeline[:1] = loading
    return cfg


def test_pixels_in_memory_go_the_way_of_a_file(tmp_path):
    prepare = PredictionPipeline(config())
    pixels = np.zeros((300, 600, 3), np.uint8)
    pixels[..., 0] = 200  # blue
    cv2.imwrite(str(tmp_path / 'a.png'), pixels)
    for image in (pixels, tmp_path / 'a.png', str(tmp_path / 'a.png')):
        found = prepare(image)
        assert found['inputs'].shape == (3, 667, 1333)  # as large as fits into 1333x800
        assert found['inputs'].amax((1, 2)).tolist() == [200, 0, 0]
        assert np.array_equal(found['picture'], pixels)
        sample = found['data_samples']
        assert sample.ori_shape == (300, 600) and sample.img_shape == (667, 1333)
        assert sample.img_id == 0 and 'bboxes' not in sample.gt_instances
    with pytest.raises(DataError, match='^9000x1 pixels are too thin to resize$'):
        prepare(np.zeros((1, 9000, 3), np.uint8))


def test_floats_that_the_config_asks_for_are_also_made_of_pixels_in_memory():
    pixels = np.zeros((40, 60, 3), np.uint8)
    assert PredictionPipeline(config(to_float32=True))(pixels)['inputs'].dtype == torch.float32
    assert PredictionPipeline(config())(pixels)['inputs'].dtype == torch.uint8


@pytest.mark.parametrize(
    'options',
    [
        {'color_type': 'unchanged'},
        {'color_type': 'grayscale'},
        {'imdecode_backend': 'tifffile'},
        {'type': 'LoadNumpy'},
    ],
)
def test_pixels_in_memory_are_refused_where_the_config_reads_something_else(options, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)  # tifffile may be missing
    pipeline = PredictionPipeline(config(**options))
    for ask in (pipeline.check_memory, lambda: pipeline(np.zeros((40, 60, 3), np.uint8))):
        with pytest.raises(ConfigError, match='cannot take frames of a video or a camera, or an a'):
            ask()
    PredictionPipeline(config(color_type='color_ignore_orientation')).check_memory()


def test_images_are_read_with_the_options_of_the_config(tmp_path):
    deep = np.random.default_rng(0).integers(0, 2**16, (6, 8, 3), np.uint16)
    cv2.imwrite(str(tmp_path / 'a.png'), deep)
    assert np.array_equal(ImageReader([{'type': 'LoadImageFromFile'}])(tmp_path / 'a.png'),
                          cv2.imread(str(tmp_path / 'a.png')))  # fmt: skip
    read = ImageReader(
        [dict(type='LoadImageFromFile', color_type='unchanged'), dict(type='Resize')]
    )
    assert np.array_equal(read(tmp_path / 'a.png'), deep)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (8, 6)).save(tmp_path / 'turned.jpg', exif=exif)
    for options, shape in (
        ({}, (8, 6, 3)),
        ({'color_type': 'color_ignore_orientation'}, (6, 8, 3)),
    ):
        assert ImageReader([dict(type='LoadImageFromFile', **options)])(
            tmp_path / 'turned.jpg'
        ).shape == shape  # fmt: skip
    five = np.arange(6 * 8 * 5, dtype=np.float32).reshape(6, 8, 5)
    np.save(tmp_path / 'a.npy', five)
    assert np.array_equal(ImageReader([{'type': 'LoadNumpy'}])(tmp_path / 'a.npy'), five)
    found = PredictionPipeline(config({'type': 'LoadNumpy'}))(tmp_path / 'a.npy')
    assert found['inputs'].shape == (5, 800, 1067) and found['picture'].shape == (6, 8, 3)
    for k in range(2):
        cv2.imwrite(str(tmp_path / f'{k}.png'), deep[..., k])
    files = [tmp_path / '0.png', tmp_path / '1.png']
    many = ImageReader([{'type': 'LoadMultiChannelImageFromFiles'}])
    assert np.array_equal(many(files), deep[..., :2])
    for loading in ('LoadMultiChannelImageFromFiles', 'LoadImageFromNDArray'):
        with pytest.raises(ConfigError, match=f'starts with {loading}, which cannot read one im'):
            ImageReader([{'type': loading}])(tmp_path / '0.png')
    with pytest.raises(ConfigError, match='starts with LoadNothing, which sets no img'):
        ImageReader([{'type': 'LoadNothing'}])(tmp_path / '0.png')


def test_files_that_cannot_be_read_give_one_sentence(tmp_path):
    for name, content in (('empty.jpg', b''), ('broken.png', b'\x89PNG'), ('a.npy', b'no array')):
        (tmp_path / name).write_bytes(content)
    read = ImageReader()
    for name in ('empty.jpg', 'broken.png', 'gone.jpg', '.'):
        with pytest.raises(DataError, match='^the image cannot be decoded$'):
            read(tmp_path / name)
    with pytest.raises(DataError, match='^the image cannot be decoded$'):
        ImageReader([dict(type='LoadImageFromFile', ignore_empty=True)])(tmp_path / 'empty.jpg')
    with pytest.raises(DataError, match=r'^the image cannot be decoded by LoadNumpy \(\w+: .*'):
        ImageReader([{'type': 'LoadNumpy'}])(tmp_path / 'a.npy')


@pytest.mark.parametrize(
    ('step', 'said'),
    [
        ({'type': 'LoadNothingKnown'}, 'LoadNothingKnown is not in the'),
        ({'type': 'LoadImageFromFile', 'colour': 1}, "unexpected keyword argument 'colour'"),
    ],
)
def test_a_step_that_cannot_be_built_is_an_error_of_the_config(step, said):
    with pytest.raises(ConfigError, match=f'^{step["type"]}, with which a pipeline .*{said}'):
        ImageReader([step])


def test_a_missing_package_is_no_fault_of_the_image(tmp_path, monkeypatch):
    def missing(*_, **__):
        raise ImportError('`tifffile` is not installed')

    monkeypatch.setattr(mmcv, 'imfrombytes', missing)
    (tmp_path / 'a.tif').write_bytes(b'')
    with pytest.raises(ConfigError, match='needs a package that is not installed: `tifffile`'):
        ImageReader()(tmp_path / 'a.tif')


@pytest.mark.parametrize(
    ('backend', 'package'),
    [('pillow', 'pillow'), ('tifffile', 'tifffile'), ('turbojpeg', 'PyTurboJPEG')],
)
def test_a_backend_whose_package_is_missing_is_refused(monkeypatch, backend, package):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    step = {'type': 'LoadImageFromFile', 'imdecode_backend': backend}
    with pytest.raises(ConfigError, match=f"backend='{backend}', but .* pip install {package}$"):
        ImageReader([step])


def test_a_backend_that_nothing_has_started_or_knows_is_refused(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
    step = {'type': 'LoadImageFromFile', 'imdecode_backend': 'turbojpeg'}
    with pytest.raises(ConfigError, match=r"called mmcv.use_backend\('turbojpeg'\); call it in"):
        ImageReader([step])
    step['imdecode_backend'] = 'tiffile'
    with pytest.raises(ConfigError, match=r"does not have \(did you mean 'tifffile'\?\); choose"):
        ImageReader([step])
    monkeypatch.setattr(mmcv, 'imfrombytes', lambda content, backend: None)
    for backend in (None, 'cv2', 'pillow', 'turbojpeg'):
        ImageReader([{'type': 'LoadImageFromFile', 'imdecode_backend': backend}])


def test_a_truncated_file_is_no_image_for_any_step(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.jpg'), np.full((64, 64, 3), 90, np.uint8))
    whole = (tmp_path / 'a.jpg').read_bytes()
    (tmp_path / 'b.jpg').write_bytes(whole[:-20])
    channels = ImageReader([{'type': 'mmdet.LoadMultiChannelImageFromFiles'}])
    assert channels([str(tmp_path / 'a.jpg')] * 2).shape[:2] == (64, 64)
    for read, image in (
        (ImageReader(), tmp_path / 'b.jpg'),
        (channels, [str(tmp_path / 'a.jpg'), str(tmp_path / 'b.jpg')]),
    ):
        with pytest.raises(DataError, match='^the image cannot be decoded because .* truncated$'):
            read(image)


def test_steps_are_told_apart_by_their_names():
    names = [
        'ReadRaw',
        'LoadBand',
        'LoadAnnotations',
        'Resize',
        'LoadPanopticAnnotations',
        'PackDetInputs',
    ]
    steps = [{'type': f'mmdet.{name}'} for name in names]
    assert loading_steps(steps) == steps[:2] and loading_steps([]) == []
    assert without_annotations(steps) == [steps[0], steps[1], steps[3], steps[5]]
    built = [LoadNumpy(), TRANSFORMS.build({'type': 'LoadAnnotations'})]
    assert loading_steps(built) == without_annotations(built) == built[:1]
    by_class = [{'type': LoadNumpy}, {'type': type(built[1])}]
    assert loading_steps(by_class) == without_annotations(by_class) == by_class[:1]


def test_the_reader_is_described_without_the_place_of_the_files():
    default = {'type': 'LoadImageFromFile', 'color_type': 'color', 'to_float32': False,
               'imdecode_backend': 'cv2'}  # fmt: skip
    assert describe_loading(config()) == [default]
    cfg = config(color_type='unchanged', backend_args={'backend': 'petrel'})
    assert describe_loading(cfg) == [{**default, 'color_type': 'unchanged'}]
    assert describe_loading(config({'type': LoadNumpy, 'bands': [1, 2]})) == [
        {'type': 'LoadNumpy', 'bands': [1, 2]}
    ]


def test_the_reader_of_a_data_set_is_that_of_its_innermost_pipeline(tmp_path):
    class Dataset:
        def __init__(self, pipeline=None, **inner):
            if pipeline is not None:
                self.pipeline = pipeline
            vars(self).update(inner)

    step = LoadNumpy()
    inner = Dataset([step])
    for dataset in (inner, Dataset(['mix'], dataset=inner), Dataset(datasets=[inner, Dataset([])])):
        assert dataset_reader(dataset).steps == [step]
