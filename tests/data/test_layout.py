"""The files of a data set are found where COCO and common exports have them."""

import json

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmengine.registry import init_default_scope

from evit_mm.data import check_coco
from evit_mm.data.layout import dataset_config, find_data
from evit_mm.errors import DataError


def write(root, names='instances_{}.json', folder='{}', categories=((7, 'cat'), (4, 'dog'))):
    """Write two images per split, 30 wide and 20 high; one cat, two dogs and a crowd of dogs."""
    (root / 'annotations').mkdir(parents=True, exist_ok=True)
    for split in ('train', 'val'):
        images = root / folder.format(split)
        images.mkdir(parents=True, exist_ok=True)
        for index in range(2):
            cv2.imwrite(str(images / f'{split}{index}.png'), np.zeros((20, 30, 3), np.uint8))
        kinds = [(7, 0), (4, 0), (4, 0), (4, 1)]
        coco = {
            'images': [
                {'id': i, 'file_name': f'{split}{i}.png', 'width': 30, 'height': 20} for i in (0, 1)
            ],
            'annotations': [
                {'id': i, 'image_id': 1, 'category_id': c, 'iscrowd': crowd}
                | {'bbox': [i, 2, 8, 9], 'area': 72}
                for i, (c, crowd) in enumerate(kinds)
            ],
            'categories': [{'id': key, 'name': name} for key, name in categories],
        }
        (root / 'annotations' / names.format(split)).write_text(json.dumps(coco))
    return root


@pytest.mark.parametrize(
    ('names', 'folder'),
    [
        ('instances_{}.json', '{}'),
        ('instances_{}2017.json', '{}2017'),
        ('instances_{}.json', 'images/{}'),
        ('instances_{}.json', 'images'),
        ('instances_{}.json', '.'),
    ],
)
def test_files_are_found_in_the_usual_places(names, folder, tmp_path):
    root = write(tmp_path / 'set', names, folder)
    data = find_data(str(root))
    for name, split in {'train': data.train, 'val': data.val}.items():
        assert split.ann_file == root / 'annotations' / names.format(name)
        assert split.img_dir == root / folder.format(name)
        assert split.first_image == split.img_dir / f'{name}0.png'
        assert split.classes == ('cat', 'dog') and split.num_boxes == {'cat': 1, 'dog': 2}
        assert split.num_images == 2 and split.sizes[0] == (30, 20)


def test_the_first_place_is_taken(tmp_path):
    root = write(write(tmp_path / 'set', folder='images'), folder='{}')
    write(root, 'instances_{}2017.json', categories=((7, 'hen'), (4, 'cow')))
    data = find_data(root)
    for name, split in {'train': data.train, 'val': data.val}.items():
        assert split.img_dir == root / name and split.classes == ('cat', 'dog')


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match="'.*gone' does not exist; give the folder with its"):
        find_data(tmp_path / 'gone')
    root = write(tmp_path / 'set')
    val = root / 'annotations' / 'instances_val.json'
    text = val.read_text()
    val.write_text(text.replace('cat"', 'cow"'))
    with pytest.raises(DataError, match=r"train.json' has the categories .*'cat'.* but .*'cow'"):
        find_data(root)
    val.write_text(text.replace('val0', 'val9'))
    missing = r"1 of 2 images of '\S+val.json' do not exist \(val9.png\); put .*/set/val'"
    with pytest.raises(DataError, match=missing):
        find_data(root)
    (root / 'annotations' / 'instances_train.json').unlink()
    val.write_text(text)
    with pytest.raises(DataError, match="has no images for the split 'train'; add some"):
        find_data(root)


@pytest.mark.parametrize(
    ('categories', 'classes'),
    [
        ([(4, 'dog'), (7, 'cat')], ('cat', 'dog')),
        ([(7, 'cat'), (4, 'dog'), (9, 'cow')], ('cat', 'dog', 'cow')),
    ],
)
def test_a_validation_file_with_other_categories_is_converted(categories, classes, tmp_path):
    root = write(tmp_path / 'set')
    val = root / 'annotations' / 'instances_val.json'
    coco = json.loads(val.read_text())
    coco['categories'] = [{'id': key, 'name': name} for key, name in categories]
    if len(categories) == 3:  # a class without boxes is left out
        coco['annotations'].append({**coco['annotations'][0], 'id': 9, 'category_id': 9})
    val.write_text(json.dumps(coco))
    data = find_data(root)
    assert data.train.classes == data.val.classes == classes
    kinds = [7, 4, 4, 4, 9][: len(coco['annotations'])]
    names = dict(categories)
    init_default_scope('mmdet')
    dataset = CocoDataset(test_mode=True, **dataset_config(data.val, []))
    labels = [item['bbox_label'] for item in dataset.get_data_info(1)['instances']]
    assert [classes[label] for label in labels] == [names[kind] for kind in kinds]


def test_a_finding_on_a_converted_file_names_the_folder_with_the_files(tmp_path):
    root = write(tmp_path / 'set')
    assert check_coco(find_data(root).val.ann_file, root / 'val', ('cow',))[0][0].startswith(
        f"'{root}/annotations/instances_val.json': metainfo.classes has cow"
    )
    (root / 'annotations').rename(root / 'labels')
    val = find_data(root).val
    (fault,) = check_coco(val.ann_file, val.img_dir, ('cow',))[0]
    assert f"instances_val.json', converted from '{root}': metainfo.classes has cow" in fault


def test_a_broken_link_is_a_missing_image(tmp_path):
    root = write(tmp_path / 'set')
    (root / 'train' / 'train0.png').unlink()
    (root / 'train' / 'train0.png').symlink_to('nowhere.png')
    with pytest.raises(DataError, match=r"1 of 2 images of '.*' do not exist \(train0.png\)"):
        find_data(root)


def test_without_validation_images_some_training_images_take_their_place(tmp_path):
    root = write(tmp_path / 'set')
    (root / 'annotations' / 'instances_val.json').unlink()
    data = find_data(root)
    assert (data.train.num_images, data.val.num_images) == (1, 1)
    assert data.notes[0].startswith('no validation split found; 1 of 2 images were taken for val')


def test_mmdet_loads_a_split_with_its_own_classes(tmp_path):
    init_default_scope('mmdet')
    root = write(tmp_path / 'set')
    val = find_data(root).val
    steps = [{'type': 'LoadImageFromFile'}]
    dataset = CocoDataset(test_mode=True, **dataset_config(val, steps))
    assert dataset.metainfo['classes'] == ('cat', 'dog')
    assert dataset[1]['img_path'] == f'{root}/val/val1.png' and dataset[1]['img'].shape[0] == 20
    assert [item['bbox_label'] for item in dataset[1]['instances']] == [0, 1, 1, 1]
