import pytest

from evit_mm.data.images import list_images, some
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


def test_up_to_five_items_are_named():
    assert some([1, 'b', 3, 4, 5]) == '1, b, 3, 4, 5'
    assert some(['a'] * 6) == 'a, a, a, a, a, ... (6 in all)'
    assert some([7]) == '7'
