"""Pictures of what the model is fed: what is drawn is what the pipeline gives."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData
from PIL import Image

from evit_mm.data import make_shapes
from evit_mm.errors import ConfigError, DataError
from evit_mm.inference import browse as room
from evit_mm.inference.browse import browse
from evit_mm.runner.config import load_config
from evit_mm.runner.seeding import SAMPLE, derive_seed, seed_generators
from tests.conftest import ROOT
from tests.trainings import write_config


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'set', 16, 4, size=(96, 80), quiet=True)


@pytest.fixture(scope='module')
def config(data, tmp_path_factory):
    return write_config(tmp_path_factory.mktemp('config'), data)


@pytest.fixture
def tiles(monkeypatch):
    """The packed images that are drawn, with their titles, in order."""
    seen = []
    tile = room._Painter.tile

    def watched(self, packed, title):
        seen.append((title, packed))
        return tile(self, packed, title)

    monkeypatch.setattr(room._Painter, 'tile', watched)
    return seen


def pixels(packed):
    return packed['inputs'].permute(1, 2, 0).numpy()


def boxes(packed):
    return packed['data_samples'].gt_instances.bboxes.tensor.numpy()


def label(packed):
    return packed['data_samples'].gt_label.item()


def annotated(data, name):
    """Boxes, corners, of an image's objects as its annotation file has them, without crowds."""
    coco = json.loads((data / 'annotations' / 'instances_train.json').read_text())
    (image,) = (i['id'] for i in coco['images'] if i['file_name'] == name)
    found = [a['bbox'] for a in coco['annotations'] if a['image_id'] == image and not a['iscrowd']]
    return np.array([[x, y, x + w, y + h] for x, y, w, h in found]).reshape(-1, 4)


def test_rows_are_the_annotated_image_and_what_training_draws_of_it(config, data, tiles, tmp_path):
    written = browse(config, tmp_path, number=5, draws=2, seed=3)
    assert [p.name for p in written] == ['sheet_01.jpg', 'sheet_02.jpg']  # four rows and one
    assert [Image.open(p).width for p in written] == [3 * room.TILE] * 2
    assert [title for title, _ in tiles[1:3]] == ['draw 1', 'draw 2'] and len(tiles) == 15

    cfg = load_config(config)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    names = [dataset.get_data_info(i)['img_path'].split('/')[-1] for i in range(len(dataset))]
    flipped = 0
    for row in range(5):
        name, original = tiles[3 * row]
        index = names.index(name)
        assert np.array_equal(pixels(original), cv2.imread(str(data / 'train' / name)))
        np.testing.assert_allclose(boxes(original), annotated(data, name), atol=1e-4)
        for draw in range(2):
            _, drawn = tiles[3 * row + 1 + draw]
            seed_generators(derive_seed(3, SAMPLE, draw, index))
            expected = dataset[index]
            assert np.array_equal(pixels(drawn), pixels(expected))
            assert np.array_equal(boxes(drawn), boxes(expected))
            flipped += bool(expected['data_samples'].flip)
    assert 0 < flipped < 10


def test_training_is_drawn_three_times_where_no_number_is_given(config, tiles, tmp_path):
    browse(config, tmp_path)
    assert [title for title, _ in tiles[1:4]] == ['draw 1', 'draw 2', 'draw 3']
    assert len(tiles) == 8 * 4  # eight images where no number is given
    first = [title for title, _ in tiles if 'draw' not in title]
    tiles.clear()
    browse(config, tmp_path, number=8, draws=1, seed=0)
    assert [title for title, _ in tiles if 'draw' not in title] == first


def test_the_seed_decides_the_images_and_the_draws(config, tiles, tmp_path):
    sheets = {}
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        browse(config, tmp_path / name, number=3, seed=seed)
        sheets[name] = (tmp_path / name / 'sheet_01.jpg').read_bytes()
    assert sheets['a'] == sheets['b'] != sheets['c']
    chosen = [
        {title for title, _ in part if 'draw' not in title} for part in (tiles[:12], tiles[24:])
    ]
    assert chosen[0] != chosen[1]


def test_validation_is_drawn_once_and_as_it_is_evaluated(config, tiles, tmp_path):
    browse(config, tmp_path, split='val', number=100)
    assert len(tiles) == 8  # four images, the original and one draw
    assert not any('RandomFlip' in title for title, _ in tiles)


def test_classes_choose_the_images(config, tiles, tmp_path):
    browse(config, tmp_path, number=100, draws=1, classes=['star', 'cross'])
    originals = [packed['data_samples'] for title, packed in tiles if title != 'draw 1']
    assert 0 < len(originals) < 16
    assert all({3, 4} & set(sample.gt_instances.labels.tolist()) for sample in originals)
    everything = DATASETS.build(load_config(config).train_dataloader.dataset)
    have = [
        {i['bbox_label'] for i in info['instances']}
        for info in map(everything.get_data_info, range(len(everything)))
    ]
    assert len(originals) == sum(bool({3, 4} & labels) for labels in have)
    with pytest.raises(ConfigError, match="--classes: unknown class 'dog'; choose from circle"):
        browse(config, tmp_path, classes=['dog'])
    options = {'train_dataloader.dataset.indices': [0]}
    absent = sorted(
        {'circle', 'square', 'triangle', 'star', 'cross'}
        - {everything.metainfo['classes'][k] for k in have[0]}
    )
    with pytest.raises(ConfigError, match=f'this split has no image with {absent[0]}'):
        browse(config, tmp_path, classes=absent[:1], cfg_options=options)


def test_stages_show_each_step(config, tiles, tmp_path):
    written = browse(config, tmp_path, number=2, draws=1, stages=True)
    assert [p.name for p in written] == ['sheet_01.jpg', 'stages_01.jpg', 'stages_02.jpg']
    assert [Image.open(p).width for p in written] == [2 * room.TILE, *[4 * room.TILE] * 2]
    titles = [title for title, _ in tiles[:6]]
    assert [title for title, _ in tiles[7:]] == titles[1:]
    assert pixels(tiles[11][1]).tolist() == pixels(tiles[7][1]).tolist()  # of its own image
    assert titles[1:] == ['draw 1', 'LoadImageFromFile', 'LoadAnnotations', 'Resize', 'RandomFlip']
    steps = [packed for _, packed in tiles[2:6]]
    instances = [packed['data_samples'].gt_instances for packed in steps]
    assert 'bboxes' not in instances[0] and 'bboxes' in instances[1]
    assert pixels(steps[1]).shape != pixels(steps[2]).shape
    assert np.array_equal(pixels(steps[3]), pixels(tiles[1][1]))
    assert np.array_equal(boxes(steps[3]), boxes(tiles[1][1]))


def test_boxes_are_drawn_where_they_are_at_any_size():
    """The only pixels that change are the box's border and its name."""
    instances = InstanceData(bboxes=torch.tensor([[40.0, 60, 80, 100]]), labels=torch.tensor([1]))
    metainfo = {'classes': ('cat', 'dog'), 'palette': [(255, 0, 0), (0, 255, 0)]}
    packed = {
        'inputs': torch.full((3, 160, 160), 128, dtype=torch.uint8),
        'data_samples': DetDataSample(gt_instances=instances),
    }
    tile, text = room._Painter(metainfo).tile(packed, 'a.png')
    assert text == 'a.png, 160 x 160, 1 object'
    picture = tile.astype(int)
    assert picture.shape == (320, 320, 3)
    green = (picture[..., 1] - picture[..., 0]) > 60
    rows, columns = np.flatnonzero(green.any(1)), np.flatnonzero(green.any(0))
    # twice as large: 80 to 160 across and 120 to 200 down, and a border of two pixels
    assert (columns[0], columns[-1]) == pytest.approx((80, 160), abs=2)
    assert (rows[0], rows[-1]) == pytest.approx((120, 200), abs=2)
    assert not green[130:190, 90:150].any()


def test_floats_are_cut_to_a_pictures_range_and_shown_in_rgb():
    inputs = torch.zeros(3, 40, 80)
    inputs[:, :, :40] = torch.tensor([10.0, 100, 200])[:, None, None]  # blue, green, red
    inputs[:, :, 40:] = torch.tensor([-20.0, 255, 300])[:, None, None]
    packed = {'inputs': inputs, 'data_samples': DetDataSample(gt_instances=InstanceData())}
    tile, text = room._Painter({}).tile(packed, 'a')
    assert text == 'a, 80 x 40' and tile.shape == (160, 320, 3)
    assert tile[80, 60].tolist() == [200, 100, 10] and tile[80, 260].tolist() == [255, 255, 0]


def test_tiles_stand_in_rows_as_high_as_their_highest_tile():
    shades = iter(range(40, 250, 30))
    rows = [
        [(np.full((*size, 3), next(shades), np.uint8), f'{size}') for size in row]
        for row in ([(320, 200), (100, 320), (50, 320)], [(160, 320)])
    ]
    figure = room.draw_sheet(rows)
    assert np.round(figure.get_size_inches() * 100).tolist() == [3 * 320, 320 + 160 + 2 * 24]
    figure.canvas.draw()
    axes = np.array(figure.axes).reshape(2, 3)
    for axis, (pixels, title) in zip(axes.flat, [*rows[0], *rows[1]], strict=False):
        assert np.array_equal(axis.images[0].get_array(), pixels)
        assert axis.get_title() == title and not axis.axison
    assert not any(axis.images or axis.axison for axis in axes[1, 1:])
    heights = [axis.get_position(original=True).height for axis in axes[:, 0]]
    assert heights[0] / heights[1] == pytest.approx((320 + 24) / (160 + 24), rel=0.1)


class Annotated:
    """Twenty images: one object of class ``index % 3``; with 5 and 11, ignored as a crowd."""

    metainfo = {'classes': ('a', 'b', 'c')}

    def __len__(self):
        return 20

    def get_data_info(self, index):
        item = {'bbox_label': index % 3, 'ignore_flag': int(index in (5, 11))}
        return {'instances': [item]}


def test_a_crowd_is_no_object_of_its_class_and_all_are_taken_in_order():
    choose = room.choose_images
    assert choose(Annotated(), 99, ['c'], 0) == [2, 8, 14, 17]
    assert choose(Annotated(), 99, ['a', 'c'], 0) == [0, 2, 3, 6, 8, 9, 12, 14, 15, 17, 18]
    assert choose(Annotated(), 20, None, 0) == list(range(20))
    some = [choose(Annotated(), 4, None, seed) for seed in range(3)]
    assert all(len(set(indices)) == 4 for indices in some) and some[0] != some[1] != some[2]
    assert all(indices == sorted(indices) for indices in some)


def test_masks_are_drawn(real_data, tiles, tmp_path):
    data = real_data('coco_mini')
    coco = json.loads((data / 'annotations' / 'instances_val2017.json').read_text())
    bare = {a['image_id'] for a in coco['annotations'] if not a.get('segmentation')}
    with_masks = {a['image_id'] for a in coco['annotations'] if not a['iscrowd']} - bare
    coco['images'] = [i for i in coco['images'] if i['id'] in with_masks]
    coco['annotations'] = [a for a in coco['annotations'] if a['image_id'] not in bare]
    (tmp_path / 'val.json').write_text(json.dumps(coco))
    options = {
        'val_dataloader.dataset.data_root': str(data),
        'val_dataloader.dataset.ann_file': str(tmp_path / 'val.json'),
        'val_evaluator.ann_file': str(tmp_path / 'val.json'),
    }
    config = ROOT / 'configs' / 'mask_rcnn_evit_m4_coco.py'
    painted = []
    draw = room._Painter._draw

    class Painter(room._Painter):
        def _draw(self, pixels, instances, factor):
            painted.append((pixels, instances.masks, draw(self, pixels, instances, factor)))
            return painted[-1][2]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, '_Painter', Painter)
        browse(config, tmp_path / 'out', split='val', number=2, cfg_options=options)
    assert len(painted) == 4
    for before, masks, after in painted:
        small = masks.resize(before.shape[:2]).to_ndarray().any(0)
        changed = np.abs(before.astype(int) - after).max(2) > 5
        assert small.any() and changed[small].mean() > 0.7


MIX = """
train_dataloader['dataset'] = dict(
    type='MultiImageMixDataset',
    dataset={**_base_.train_dataloader['dataset'], **data, 'pipeline': [
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]},
    pipeline=[
        dict(type='Mosaic', img_scale=(96, 96)),
        dict(type='PackDetInputs', meta_keys=()),
    ],
)
train_dataloader['dataset']['_delete_'] = True
"""


def test_mixed_images_are_shown_mixed(data, tiles, tmp_path):
    config = write_config(tmp_path, data, MIX)
    for folder in ('a', 'b'):
        browse(config, tmp_path / folder, number=2, draws=2, stages=True)
    titles = [title for title, _ in tiles]
    assert titles.count('Mosaic') == 4
    for title, packed in tiles:
        if title in ('Mosaic', 'draw 1', 'draw 2'):
            assert pixels(packed).shape == (192, 192, 3)  # four images of 96
    first, second = (sorted((tmp_path / f).glob('*.jpg')) for f in 'ab')
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_a_classifiers_images_carry_their_class(tiles, tmp_path):
    for number, name in enumerate(('blue', 'red')):
        folder = tmp_path / 'data' / name
        folder.mkdir(parents=True)
        for index in range(2):
            cv2.imwrite(str(folder / f'{index}.png'), np.full((60, 80, 3), 50 * number, np.uint8))
    options = {
        'train_dataloader.dataset.type': 'CustomDataset',
        'train_dataloader.dataset.data_root': str(tmp_path / 'data'),
        'train_dataloader.dataset.data_prefix': '',
        'model.head.num_classes': 2,
    }
    config = ROOT / 'configs' / 'evit_m0_imagenet.py'
    browse(config, tmp_path / 'out', number=9, draws=1, cfg_options=options)
    originals = [packed for title, packed in tiles if title != 'draw 1']
    assert [label(packed) for packed in originals] == [0, 0, 1, 1]
    assert pixels(originals[0]).shape == (60, 80, 3)
    assert pixels(tiles[1][1]).shape == (224, 224, 3) and label(tiles[1][1]) == 0
    tiles.clear()
    browse(config, tmp_path / 'out', classes=['red'], draws=1, cfg_options=options)
    assert [label(packed) for _, packed in tiles] == [1] * 4


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    data = make_shapes(tmp_path / 'set', 30, 4, size=(96, 80), quiet=True)
    image = sorted((data / 'train').iterdir())[1]  # not among those that the check opens
    image.write_bytes(b'no picture')
    with pytest.raises(DataError, match=f'{image.name}.* cannot be read'):
        browse(write_config(tmp_path, data), tmp_path / 'out', number=30, draws=1)


def test_what_cannot_be_shown_is_named(config, data, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match="-o: folder '.*file' cannot be created"):
        browse(config, tmp_path / 'file')
    for options in ({'number': 0}, {'draws': 0}, {'seed': -1}):
        with pytest.raises(ConfigError, match=f'--{next(iter(options))} must be at least [01]'):
            browse(config, tmp_path / 'out', **options)
    with pytest.raises(ConfigError, match='has no val_dataloader'):
        browse(config, tmp_path / 'out', 'val', cfg_options={'val_dataloader': None})
    with pytest.raises(DataError, match='does not exist'):
        browse(
            config, tmp_path / 'out', cfg_options={'train_dataloader.dataset.data_root': 'nowhere'}
        )
    assert not (tmp_path / 'out').exists()
