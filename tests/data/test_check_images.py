"""Image folders of a classifier: what would give wrong labels is named before a training."""

import shutil

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from evit_mm.data.check_images import image_data_faults


@pytest.fixture
def root(tmp_path):
    for split in ('train', 'val'):
        for name in ('blue', 'green', 'red'):
            folder = tmp_path / split / name / 'more'
            folder.mkdir(parents=True)
            cv2.imwrite(str(folder / '0.png'), np.zeros((4, 4, 3), np.uint8))
            (folder.parent / '.1.png').write_bytes(b'')  # hidden, and no image
    return tmp_path


def config(root, classes=3, **changes):
    cfg = Config({'model': {'head': {'num_classes': classes}}})
    for split in ('train', 'val', 'test'):
        dataset = {'type': 'CustomDataset', 'data_root': str(root), 'data_prefix': split}
        cfg[f'{split}_dataloader'] = {'dataset': dataset}
        cfg[f'{split}_evaluator'] = {'type': 'Accuracy', 'topk': (1, 3)}
    cfg.test_dataloader.dataset.data_prefix = {'img_path': 'val'}
    cfg.merge_from_dict(changes)
    return cfg


def faults(*args, **changes):
    cfg = config(*args, **changes)
    return [fault for split in ('train', 'val', 'test') for fault in image_data_faults(cfg, split)]


def test_good_folders_have_no_faults(root, monkeypatch):
    assert faults(root) == []
    assert faults(root, model={'head': {'num_classes': None}}) == []
    assert faults(root, model={'_delete_': True, 'head': None}, val_evaluator={'topk': 9}) == []
    monkeypatch.setenv('HOME', str(root))
    assert faults('~') == []
    split = {'_delete_': True, 'type': 'ImageNet', 'data_root': str(root), 'split': 'val'}
    assert faults(root, val_dataloader={'dataset': split}) == []


@pytest.mark.parametrize(
    ('missing', 'said'),
    [
        ('train', "image folder '{}/train' does not exist; set train_dataloader.dataset.data_root"),
        (
            'train/red/more',
            "'{}/train': no image (.jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif) in re",
        ),
    ],
)
def test_a_missing_folder_of_the_training_is_named(root, missing, said):
    shutil.rmtree(root / missing)
    (fault,) = faults(root)
    assert fault.startswith(said.format(root))


def test_numbers_and_names_of_the_folders_are_compared(root):
    for split in ('train', 'val'):
        said = f"model.head.num_classes is 4 but '{root}/{split}' has 3 class folders; set model."
        assert any(f.startswith(said) and f.endswith('num_classes=3') for f in faults(root, 4))
    (root / 'val' / 'green').rename(root / 'val' / 'verde')
    said = f"'{root}/val' and '{root}/train' have different class folders (green, verde), so"
    assert [fault.startswith(said) for fault in faults(root)] == [True, True]  # val and test
    # the labels of a list do not come from the folders
    (root / 'list.txt').write_text('blue/more/0.png 1\n')
    assert len(faults(root, val_dataloader={'dataset': {'ann_file': 'list.txt'}})) == 1
    assert faults(root, train_dataloader={'dataset': {'ann_file': 'list.txt'}}) == []
    (fault,) = image_data_faults(config(root, val_dataloader={'dataset': {'ann_file': 'a'}}), 'val')
    assert fault == f"image list '{root}/a' does not exist; check data_root and ann_file"
    (root / 'meta').mkdir()
    (root / 'meta' / 'val.txt').write_text('')  # where ImageNet has its labels
    dataset = {'_delete_': True, 'type': 'ImageNet', 'data_root': str(root), 'split': 'val'}
    assert image_data_faults(config(root, val_dataloader={'dataset': dataset}), 'val') == []
    shutil.rmtree(root / 'val')
    (root / 'val').mkdir()
    (fault,) = image_data_faults(config(root), 'val')
    assert (
        fault == f"'{root}/val' has no class folders; arrange the images as {root}/val/CLASS/IMAGE"
    )


def test_an_image_that_is_none_is_named(root):
    (root / 'val' / 'red' / 'more' / '0.png').write_bytes(b'\x89PNG')
    (fault,) = image_data_faults(config(root), 'val')
    assert fault == f"image '{root}/val/red/more/0.png' cannot be decoded; replace or remove it"
    (root / 'val' / 'red' / 'more' / '0.png').rename(root / 'val' / 'red' / '0.JPEG')
    assert 'red/0.JPEG' in image_data_faults(config(root), 'val')[0]


@pytest.mark.parametrize(('topk', 'top'), [(4, 4), ((1, 4), 4), ((5, 1), 5), (3, 0), (None, 0)])
def test_more_answers_than_classes_are_named(root, topk, top):
    evaluators = [{'type': 'SingleLabelMetric'}, {'type': 'Accuracy', 'topk': topk}]
    for evaluator in (evaluators, evaluators[1]):
        cfg = config(root)
        cfg.val_evaluator = evaluator
        found = image_data_faults(cfg, 'val')
        said = f'val_evaluator computes the top-{top} accuracy of only 3 classes; set val_evaluato'
        assert [fault.startswith(said) for fault in found] == [True] * bool(top)
