"""Annotation files: each field is needed and of its kind, and ids lead somewhere."""

import json

import evit_mm.ops  # noqa: F401  # isort: skip - before mmdet imports mmcv.ops
import pytest
from mmdet.datasets import CocoDataset

from evit_mm.data.coco import NOUNS, is_number, read_coco, repaired
from evit_mm.data.coco_dataset import TolerantCocoDataset
from evit_mm.data.images import some
from evit_mm.errors import DataError
from evit_mm.utils.text import counted


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
        assert read_coco(str(path), *parts).keys() == coco.keys()
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
        ('images', 'height', 2.5, 'a positive integer'),
        ('annotations', 'id', None, 'an integer or a string'),
        ('annotations', 'image_id', [1], 'an integer or a string'),
        ('annotations', 'category_id', {}, 'an integer or a string'),
        ('annotations', 'bbox', [1, 2, 3, 4, 5], 'four finite numbers [x, y, width, height]'),
        ('annotations', 'bbox', 'abcd', 'four finite numbers [x, y, width, height]'),
        ('annotations', 'area', float('inf'), 'a finite number'),
        ('annotations', 'iscrowd', 2, '0 or 1'),
        ('annotations', 'iscrowd', 0.5, '0 or 1'),
        ('categories', 'id', 0.5, 'an integer or a string'),
        ('categories', 'name', 3, 'a non-empty string'),
    ],
)
def test_a_wrong_or_missing_field_is_named(part, field, wrong, kind, tmp_path):
    coco = content()
    assert faults(coco, tmp_path) == []
    number = len(coco[part])
    coco[part][-1][field] = wrong
    noun = counted(number, NOUNS[part])
    names = [coco[part][-1]['id']]
    assert faults(coco, tmp_path)[:1] == [
        f"'{field}' is not {kind} in 1 of {noun} ({some(names)}), the first value is {wrong!r}; "
        f'correct or remove these {part}'
    ]
    del coco[part][-1][field]
    found = faults(coco, tmp_path)
    if field in ('area', 'iscrowd'):
        assert found == []  # filled in
    else:
        name = f'number {number}' if field == 'id' else some(names)
        assert found[0] == f"'{field}' is missing in 1 of {noun} ({name}); add it"


def test_integers_that_were_written_as_floats_mean_the_same(tmp_path):
    """Tables that were read with pandas have 128.0. mmdet's data set is the oracle."""
    coco = content()
    coco['images'][0].update(id=3, width=128, height=96)
    coco['annotations'][0]['image_id'] = coco['annotations'][1]['image_id'] = 3
    coco['annotations'][0]['bbox'] = [100, 90, 50, 50]  # clipped
    keys = ('id', 'image_id', 'category_id', 'iscrowd', 'width', 'height')
    floats = {
        part: [{k: float(v) if k in keys else v for k, v in item.items()} for item in items]
        for part, items in coco.items()
    }
    assert faults(floats, tmp_path) == []
    (image,) = read_coco(tmp_path / 'a.json')['images']
    assert image == coco['images'][0] and {type(image[k]) for k in ('id', 'width')} == {int}
    (tmp_path / 'b.json').write_text(json.dumps(coco))
    options = {'metainfo': {'classes': ('cat',)}, 'data_prefix': {'img': ''}, 'pipeline': []}
    loaded = [
        kind(ann_file=str(tmp_path / name), **options)
        for kind, name in (
            (CocoDataset, 'b.json'),
            (CocoDataset, 'a.json'),
            (TolerantCocoDataset, 'a.json'),
        )
    ]
    first, *others = [[dataset.get_data_info(0)] for dataset in loaded]
    assert len(first[0]['instances']) == 2 and all(other == first for other in others)


def test_ids_are_unique_and_lead_somewhere(tmp_path):
    coco = content()
    coco['annotations'][1]['id'] = 1
    coco['annotations'][1]['image_id'] = 'j'
    coco['categories'] *= 2
    found = faults(coco, tmp_path)
    assert found == [
        'annotations have duplicate ids (1); make them unique',
        'categories have duplicate ids (7); make them unique',
        "the image_id of annotation 1 is not in 'images'; correct or remove it",
    ]
    coco = content()
    coco['annotations'][0]['category_id'] = '7'
    assert faults(coco, tmp_path) == [
        "the category_id of annotation 1 is not in 'categories'; correct or remove it"
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


def test_what_has_one_possible_value_is_filled_in():
    coco = content()
    one, two = coco['annotations']
    del one['area'], two['iscrowd']
    two.update(bbox=[9, 8, -3, -2], area=None)
    before = json.dumps(coco)
    fixed, repairs = repaired(coco)
    assert repairs == {'area': [1, 2], 'iscrowd': [2], 'bbox': [2]}
    assert fixed['annotations'][0] == {**one, 'area': 14}
    assert fixed['annotations'][1] == {**two, 'bbox': [6, 6, 3, 2], 'area': 6, 'iscrowd': 0}
    assert json.dumps(coco) == before
    assert repaired(coco, boxes=False)[0]['annotations'][1]['bbox'] == [9, 8, -3, -2]
    two.update(bbox=[9, 8, -3, 2], area=-6)  # the area has the sign of the width
    assert repaired(coco)[0]['annotations'][1]['area'] == 6
    assert repaired(content()) == (content(), {'area': [], 'iscrowd': [], 'bbox': []})
    for other in ([1], {}, {'annotations': 3}, {'annotations': [3]}):
        assert repaired(other)[0] == other


def test_any_utf_8_is_read(tmp_path):
    coco = content()
    coco['categories'][0]['name'] = 'Größe'
    text = json.dumps(coco, ensure_ascii=False)
    path = tmp_path / 'a.json'
    for data in (text.encode(), text.encode('utf-8-sig')):
        path.write_bytes(data)
        assert read_coco(path) == coco
    path.write_bytes(text.encode('latin-1'))
    with pytest.raises(DataError, match=r"a\.json' is not in UTF-8 .*; save it as UTF-8"):
        read_coco(path)


def test_numbers_are_finite():
    assert is_number(0) and is_number(-1.5)
    assert not any(map(is_number, ['1', None, float('nan'), float('-inf'), [1]]))
