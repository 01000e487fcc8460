"""Files are replaced as a whole or not at all."""

import json
import os

import pytest

from evit_mm.utils.files import read_json_dict, write_atomically, write_json


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / 'a' / 'b' / 'c.bin', []
    sync = os.fsync

    def record(handle):
        opened = os.path.realpath(f'/proc/self/fd/{handle}')
        seen.append((opened, os.path.getsize(opened), path.exists()))
        sync(handle)

    monkeypatch.setattr(os, 'fsync', record)
    write_atomically(str(path), b'x' * 10)
    (written, size, named), (folder, _, renamed) = seen
    assert written == f'{path}.partial' and size == 10 and not named
    assert folder == str(path.parent) and renamed
    assert path.read_bytes() == b'x' * 10
    write_atomically(path, b'yy')
    assert os.listdir(path.parent) == ['c.bin'] and path.read_bytes() == b'yy'


def test_a_failure_keeps_the_old_file_and_no_part_of_the_new(tmp_path, monkeypatch):
    path = tmp_path / 'a.json'
    write_json(path, {'a': 1})

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        write_json(path, {'a': 2})
    assert os.listdir(tmp_path) == ['a.json'] and read_json_dict(path) == {'a': 1}
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError):
        write_atomically(path, b'')
    with pytest.raises(OSError):  # the folder is a file
        write_atomically(__file__ + '/a', b'')


def test_json_files_are_read_back_and_what_is_no_object_is_empty(tmp_path):
    path = tmp_path / 'a.json'
    assert read_json_dict(path) == read_json_dict(tmp_path) == {}
    for content in ({'a': [1, {'b': None}], 'ö': 'é'}, {}):
        write_json(path, content)
        assert path.read_text() == json.dumps(content) and read_json_dict(str(path)) == content
    write_json(path, {'a': 1}, indent=2)
    assert path.read_text() == '{\n  "a": 1\n}'
    path.write_bytes('{"a": "é"}'.encode())
    assert read_json_dict(path) == {'a': 'é'}
    for content in (b'[1]', b'"a"', b'null', b'{"a": 1', b'', b'\xff{}'):
        path.write_bytes(content)
        assert read_json_dict(path) == {}
