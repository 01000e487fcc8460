import time

import cv2
import numpy as np
import pytest
from PIL import Image

from evit_mm.data.images import (
    IMAGE_SUFFIXES,
    NamedFiles,
    difference,
    folders_apart,
    is_cut_short,
    list_images,
    some,
)
from evit_mm.errors import DataError


def test_images_are_listed_in_all_folders_in_order(tmp_path):
    (tmp_path / 'a' / 'b').mkdir(parents=True)
    names = ['B.JPG', 'a/c.png', 'a/b/d.webp', 'a/e.tiff', 'f.tif', 'g.jpeg', 'h.bmp']
    for name in [*names, 'notes.txt', 'jpg', 'a/x.gif']:
        (tmp_path / name).write_bytes(b'')
    found = [str(path.relative_to(tmp_path)) for path in list_images(str(tmp_path))]
    assert found == ['B.JPG', 'a/b/d.webp', 'a/c.png', 'a/e.tiff', 'f.tif', 'g.jpeg', 'h.bmp']
    assert list_images(tmp_path / 'notes.txt') == [tmp_path / 'notes.txt']  # asked for by name
    with pytest.raises(DataError, match="image or folder '.*gone' does not exist"):
        list_images(tmp_path / 'gone')
    (tmp_path / 'none').mkdir()
    with pytest.raises(DataError, match=r"no image found in '.*none' \(\.jpg, .*\.webp, .*\)"):
        list_images(tmp_path / 'none')


def test_hidden_files_and_folders_are_no_images(tmp_path):
    for name in ('a.jpg', '._a.jpg', 'b/._c.png', '.thumbnails/a.jpg', 'b/c.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    assert list_images(tmp_path) == [tmp_path / 'a.jpg', tmp_path / 'b' / 'c.png']
    # asked for by name, and below a hidden folder of the user's
    assert list_images(tmp_path / '._a.jpg') == [tmp_path / '._a.jpg']
    assert list_images(tmp_path / '.thumbnails') == [tmp_path / '.thumbnails' / 'a.jpg']


def test_other_suffixes_are_asked_for(tmp_path):
    for name in ('a.jpg', 'b.NPY', 'c.txt'):
        (tmp_path / name).write_bytes(b'')
    assert list_images(tmp_path, ('.npy',)) == [tmp_path / 'b.NPY']
    with pytest.raises(DataError, match=r"no image found in '.*' \(\.tif\)"):
        list_images(tmp_path, ('.tif',))


def test_every_suffix_that_opencv_writes_is_one_of_an_image(tmp_path):
    grey = np.full((64, 64), 100, np.uint8)
    names = [*['jpg', 'jpeg', 'jpe', 'png', 'bmp', 'dib', 'tif', 'tiff', 'webp', 'jp2', 'pgm']]
    written = {name for name in names if cv2.imwrite(str(tmp_path / f'a.{name}'), grey)}
    Image.fromarray(grey).save(tmp_path / 'a.jfif')
    Image.fromarray(grey).save(tmp_path / 'a.ppm')
    assert {path.suffix[1:] for path in list_images(tmp_path)} == written | {'jfif', 'ppm'}
    assert all(cv2.imread(str(path)) is not None for path in tmp_path.iterdir())
    of_jpeg = {s for s, kind in Image.registered_extensions().items() if kind == 'JPEG'}
    assert len(written) > 8 and of_jpeg <= {*IMAGE_SUFFIXES}


def test_images_that_are_cut_short_are_told_from_odd_ones(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    path = tmp_path / 'a.jpg'
    cv2.imwrite(str(path), pixels)
    whole = path.read_bytes()
    assert not is_cut_short(str(path))
    path.write_bytes(whole + bytes(5000))  # a camera's own data behind the image
    assert not is_cut_short(str(path))
    for length in (len(whole) - 2, len(whole) // 2):
        path.write_bytes(whole[:length])
        assert cv2.imread(str(path)) is not None  # OpenCV says nothing
        assert is_cut_short(str(path))
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    assert not is_cut_short(str(tmp_path / 'a.png')) and not is_cut_short('nowhere.jpg')


def test_files_are_found_by_the_names_of_other_systems():
    files = NamedFiles(['a/x.png', 'b/X.png', 'a/b/y.png', ' ', '\\'])
    for name in ('a/x.png', 'C:\\a\\x.png', '../a/X.PNG', '/x.png'):
        assert files.find(name) == ['a/x.png']
    assert files.find('b/c/x.png') == ['a/x.png'] and files.find('X.png') == ['b/X.png']
    assert files.find('X.pnG') == ['a/x.png', 'b/X.png']
    for name in ('', ' ', '\\', '..', 'z.png'):
        assert files.find(name) == []


def test_many_files_of_one_name_are_found_quickly():
    files = NamedFiles(f'seq{k}/rgb.png' for k in range(2000))
    start = time.process_time()
    for k in range(0, 2000, 100):
        assert len(files.find(f'seq{k}/img/rgb.png')) == 2000
        assert files.find(f'x/seq{k}/rgb.png') == [f'seq{k}/rgb.png']
    assert time.process_time() - start < 1.5  # 0.2 s; 3 s if each file computes the best score


@pytest.mark.parametrize(
    ('name', 'file', 'cause'),
    [
        ('../a/x.png', 'a/x.png', 'other folders'),
        ('..\\a\\x.png', 'a/x.png', 'slashes instead of backslashes'),
        ('../a/X.png', 'a/x.png', 'other upper and lower case letters'),
        ('b/x.png', 'a/x.png', 'other folders'),
        ('a/\u00e4.png', 'a/a\u0308.png', 'another Unicode form'),
    ],
)
def test_the_difference_of_two_paths_is_named(name, file, cause):
    assert difference(name, file) == cause


def test_folders_before_the_common_end_are_apart():
    assert folders_apart('c:\\Me\\a\\x.png', 'A/X.png') == (['c:', 'me'], [])
    assert folders_apart('../train/x.png', 'val/a/x.png') == (['train'], ['val', 'a'])


def test_up_to_five_items_are_named():
    assert some([1, 'b', 3, 4, 5]) == '1, b, 3, 4, 5'
    assert some(['a'] * 6) == 'a, a, a, a, a, ... (6 in all)'
    assert some([7]) == '7'
