"""Every kind of image gives the same detections in every tool: those of the evaluation."""

import json
from itertools import cycle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import DATASETS, MODELS, TRANSFORMS
from mmengine.registry import init_default_scope
from PIL import Image

from evit_mm import inference
from evit_mm.data import make_shapes
from evit_mm.data.check import inspect_config_data
from evit_mm.deploy.export import export
from evit_mm.deploy.export.evaluation import evaluate
from evit_mm.deploy.export.runtime import ExportedModel
from evit_mm.errors import ConfigError
from evit_mm.inference import browse as browse_room
from evit_mm.inference import demo
from evit_mm.inference.attention_maps.pictures import network_input, visualize_attention
from evit_mm.report import write_report
from evit_mm.runner.config import load_config
from evit_mm.runner.test import test as run_test
from evit_mm.runner.train import train
from tests.trainings import save_weights, write_config

WIDTH, HEIGHT = 96, 80


@TRANSFORMS.register_module(force=True)
class LoadBands(BaseTransform):
    """A user's transform for multispectral images."""

    def transform(self, results):
        image = np.load(results['img_path'])
        return {**results, 'img': image, 'img_shape': image.shape[:2], 'ori_shape': image.shape[:2]}


def turned(pixels, path):
    """Save an image whose EXIF entry tells viewers to turn it by 90 degrees, clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[..., ::-1]).save(path, exif=exif, quality=95)


def as_palette(pixels, path):
    Image.fromarray(pixels[..., ::-1]).quantize(64).save(path)


def as_rgba(pixels, path):
    Image.fromarray(np.dstack([pixels[..., ::-1], pixels[..., 0]])).save(path)


def write(convert):
    return lambda pixels, path: cv2.imwrite(str(path), convert(pixels))


def file(**options):
    return {'type': 'LoadImageFromFile', **options}


def deep(pixels):
    return pixels.astype(np.uint16) * 257


# pairs of a suffix and a function that saves BGR pixels of 8 bits; first step; channels; factor of
# the values
KINDS = {
    'default': (
        [
            ('.png', write(lambda x: x)),  # colours
            ('.bmp', write(lambda x: x[..., 1])),  # grey
            ('.jpg', lambda x, path: turned(np.rot90(x), path)),
            ('.png', as_palette),
            ('.webp', as_rgba),
        ],
        file(), 3, 1,
    ),
    'sixteen bits': (
        [('.png', write(deep))], file(color_type='unchanged', to_float32=True), 3, 257,
    ),
    'sixteen bits, grey': (
        [('.tif', write(lambda x: deep(x[..., 1])))], file(color_type='unchanged'), 1, 257,
    ),
    'turn ignored': ([('.jpg', turned)], file(color_type='color_ignore_orientation'), 3, 1),
    'alpha': ([('.png', as_rgba)], file(color_type='unchanged'), 4, 1),
    'five channels': (
        [('.npy', lambda x, path: np.save(path, deep(x)[..., [0, 1, 2, 1, 0]].astype(np.float32)))],
        {'type': 'LoadBands'}, 5, 257,
    ),
}  # fmt: skip

EXTRA = """
loading = {loading!r}
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[0], test_pipeline[0] = loading, loading
train_dataloader['batch_size'] = 4
train_dataloader['dataset'] = dict(pipeline=train_pipeline, **data)
val_dataloader = dict(loader, dataset=dict(pipeline=test_pipeline, **data))
test_dataloader = val_dataloader
model['backbone']['in_channels'] = {channels}
model['test_cfg']['max_per_img'] = 20
model['bbox_head']['stacked_convs'] = 1  # a small graph to export
model['data_preprocessor'] = {preprocessor!r}
train_cfg = dict(max_epochs=1, val_interval=1)
"""


class Case:
    """A data set of one kind of image, a config that reads it, and weights."""

    def __init__(self, kind: str, folder: Path) -> None:
        savers, loading, channels, factor = KINDS[kind]
        number = max(2, len(savers))
        self.data = make_shapes(folder / 'data', 4, number, size=(WIDTH, HEIGHT), quiet=True)
        self.pixels = {}  # of 8 bits, by the name of the validation image
        for split in ('train', 'val'):
            annotations = self.data / 'annotations' / f'instances_{split}.json'
            coco = json.loads(annotations.read_text())
            for image, (suffix, save) in zip(coco['images'], cycle(savers), strict=False):
                path = self.data / split / image['file_name']
                pixels = cv2.imread(str(path))
                path.unlink()
                image['file_name'] = Path('cam', path.name).with_suffix(suffix).as_posix()
                path = self.data / split / image['file_name']
                path.parent.mkdir(exist_ok=True)
                save(pixels, path)
                (path.parent / f'._{path.name}').write_bytes(b'by macOS')
                if split == 'val':
                    self.pixels[image['file_name']] = pixels
            annotations.write_text(json.dumps(coco))
        statistics = [127.0 * factor], [60.0 * factor]
        if channels == 3:
            statistics = tuple(3 * values for values in statistics)
        mean, std = statistics
        preprocessor = dict(_delete_=True, type='DetDataPreprocessor', mean=mean, std=std,
                            bgr_to_rgb=channels == 3, pad_size_divisor=32)  # fmt: skip
        more = EXTRA.format(loading=loading, channels=channels, preprocessor=preprocessor)
        self.config = write_config(folder, self.data, more)
        self.weights = save_weights(self.config, folder / 'random.pth')
        self.kind, self.folder, self.channels = kind, folder, channels
        self.in_memory = loading in (file(), file(color_type='color_ignore_orientation'))
        out = folder / 'test.json'
        run_test(self.config, self.weights, out=str(out), work_dir=str(folder / 'test'),
                 show_dir=str(folder / 'shown'), device='cpu')  # fmt: skip
        self.expected = json.loads(out.read_text())

    def assert_expected(self, found, score=1e-4, pixels=1e-2):
        """The detections are those of the evaluation."""
        assert len(found) == len(self.expected) > 0
        for entry in self.expected:
            same = [
                np.abs(np.subtract(f['bbox'], entry['bbox'])).max()
                for f in found
                if (f['image_id'], f['category_id']) == (entry['image_id'], entry['category_id'])
                and abs(f['score'] - entry['score']) <= score
            ]
            assert min(same, default=np.inf) <= pixels, entry


FAST = ('sixteen bits', 'turn ignored', 'five channels')
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind not in FAST]


@pytest.fixture(scope='module', params=[*FAST, *SLOW])
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp('kind'))


def test_the_check_has_nothing_to_say(case):
    faults = inspect_config_data(load_config(case.config), ('train', 'val', 'test'), None).faults
    assert faults == []


def test_the_evaluation_draws_what_people_see(case):
    """A picture keeps its subfolder, and shows the image as it is meant."""
    shown = sorted(path for path in (case.folder / 'shown').rglob('*') if path.is_file())
    assert [path.relative_to(case.folder / 'shown').as_posix() for path in shown] == sorted(
        f'{name}.png' if name.endswith('.npy') else name for name in case.pixels
    )
    for path, name in zip(shown, sorted(case.pixels), strict=True):
        both = cv2.imread(str(path))
        assert both.shape == (HEIGHT, 2 * WIDTH, 3)
        assert_seen(case, name, both[:, :WIDTH])


def assert_seen(case, name, picture):
    """Most pixels are those of the image, for boxes are drawn on it and JPEG is not exact."""
    pixels, grey = case.pixels[name], Path(name).suffix in ('.bmp', '.tif')
    expected = np.repeat(pixels[..., 1:2], 3, 2) if grey else pixels
    difference = np.abs(picture.astype(int) - expected)
    assert np.median(difference) <= 6 and np.median(np.abs(picture.astype(int) - 128)) > 10


def test_prediction_finds_what_the_evaluation_finds(case, tmp_path):
    found = inference.predict(case.weights, case.data / 'val', tmp_path, case.config, 1.0,
                              device='cpu')  # fmt: skip
    assert found.faults == []  # the hidden files of macOS are no images
    case.assert_expected(found.detections)
    for name in case.pixels:
        picture = cv2.imread(str(tmp_path / (f'{name}.png' if name.endswith('.npy') else name)))
        assert_seen(case, name, picture)


def test_the_demo_finds_it_too_and_pixels_in_memory_give_it_or_one_sentence(case):
    detector = inference.Detector(case.weights, case.config, 'cpu')
    image_ids, categories = inference.coco_ids(detector.cfg, detector.classes)
    from_files, from_memory = [], []
    for name in case.pixels:
        path = case.data / 'val' / name
        found = demo.detect(detector, str(path))
        assert found.pixels.shape == (HEIGHT, WIDTH, 3) and demo.show(found, 0.0)[0] is not None
        about = (image_ids[path.resolve()], name, detector.classes, categories)
        from_files += inference.to_coco(found.sample.pred_instances, *about)
        if case.in_memory:
            flag = cv2.IMREAD_COLOR
            if case.kind == 'turn ignored':
                flag |= cv2.IMREAD_IGNORE_ORIENTATION
            (sample,) = detector.detect([detector.prepare(cv2.imread(str(path), flag))])
            from_memory += inference.to_coco(sample.pred_instances, *about)
    case.assert_expected(from_files)
    if case.in_memory:
        case.assert_expected(from_memory)
    else:
        with pytest.raises(ConfigError, match=r'tiny\.py.: the test pipeline loads images by Load'):
            detector.prepare(case.pixels[name])


def test_a_video_is_read_or_refused_before_the_first_frame(case, tmp_path):
    film = tmp_path / 'film.mp4'
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*'mp4v'), 5, (WIDTH, HEIGHT))
    for pixels in case.pixels.values():
        writer.write(pixels)
    writer.release()
    out = tmp_path / 'out'
    if case.in_memory:
        found = inference.predict(case.weights, film, out, case.config, device='cpu')
        assert found.speed.frames == len(case.pixels)
    else:
        with pytest.raises(ConfigError, match='cannot take frames of a video'):
            inference.predict(case.weights, film, out, case.config, device='cpu')
        assert list(out.iterdir()) == []


def test_browsing_shows_the_images(case, tmp_path, monkeypatch):
    tiles, tile = [], browse_room._Painter.tile
    monkeypatch.setattr(
        browse_room._Painter,
        'tile',
        lambda *args: tiles.append(tile(*args)) or tiles[-1],
    )
    assert browse_room.browse(case.config, tmp_path, split='val')
    for (picture, _), name in zip(tiles[::2], sorted(case.pixels), strict=True):
        whole = cv2.resize(picture[..., ::-1], (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        assert_seen(case, name, whole)


def test_attention_is_that_of_the_evaluations_input(case, tmp_path):
    init_default_scope('mmdet')
    cfg = load_config(case.config)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    preprocess = MODELS.build(cfg.model.data_preprocessor)
    for index in range(len(dataset)):
        packed = dataset[index]
        fed = preprocess({key: [packed[key]] for key in ('inputs', 'data_samples')})['inputs']
        seen, found = network_input(cfg, packed['data_samples'].img_path)
        assert torch.equal(found, fed) and seen.dtype == np.uint8
        assert seen.shape == (*packed['inputs'].shape[1:], 3)
    visualize_attention(case.config, 'random', packed['data_samples'].img_path, tmp_path)
    assert (tmp_path / 'stage1.png').is_file()


def test_the_report_shows_the_images_and_their_detections(case, tmp_path):
    work = tmp_path / 'work'
    work.mkdir()
    load_config(case.config).dump(work / 'tiny.py')
    (work / 'epoch_1.pth').write_bytes(case.weights.read_bytes())
    page = write_report([work], tmp_path / 'page', device='cpu').read_text()
    case.assert_expected(json.loads((work / 'detections.json').read_text())['results'])
    assert page.count('data:image/webp') == len(case.pixels)


@pytest.mark.slow
def test_training_starts(case, tmp_path):
    runner = train(case.config, str(tmp_path), device='cpu', seed=0)
    assert runner.iter == 1 and (tmp_path / 'epoch_1.pth').is_file()


@pytest.mark.slow
def test_an_exported_file_finds_it_too_and_names_the_reader(case, tmp_path):
    # one image size, because shapes as symbols take a minute
    exported = export(case.config, case.weights, tmp_path / 'a.pt2', 'torch', dynamic=False)
    assert exported.agreement.images == len(case.pixels)
    metadata = ExportedModel(tmp_path / 'a.pt2').metadata
    assert metadata['in_channels'] == case.channels
    assert metadata['reader'][0].items() >= KINDS[case.kind][1].items()
    out, work = tmp_path / 'found.json', str(tmp_path)
    evaluate(case.config, tmp_path / 'a.pt2', out=str(out), work_dir=work, device='cpu')
    case.assert_expected(json.loads(out.read_text()), score=1e-3, pixels=0.1)
    # with the ids of the config, and its suffixes of images
    found = inference.predict(tmp_path / 'a.pt2', case.data / 'val', tmp_path / 'p', case.config)
    case.assert_expected(found.detections, score=1e-3, pixels=0.1)
    alone = inference.Detector(tmp_path / 'a.pt2')([case.data / 'val' / x for x in case.pixels])
    assert sum(map(len, alone)) == len(found.detections)
    if case.kind == 'sixteen bits':
        first = {'test_dataloader.dataset.pipeline.0.color_type': 'color'}
        with pytest.raises(
            ConfigError, match=r"was exported with reader=\[.*'color_type': 'unchanged'"
        ):
            evaluate(case.config, tmp_path / 'a.pt2', work_dir=work, cfg_options=first)
