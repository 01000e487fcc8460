"""The drawing stays what it is for a seed, because old folders are used again."""

import json

import numpy as np
import pytest

from evit_mm.data import make_shapes
from evit_mm.data.shapes import draw_image
from evit_mm.errors import DataError


# raise the version of the settings along with these figures
@pytest.mark.parametrize(
    ('seed', 'boxes', 'means', 'deviations'),
    [
        (15, [], (85.73, 75.02, 82.23), (14.73, 7.75, 6.89)),
        (
            3,
            [(2, 26, 4, 92, 109, 4963), (5, 89, 0, 103, 103, 5575), (1, 111, 63, 31, 30, 741)],
            (166.21, 122.5, 136.8),
            (40.17, 46.31, 59.69),
        ),
        (
            18,
            [(4, 88, 34, 104, 94, 3968), (3, 27, 49, 92, 79, 3781), (-4, 29, 9, 35, 41, 565)],
            (83.48, 136.31, 117.19),
            (25.17, 34.5, 47.79),
        ),
        (
            54,
            [(2, 21, 34, 79, 83, 4947), (2, 72, 30, 103, 98, 5059), (3, 102, 76, 46, 41, 951)]
            + [(-5, 55, 25, 27, 12, 165)],
            (126.0, 108.88, 71.72),
            (51.57, 25.24, 38.54),
        ),
    ],
)
def test_the_drawing_of_version_1(seed, boxes, means, deviations):
    """Boxes with class (negative for a crowd) and area; the roundings of a CPU may differ."""
    image, found = draw_image(np.random.default_rng(seed), (192, 128))
    assert image.shape == (128, 192, 3) and image.dtype == np.uint8
    figures = [((-1) ** a['iscrowd'] * a['category_id'], *a['bbox'], a['area']) for a in found]
    assert len(figures) == len(boxes)
    for figure, box in zip(figures, boxes, strict=True):
        assert figure[0] == box[0] and figure[1:] == pytest.approx(box[1:], abs=3, rel=1e-3)
    assert image.mean((0, 1)) == pytest.approx(means, abs=0.1)
    assert image.std((0, 1)) == pytest.approx(deviations, abs=0.1)


def test_without_options_the_data_set_is_the_documented_one(tmp_path):
    """480 and 120 images of 256x256 pixels, seed 0; its folder is left as it is."""
    settings = {'version': 1, 'train': 480, 'val': 120, 'size': [256, 256], 'seed': 0}
    (tmp_path / 'annotations').mkdir()
    path = tmp_path / 'annotations' / 'instances_val.json'
    path.write_text(json.dumps({'info': {'settings': settings}}))
    assert make_shapes(tmp_path) == tmp_path
    for content in ({'info': {'settings': {**settings, 'version': 0}}}, {'info': 'a'}, {}):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match='exists, but not as a data set'):
            make_shapes(tmp_path)


def test_the_least_that_can_be_drawn(tmp_path, capsys):
    root = make_shapes(str(tmp_path / 'a' / 'set'), 1, 1, size=(32, 33))
    assert 'drawing train' in capsys.readouterr().out
    coco = json.loads((root / 'annotations' / 'instances_train.json').read_text())
    image = {'id': 1, 'file_name': '000001.jpg', 'width': 32, 'height': 33}
    assert coco['images'] == [image] and (root / 'train' / '000001.jpg').is_file()
    for a in coco['annotations']:
        assert a['image_id'] == 1
    make_shapes(tmp_path / 'b', 1, 1, size=(33, 32), quiet=True)
    assert not capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a', 'b']
    for options in ({'num_val': 0}, {'num_train': 0}, {'seed': -1}, {'size': (40, 31)}):
        with pytest.raises(DataError, match='shapes: use at least'):
            make_shapes(tmp_path / 'c', **{'num_train': 1, 'num_val': 1, **options}, quiet=True)
    with pytest.raises(DataError, match='got 2 training and 0 validation images, size 256x99, see'):
        make_shapes(tmp_path / 'c', 2, 0, (256, 99))
