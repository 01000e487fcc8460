"""Pictures for people: values worked out by hand, and colours and names by their properties."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evit_mm.data.pictures import (
    complete_palette,
    image_folder,
    picture_name,
    to_picture,
    value_levels,
)
from evit_mm.errors import ConfigError

COLOUR = st.tuples(*[st.integers(0, 255)] * 3)


def column(*values, dtype):
    return np.array([values], dtype)  # (1, W), one channel


@pytest.mark.parametrize(
    ('image', 'expected'),
    [
        (column(0, 7, 255, dtype=np.uint8), [0, 7, 255]),
        (column(0, 257, 65535, dtype=np.uint16), [0, 1, 255]),
        (column(0, 1365, 4095, dtype=np.uint16), [0, 85, 255]),  # 12 bits
        (column(0, 25_700, 51_400, dtype=np.uint16), [0, 100, 200]),
        (column(0, 50_000, 100_000, dtype=np.int32), [0, 128, 255]),
        (column(0, 7, 255, dtype=np.float32), [0, 7, 255]),  # 8 bits, as floats
        (column(0, 0.2, 1, dtype=np.float32), [0, 51, 255]),
        (column(-1000, 0, 1550, dtype=np.int16), [0, 100, 255]),
        (column(0, np.nan, 1023, dtype=np.float64), [0, 0, 255]),
        (column(False, True, dtype=bool), [0, 255]),
        (column(0, 0, dtype=np.uint16), [0, 0]),
    ],
)
def test_values_are_scaled_to_eight_bits(image, expected):
    picture = to_picture(image)
    assert picture.dtype == np.uint8 and picture.shape == (*image.shape, 3)
    assert picture[0].tolist() == [[value] * 3 for value in expected]


def test_channels_become_three():
    image = np.arange(2 * 5 * 6, dtype=np.uint8).reshape(2, 5, 6)
    for channels, chosen in ((1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (6, [0, 1, 2])):
        assert np.array_equal(to_picture(image[..., :channels]), image[..., chosen])
    # the fourth channel does not decide how bright the others are
    bright = np.dstack([image[..., :3].astype(np.uint16), np.full((2, 5), 60_000, np.uint16)])
    assert np.array_equal(to_picture(bright), image[..., :3])


def test_levels_can_be_those_of_another_image():
    image = column(0, 100, 400, dtype=np.float32)
    assert value_levels(image) == (0, 1023)
    assert to_picture(image, (0, 200))[0, :, 0].tolist() == [0, 128, 255]
    assert to_picture(np.zeros((0, 4, 3), np.float32)).shape == (0, 4, 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(COLOUR, max_size=30), st.integers(1, 120))
def test_a_palette_is_completed_by_other_colours(palette, classes):
    names = tuple(f'class {k}' for k in range(classes))
    completed = complete_palette({'classes': names, 'palette': palette, 'more': 1})
    colours = completed['palette']
    assert completed['more'] == 1 and completed['classes'] == names
    assert colours[: len(palette)] == palette and len(colours) == max(classes, len(palette))
    further = colours[len(palette) :]
    assert len({*further}) == len(further) and not {*further} & {*palette}
    assert all(type(part) is int and 0 <= part <= 255 for colour in further for part in colour)
    first = [np.array(colour) for colour in further[:20]]
    assert all(np.abs(a - b).sum() >= 60 for k, a in enumerate(first) for b in first[:k])


def test_palettes_without_a_list_of_colours_stay():
    for palette in (None, 'random', 'green', (1, 2, 3)):
        metainfo = {'classes': ('a', 'b'), 'palette': palette}
        assert complete_palette(metainfo) == metainfo
    assert complete_palette({}) == {}
    named = complete_palette({'classes': [f'{k}' for k in range(30)], 'palette': 'voc'})['palette']
    assert len(named) == 30 and named[0] == (106, 0, 228)  # aeroplane's in mmdet
    # mmdet would take a tuple of colours for one colour
    assert complete_palette({'classes': ('a',), 'palette': ((1, 2, 3),)})['palette'] == [(1, 2, 3)]


@pytest.mark.parametrize(
    'palette', [[(1, 2)], [(1, 2, 3, 4)], [(0, 0, 256)], [(0, 0, -1)], ['red'], [5], 5, {0: (1, 2)}]
)
def test_what_is_no_colour_is_refused(palette):
    with pytest.raises(ConfigError, match=r'metainfo\.palette .*; give a list with \(red, green'):
        complete_palette({'classes': ('a', 'b'), 'palette': palette})


def test_names_keep_the_subfolders():
    assert picture_name('/data/val/cam1/0001.jpg', '/data/val') == 'cam1/0001.jpg'
    assert picture_name('/data/val/0001.tif', '/data/val/') == '0001.tif'
    assert picture_name('/data/other/a.png', '/data/val') == 'other/a.png'
    assert picture_name('/data/a.png', '') == 'data/a.png'
    assert picture_name('cam1/a.npy', '') == 'cam1/a.npy.png'
    assert picture_name('cam1/a.jfif', '') == 'cam1/a.jfif.png'  # OpenCV does not write it
    assert picture_name('cam1/a.pgm', '') == 'cam1/a.pgm.png'  # it has no colours
    assert picture_name(['/d/a_1.tif', '/d/a_2.tif'], '/d') == 'a_1.tif'
    assert picture_name('s3://bucket/a/b.jpg', '/data').endswith('bucket/a/b.jpg')


def test_the_folder_of_a_data_set_is_that_of_all_its_parts():
    one, two = (SimpleNamespace(data_prefix={'img': f'/data/{name}/'}) for name in ('a', 'b/c'))
    assert image_folder(one) == '/data/a'
    assert image_folder(SimpleNamespace(dataset=two)) == '/data/b/c'
    assert image_folder(SimpleNamespace(datasets=[one, two])) == '/data'
    assert image_folder(SimpleNamespace()) == ''
