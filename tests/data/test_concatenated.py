import copy
import json
import types

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.engine.hooks import NumClassCheckHook
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from evit_mm.data.check import inspect_config_data
from tests.data.test_evaluators import CLASSES, ap, made


@pytest.fixture
def parts(tmp_path):
    """Two data sets whose image ids both start at 0, in one folder."""
    init_default_scope('mmdet')
    parts = []
    for name in ('a', 'b'):
        coco = made()
        for image in coco['images']:
            image['file_name'] = f'{name}{image["id"]}.png'
            pixels = np.full((60, 80, 3), 50 * len(parts) + image['id'], np.uint8)
            cv2.imwrite(str(tmp_path / image['file_name']), pixels)
        parts.append(coco)
    # an object of the second file, where the first has none
    parts[1]['annotations'][0]['bbox'] = [50, 35, 20, 20]
    return parts


def config(folder, parts, split='test', evaluator=None, **joined):
    datasets = []
    for name, coco in zip('ab', parts, strict=True):
        (folder / f'{name}.json').write_text(json.dumps(coco))
        dataset = {'type': 'CocoDataset', 'ann_file': str(folder / f'{name}.json')}
        dataset |= {'metainfo': {'classes': CLASSES}, 'data_prefix': {'img': str(folder)}}
        datasets.append({**dataset, 'pipeline': [], 'test_mode': split != 'train'})
    dataset = {'type': 'ConcatDataset', 'datasets': datasets, **joined}
    cfg = Config({'model': {}, f'{split}_dataloader': {'dataset': dataset}})
    if evaluator is not None:
        cfg.test_evaluator = evaluator
    return cfg


def metric(path):
    return {'type': 'HotCocoMetric', 'ann_file': str(path)}


def test_one_evaluator_of_two_data_sets_with_the_same_ids(parts, tmp_path):
    cfg = config(tmp_path, parts, evaluator=metric(tmp_path / 'a.json'))
    # all objects of both are found, but those of the second are looked for in the first
    found = copy.deepcopy(parts[0])
    found['annotations'] += parts[1]['annotations']
    assert ap('HotCocoMetric', tmp_path / 'a.json', found) < 1
    (fault,) = inspect_config_data(cfg, ('test',)).faults
    assert fault.startswith('test: test_evaluator: 2 image ids (0, 1) are in several data sets')
    for part in 'ab':  # the fix that the message names
        assert ap('HotCocoMetric', tmp_path / f'{part}.json', parts['ab'.index(part)]) == 1
    metrics = [metric(tmp_path / f'{part}.json') for part in 'ab']
    each = {'type': 'MultiDatasetsEvaluator', 'metrics': metrics, 'dataset_prefixes': ['a', 'b']}
    assert not inspect_config_data(config(tmp_path, parts, evaluator=each), ('test',)).faults
    metrics.reverse()
    faults = inspect_config_data(config(tmp_path, parts, evaluator=each), ('test',)).faults
    assert len(faults) == 2 and "but test_dataloader reads '" in faults[0]


def test_the_file_of_an_evaluator_has_the_images_of_all_data_sets(parts, tmp_path):
    for item in parts[1]['images']:
        item['id'] += 7
    for item in parts[1]['annotations']:
        item['image_id'] += 7
        item['id'] += 7
    both = {**parts[0]}
    for key in ('images', 'annotations'):
        both[key] = parts[0][key] + parts[1][key]
    (tmp_path / 'both.json').write_text(json.dumps(both))
    cfg = config(tmp_path, parts, evaluator=metric(tmp_path / 'a.json'))
    (fault,) = inspect_config_data(cfg, ('test',)).faults
    assert "a.json', which lacks 2 images of test_dataloader (b0.png, b1.png)" in fault
    cfg = config(tmp_path, parts, evaluator=metric(tmp_path / 'both.json'))
    assert not inspect_config_data(cfg, ('test',)).faults
    assert ap('HotCocoMetric', tmp_path / 'both.json', both) == 1
    cfg.val_dataloader, cfg.val_evaluator = cfg.test_dataloader, metric(tmp_path / 'a.json')
    (fault,) = inspect_config_data(cfg, ('test', 'val')).faults
    assert fault.startswith('val: val_evaluator.ann_file')
    cfg = config(tmp_path, parts, evaluator=metric(tmp_path / 'nothing.json'))
    (fault,) = inspect_config_data(cfg, ('test',)).faults
    assert fault.startswith("test: test_evaluator.ann_file: annotation file '")


@pytest.mark.parametrize(
    ('changes', 'first', 'message'),
    [
        ({'classes': ('dog', 'cat')}, 0, "differs from that of data set 1 (number 1 is 'cat', not"),
        ({'classes': ('cat',)}, 1, ' (1 entries, not 2); make them equal'),
        ({'palette': [(1, 2, 3), (4, 5, 6)]}, 1, "equal, or set ignore_keys=['palette'] in Con"),
        ({'city': 'Rome'}, 0, 'metainfo.city of data set 2 of ConcatDataset differs from that of '),
    ],
)
def test_metainfo_of_the_parts(changes, first, message, parts, tmp_path):
    cfg = config(tmp_path, parts, 'train')
    hooks = [{'type': 'NumClassCheckHook'}]
    joined = cfg.train_dataloader.dataset
    joined.datasets[first].metainfo.update(changes)

    def faults(hooks):
        cfg.custom_hooks = hooks
        found = inspect_config_data(cfg, ('train',)).faults
        return [fault for fault in found if 'ConcatDataset' in fault]

    (fault,) = faults(hooks)
    assert message in fault and ('ignore_keys' in fault) == ('classes' not in changes)
    assert bool(faults([])) == ('classes' in changes)
    # mmdet has a list of them then, where its hook expects a dict
    runner = types.SimpleNamespace(model=torch.nn.Identity(), train_dataloader=None)
    runner.train_dataloader = types.SimpleNamespace(dataset=DATASETS.build(joined))
    with pytest.raises(AttributeError):
        NumClassCheckHook().before_train_epoch(runner)
    joined.ignore_keys = [*changes]
    assert not faults(hooks)
    runner.train_dataloader.dataset = DATASETS.build(joined)
    NumClassCheckHook().before_train_epoch(runner)


def test_a_key_that_the_first_part_lacks(parts, tmp_path):
    cfg = config(tmp_path, parts, 'train')
    cfg.train_dataloader.dataset.datasets[1].metainfo.city = 'Rome'
    (fault,) = inspect_config_data(cfg, ('train',)).faults
    assert (
        "metainfo.city of data set 2 of ConcatDataset differs from that of data set 1 ('Rom"
        in fault
    )
    with pytest.raises(KeyError, match='city'):
        DATASETS.build(cfg.train_dataloader.dataset)


def test_parts_of_other_kinds(parts, tmp_path):
    cfg = config(tmp_path, parts, 'train')
    one, two = cfg.train_dataloader.dataset.datasets
    two.metainfo.classes = ('dog', 'cat')
    joined = cfg.train_dataloader.dataset
    for datasets in ([], [{'type': 'VOCDataset'}], [one], [one, {'type': 'VOCDataset'}]):
        joined.datasets = datasets
        assert not [f for f in inspect_config_data(cfg, ('train',)).faults if 'Concat' in f]
    del joined['datasets']
    assert not inspect_config_data(cfg, ('train',)).faults
    joined.datasets = [{'type': 'VOCDataset'}, one, {'type': 'RepeatDataset', 'dataset': two}]
    faults = [f for f in inspect_config_data(cfg, ('train',)).faults if 'ConcatDataset' in f]
    assert (
        len(faults) == 1
        and 'data set 3 of ConcatDataset differs from that of data set 2' in faults[0]
    )


def test_each_data_set_has_its_own_metainfo_and_evaluator(parts, tmp_path):
    metrics = [{'type': 'VOCMetric'}, *(metric(tmp_path / f'{part}.json') for part in 'ab')]
    each = {'type': 'MultiDatasetsEvaluator', 'metrics': metrics, 'dataset_prefixes': [*'vab']}
    cfg = config(tmp_path, parts, evaluator=each)
    cfg.test_dataloader.dataset.datasets[1].metainfo.palette = [(1, 2, 3), (4, 5, 6)]
    cfg.test_dataloader.dataset.datasets.insert(0, {'type': 'VOCDataset'})
    assert not inspect_config_data(cfg, ('test',)).faults
    cfg.test_evaluator = metric(tmp_path / 'a.json')
    assert 'metainfo.palette of data set 3' in inspect_config_data(cfg, ('test',)).faults[0]


def test_options_of_an_evaluator_of_two_data_sets(parts, tmp_path):
    evaluator = {'type': 'CocoMetric', 'iou_thrs': [0.8]}
    faults = inspect_config_data(config(tmp_path, parts, evaluator=evaluator), ('test',)).faults
    assert any('test_evaluator.iou_thrs is set, with which CocoMetric' in fault for fault in faults)


def test_classes_in_a_file(parts, tmp_path):
    (tmp_path / 'classes.txt').write_text('\n'.join(CLASSES) + '\n')
    cfg = config(tmp_path, parts, 'train')
    for part in cfg.train_dataloader.dataset.datasets:
        part.metainfo.classes = str(tmp_path / 'classes.txt')
    assert not inspect_config_data(cfg, ('train',)).faults
    built = DATASETS.build(cfg.train_dataloader.dataset)
    assert (
        isinstance(built.datasets[0], CocoDataset) and tuple(built.metainfo['classes']) == CLASSES
    )
    cfg.train_dataloader.dataset.datasets[0].metainfo.classes = 'classes.txt'
    faults = inspect_config_data(cfg, ('train',)).faults
    assert any("metainfo.classes is the string 'classes.txt'; use a tuple" in f for f in faults)


def test_metainfo_with_another_name_for_classes(parts, tmp_path):
    cfg = config(tmp_path, parts, 'train')
    for part in cfg.train_dataloader.dataset.datasets:
        part.metainfo = {'CLASSES': CLASSES}
    report = inspect_config_data(cfg, ('train',))
    assert report.faults == [
        "train: metainfo has 'CLASSES', which mmdet 3 does not read; rename it to 'classes'"
    ]
    assert len(DATASETS.build(cfg.train_dataloader.dataset).metainfo['classes']) == 80
