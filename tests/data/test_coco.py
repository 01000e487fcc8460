"""Annotation files: each field is needed and of its kind, and ids lead somewhere."""

import json

import pytest

from evit_mm.data.coco import is_number, read_coco
from evit_mm.errors import DataError


def content():
    box = {'image_id': 'i', 'category_id': 7, 'bbox': [1, 2, 3.5, 4], 'area': 14, 'iscrowd': 0}
    return {
        'images': [{'id': 'i', 'file_name': 'a.png', 'width': 1, 'height': 9}],
        'annotations': [{'id': 1, **box}, {'id': 2, **box, 'iscrowd': 1}],
        'categories': [{'id': 7, 'name': 'cat'}],
    }


def faults(coco, folder, *parts):
    path = folder / 'a.json'
    path.write_text(coco if isinstance(coco, str) else json.dumps(coco))
    try:
        assert read_coco(str(path), *parts) == coco
    except DataError as error:
        assert all(line.startswith(f"'{path}'") for line in str(error).splitlines())
        return str(error).replace(f"'{path}': ", '').splitlines()
    return []


@pytest.mark.parametrize(
    ('part', 'field', 'wrong', 'kind'),
    [
        ('images', 'id', 1.5, 'an integer or a string'),
        ('images', 'file_name', '', 'a non-empty string'),
        ('images', 'width', 0, 'a positive integer'),
        ('images', 'height', 2.0, 'a positive integer'),
        ('annotations', 'id', None, 'an integer or a string'),
        ('annotations', 'image_id', [1], 'an integer or a string'),
        ('annotations', 'category_id', {}, 'an integer or a string'),
        ('annotations', 'bbox', [1, 2, 3, 4, 5], 'four finite numbers [x, y, width, height]'),
        ('annotations', 'bbox', 'abcd', 'four finite numbers [x, y, width, height]'),
        ('annotations', 'area', float('inf'), 'a finite number'),
        ('annotations', 'iscrowd', 2, '0 or 1'),
        ('annotations', 'iscrowd', 0.0, '0 or 1'),
        ('categories', 'id', 0.5, 'an integer or a string'),
        ('categories', 'name', 3, 'a non-empty string'),
    ],
)
def test_a_wrong_or_missing_field_is_named(part, field, wrong, kind, tmp_path):
    coco = content()
    assert faults(coco, tmp_path) == []
    number = len(coco[part])
    coco[part][-1][field] = wrong
    assert faults(coco, tmp_path) == [
        f"'{field}' is not {kind} in 1 of {number} {part} (the first value is {wrong!r}); correct "
        f'or remove these {part}'
    ]
    del coco[part][-1][field]
    (fault,) = faults(coco, tmp_path)
    assert fault.startswith(f"'{field}' is missing in 1 of {number} {part}; add it")
    assert ('width times height' in fault) == (field == 'area')
    assert ('1 for a crowd' in fault) == (field == 'iscrowd')


def test_ids_are_unique_and_lead_somewhere(tmp_path):
    coco = content()
    coco['annotations'][1]['id'] = 1
    coco['annotations'][1]['image_id'] = 'j'
    coco['categories'] *= 2
    found = faults(coco, tmp_path)
    assert found == [
        'annotations have duplicate ids (1); make them unique',
        'categories have duplicate ids (7); make them unique',
        "the image_id of annotations 1 is not in 'images'; correct or remove them",
    ]
    coco = content()
    coco['annotations'][0]['category_id'] = '7'
    assert faults(coco, tmp_path) == [
        "the category_id of annotations 1 is not in 'categories'; correct or remove them"
    ]
    del coco['annotations']
    assert faults(coco, tmp_path, ('images', 'categories')) == []


def test_lists_that_are_missing_or_empty_are_named(tmp_path):
    none = [f"'{part}' is missing or not a list of dicts; export" for part in content()]
    for coco in ({}, [1], dict.fromkeys(content(), {}), dict.fromkeys(content(), [1])):
        found = faults(coco, tmp_path)
        assert [fault.partition(' the file')[0] for fault in found] == none
    empty = dict.fromkeys(content(), [])
    assert faults(empty, tmp_path) == [
        "the list 'images' is empty; add at least one image",
        "the list 'categories' is empty; add at least one category",
    ]
    assert faults({**content(), 'annotations': []}, tmp_path) == []
    assert 'a.json' in faults('{"images"', tmp_path)[0]


@pytest.mark.parametrize(
    ('folder', 'fix'),
    [
        ('coco', '; arrange COCO 2017 as .*/coco/annotations/instances_{train,val}2017.json'),
        ('my_shapes', r'; run python tools/make_shapes\.py .*/my_shapes$'),
        ('mine', '; check data_root and ann_file$'),
    ],
)
def test_a_missing_file_is_named_with_what_makes_it(folder, fix, tmp_path):
    path = tmp_path / folder / 'annotations' / 'instances_val.json'
    with pytest.raises(DataError, match=f"^annotation file '{path}' does not exist{fix}"):
        read_coco(path)


def test_numbers_are_finite():
    assert is_number(0) and is_number(-1.5)
    assert not any(map(is_number, ['1', None, float('nan'), float('-inf'), [1]]))
