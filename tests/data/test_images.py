import cv2
import numpy as np
import pytest

from evit_mm.data.images import list_images, read_image, some
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
    with pytest.raises(DataError, match=r"no image found in '.*none' \(\.jpg, .*\.webp\)"):
        list_images(tmp_path / 'none')


def test_pixels_are_bgr_and_none_where_there_are_none(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), pixels)
    assert np.array_equal(read_image(path), pixels)
    cv2.imwrite(str(path), pixels[..., 0])
    assert np.array_equal(read_image(str(path)), pixels[..., [0, 0, 0]])
    for content in (b'', b'\x89PNG'):
        path.write_bytes(content)
        assert read_image(path) is None
    assert read_image(tmp_path) is read_image(tmp_path / 'gone.png') is None


def test_up_to_five_items_are_named():
    assert some([1, 'b', 3, 4, 5]) == '1, b, 3, 4, 5'
    assert some(['a'] * 6) == 'a, a, a, a, a, ... (6 in all)'
    assert some([7]) == '7'
