"""The config that training writes from a data folder, and the way from a folder to an AP."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from evit_mm.data.layout import find_data
from evit_mm.errors import ConfigError
from evit_mm.runner.config import load_config
from evit_mm.runner.data_config import config_for_data, data_models, image_scale
from tests.conftest import ROOT
from tests.data import exports

NAMES = ('cat', "a 'great' dog", 'Zürich "x" {{ fileDirname }} \\n')


def folder(root, number=3, size=(40, 30), names=NAMES):
    """A COCO data set with one box per image."""
    for split, count in (('train', number), ('val', 2)):
        (root / 'images').mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        images = []
        for k in range(count):
            cv2.imwrite(str(root / 'images' / f'{split}{k}.png'), pixels)
            name = f'{split}{k}.png'
            images.append({'id': k, 'file_name': name, 'width': size[0], 'height': size[1]})
        box = {'bbox': [5, 5, 20, 12], 'area': 240, 'iscrowd': 0}
        coco = {
            'images': images,
            'annotations': [
                {'id': k, 'image_id': k, 'category_id': 1, **box} for k in range(count)
            ],
            'categories': [{'id': k, 'name': name} for k, name in enumerate(names, 1)],
        }
        exports.write(root / 'annotations' / f'instances_{split}.json', json.dumps(coco))
    return root


@pytest.mark.parametrize('model', sorted(data_models()))
def test_the_config_has_classes_paths_and_sizes_of_the_data(model, tmp_path):
    root = folder(tmp_path / ('a' * 90) / 'my \'cells\' "\\n" {{ fileDirname }}')
    file, lines = config_for_data(root, model, tmp_path / 'work')
    assert file == tmp_path / 'work' / f'{model}_my_cells_n_fileDirname_.py'
    assert lines[0].endswith(
        'COCO format: 3 images for training, 2 for validation, 3 classes (' + ', '.join(NAMES) + ')'
    )
    assert lines[1] == f"config: written to '{file}'; edit it to change the training"
    cfg, base = load_config(file), Config.fromfile(str(data_models()[model]))
    assert cfg.model.bbox_head.num_classes == 3
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        name = 'train' if split == 'train' else 'val'
        assert dataset.metainfo.classes == NAMES
        assert (
            Path(dataset.data_root, dataset.ann_file) == root / f'annotations/instances_{name}.json'
        )
        assert Path(dataset.data_root, dataset.data_prefix.img) == root / 'images'
        old = base[f'{split}_dataloader'].dataset.pipeline
        assert [step.type for step in dataset.pipeline] == [step.type for step in old]
        assert [step.scale for step in dataset.pipeline if step.type == 'Resize'] == [(128, 128)]
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file
    assert Path(cfg.val_evaluator.ann_file) == root / 'annotations/instances_val.json'
    # three images, batches of four, 1500 iterations: more epochs than the most
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].T_max == 100
    assert cfg.train_cfg.val_interval == 10 and cfg.train_cfg.type == base.train_cfg.type
    assert cfg.train_dataloader.dataset.filter_cfg == {'filter_empty_gt': False, 'min_size': 0}
    # everything else is the base's
    assert cfg.optim_wrapper == base.optim_wrapper and cfg.default_hooks == base.default_hooks
    assert {**cfg.model.bbox_head, 'num_classes': 0} == {**base.model.bbox_head, 'num_classes': 0}


def test_the_lines_of_the_config_are_short(tmp_path):
    names = [f'class {k}' for k in range(80)]
    file, _ = config_for_data(folder(tmp_path / 'set', names=names), work_dir=tmp_path)
    assert load_config(file).classes == tuple(names)
    lines = file.read_text().splitlines()
    ours = [line for line in lines if not line.startswith(('_base_', 'data_root'))]
    assert len(ours) > 25 and all(len(line) <= 100 for line in ours)


def test_options_of_a_run_change_what_follows_and_not_the_file(tmp_path):
    file, _ = config_for_data(folder(tmp_path / 'set'), work_dir=tmp_path)
    before = file.read_text()
    cfg = load_config(file, {'max_epochs': 30, 'scale': (96, 64), 'batch_size': 2})
    schedule = (cfg.train_cfg.max_epochs, cfg.param_scheduler[1].T_max, cfg.train_cfg.val_interval)
    assert schedule == (30, 30, 3) and cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr.base_batch_size == 4  # the batch size of the learning rate
    assert load_config(file, {'max_epochs': 9}).train_cfg.val_interval == 1
    for split in ('train', 'val', 'test'):
        pipeline = cfg[f'{split}_dataloader'].dataset.pipeline
        assert [step.scale for step in pipeline if step.type == 'Resize'] == [(96, 64)]
    assert file.read_text() == before


@pytest.mark.parametrize(
    ('number', 'batch_size', 'epochs'), [(60, 4, 100), (200, 4, 30), (499, 4, 12), (500, 8, 24)]
)
def test_batch_size_and_epochs_follow_the_number_of_images(number, batch_size, epochs, tmp_path):
    root = folder(tmp_path / 'set', number, (8, 8))
    cfg = load_config(config_for_data(root, work_dir=tmp_path)[0])
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == batch_size
    assert cfg.train_cfg.max_epochs == epochs


@pytest.mark.parametrize(
    ('size', 'scale'),
    [
        ((640, 480), (640, 480)),
        ((480, 640), (640, 480)),
        ((1920, 1080), (640, 384)),
        ((300, 200), (320, 224)),
        ((64, 64), (128, 128)),
        ((4000, 200), (640, 128)),
    ],
)
def test_the_image_size_is_the_median_in_multiples_of_32(size, scale, tmp_path):
    data = find_data(folder(tmp_path / 'set', size=size))
    assert image_scale(data.train) == scale


def test_a_link_to_the_data_gives_the_config_its_name(tmp_path, monkeypatch):
    (tmp_path / 'cells').symlink_to(folder(tmp_path / 'set'))
    monkeypatch.chdir(tmp_path / 'cells')
    assert config_for_data('.')[0] == Path('work_dirs/rtmdet_m0_set/rtmdet_m0_set.py')
    monkeypatch.chdir(tmp_path)
    assert config_for_data('cells')[0] == Path('work_dirs/rtmdet_m0_cells/rtmdet_m0_cells.py')


def test_processes_that_come_together_write_the_config_once(tmp_path):
    root = folder(tmp_path / 'set')
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(config_for_data, root, work_dir=tmp_path / 'work') for _ in range(8)]
    lines = [task.result()[1][-1] for task in found]
    assert sum('written to' in line for line in lines) == 1
    assert [path.name for path in (tmp_path / 'work').iterdir()] == ['rtmdet_m0_set.py']


def test_an_edited_config_is_found_and_kept(tmp_path):
    root = folder(tmp_path / 'set')
    file, written = config_for_data(root, work_dir=tmp_path / 'work')
    # the next run
    kept = f"config: '{file}'; edit it to change the training"
    assert config_for_data(root, work_dir=tmp_path / 'work') == (file, [*written[:-1], kept])
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    edited = file.read_text() + '\nlog_level = "ERROR"\n'
    file.write_text(edited)
    again, lines = config_for_data(root, work_dir=tmp_path / 'work')
    assert again == file and file.read_text() == edited
    assert lines[1:] == [
        f"config: '{file}' exists and is used as it is; delete it to write it again"
    ]
    other = shutil.copytree(root, tmp_path / 'other' / 'set')
    with pytest.raises(ConfigError, match="set.py' trains on '.*', not on '.*; choose another --w"):
        config_for_data(other, work_dir=tmp_path / 'work')


@pytest.mark.parametrize('rank', ['0', '1'])
def test_the_first_process_prints_the_lines(rank, tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr('evit_mm.runner.train.train', lambda **flags: trained.append(flags))
    monkeypatch.setenv('RANK', rank)
    monkeypatch.setenv('LOCAL_RANK', rank)
    monkeypatch.chdir(folder(tmp_path / 'set').parent)
    monkeypatch.setattr('sys.argv', ['train.py', '--data', 'set', '--cfg-options', 'max_epoch=1'])
    runpy.run_path(str(ROOT / 'tools' / 'train.py'), run_name='__main__')
    (flags,) = trained
    assert flags['config'].is_file() and flags['cfg_options'] == {'max_epoch': 1}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(':')[0] for line in lines] == (['data', 'config'] if rank == '0' else [])


def test_unknown_models_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"unknown --model 'rtmdet-m0' \(did you mean 'rtmdet_m0'"
    ):
        config_for_data(folder(tmp_path / 'set'), 'rtmdet-m0', tmp_path / 'work')
    assert not (tmp_path / 'work').exists()


@pytest.mark.slow
@pytest.mark.parametrize('writer', [exports.yolo, exports.voc], ids=lambda writer: writer.__name__)
def test_one_command_from_a_folder_to_an_ap(writer, real_data, tmp_path):
    small = exports.small_set(real_data('bccd'), tmp_path / 'coco')
    writer(small, tmp_path / 'cells')
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools/train.py'), '--data', 'cells', '--device', 'cpu']
        + ['--seed', '0', '--cfg-options', 'max_epochs=1', 'scale=(96,64)']
        + ['model.test_cfg.score_thr=0']
        + [f'{s}_dataloader.num_workers=0' for s in ('train', 'val')]
        + [f'{s}_dataloader.persistent_workers=False' for s in ('train', 'val')],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    work = tmp_path / 'work_dirs' / 'rtmdet_m0_cells'
    assert f"config: written to '{work.relative_to(tmp_path)}/rtmdet_m0_cells.py'" in done.stdout
    best = json.loads((work / 'summary.json').read_text())['best']
    assert best['metric'] == 'coco/bbox_mAP' and 0 <= best['value'] <= 1
    # the config in the work dir has another scale
    used = next(line for line in done.stdout.splitlines() if 'test.py' in line).split()[-2]
    assert used.endswith('/vis_data/config.py') and Config.fromfile(tmp_path / used).scale == (
        96,
        64,
    )
    assert Config.fromfile(str(work / 'rtmdet_m0_cells.py')).max_epochs == 100
