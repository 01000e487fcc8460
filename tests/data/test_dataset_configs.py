import json
from pathlib import Path

from mmdet.datasets import CocoDataset
from mmengine.config import Config

from evit_mm.data.dataset_configs import (
    coco_datasets,
    dataset_paths,
    find_datasets,
    image_suffixes,
)


def test_data_sets_are_found_inside_others():
    one, two, three = ({'type': 'CocoDataset', 'ann_file': name} for name in 'abc')
    folder = {'type': 'mmpretrain.ImageNet', 'data_root': 'd'}
    inner = {'type': 'ConcatDataset', 'datasets': [one, {**two, 'type': 'mmdet.CocoDataset'}]}
    repeated = {'type': 'RepeatDataset', 'times': 2, 'dataset': inner}
    nested = {'dataset': [repeated, three, folder, {'type': 'CocoDatasetX'}, None]}
    cfg = Config({'train_dataloader': nested, 'val_dataloader': None})
    assert [found['ann_file'] for found in coco_datasets(cfg, 'train')] == ['a', 'b', 'c']
    assert [found['data_root'] for found in find_datasets(cfg, 'train', 'ImageNet', 'X')] == ['d']
    assert not [*coco_datasets(cfg, 'val'), *coco_datasets(cfg, 'test')]


def test_paths_are_those_that_mmdet_reads():
    dataset = {
        'type': 'CocoDataset',
        'data_root': 'root',
        'ann_file': 'a/b.json',
        'data_prefix': {'img': 'images/'},
        'metainfo': {'classes': ('cat',)},
        'pipeline': [{'type': 'LoadAnnotations', 'with_bbox': True}, {'type': 'Resize'}],
    }
    assert dataset_paths(dataset) == {
        'ann_file': Path('root/a/b.json'),
        'img_dir': Path('root/images'),
        'classes': ('cat',),
        'with_mask': False,
        'pipeline': dataset['pipeline'],
    }
    dataset['pipeline'][0]['with_mask'] = True
    assert dataset_paths(dataset)['with_mask']
    bare = dataset_paths({'ann_file': '/a/b.json'})
    assert bare['ann_file'] == Path('/a/b.json') and bare['img_dir'] == Path()
    assert bare['classes'] == CocoDataset.METAINFO['classes'] and not bare['with_mask']


def test_images_have_the_suffixes_of_opencv_and_of_the_annotation_file(tmp_path):
    image = {'id': 1, 'width': 9, 'height': 9, 'file_name': 'a/b.FITS'}
    (tmp_path / 'a.json').write_text(json.dumps({'images': [image]}))
    dataset = {'type': 'CocoDataset', 'data_root': str(tmp_path), 'ann_file': 'a.json'}
    cfg = Config({'test_dataloader': {'dataset': dataset}})
    assert '.fits' not in image_suffixes(cfg)  # which LoadImageFromFile does not read
    dataset['pipeline'] = [{'type': 'LoadFits'}]
    cfg = Config({'test_dataloader': {'dataset': dataset}})
    assert {'.jpg', '.jfif', '.fits'} <= {*image_suffixes(cfg)}
    (tmp_path / 'a.json').unlink()  # images can be predicted without it
    assert {'.jpg', '.jfif'} <= {*image_suffixes(cfg)} and '.fits' not in image_suffixes(cfg)
