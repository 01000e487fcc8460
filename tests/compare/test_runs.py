"""The comparison: one budget for all, nothing lost by interruptions, and an honest table."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from filelock import FileLock
from mmengine.config import Config

from evit_mm.compare import Budget, available_models, collect, compare, runs
from evit_mm.compare.benchmark import median_and_quartiles, time_interleaved
from evit_mm.compare.complexity import detector_macs
from evit_mm.compare.table import Row, markdown, ranking
from evit_mm.data import make_shapes
from evit_mm.data.layout import find_data
from evit_mm.errors import CheckpointError, ConfigError, DataError
from evit_mm.evaluation.bootstrap import draw_images, resampled_ap
from evit_mm.evaluation.boxes import coco_evaluator, evaluated_truth, read_found
from evit_mm.runner.build import load_detector
from tests.conftest import ROOT
from tests.data.test_formats import yolo

EPOCHS = 3
MODELS = ['evit_m0', 'mobilenetv2']
NAMES = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 16, 8, size=(64, 64), quiet=True)


@pytest.fixture
def copy(shapes, tmp_path):
    """A data set of its own for the test to break."""
    return shutil.copytree(shapes, tmp_path / 'shapes')


def small(data, **changes):
    # a hardly trained detector is sure of nothing; without a threshold it still has figures
    options = {'model.test_cfg.score_thr': 0.0}
    return Budget(str(data), EPOCHS, (64, 64), cfg_options=options, **changes)


@pytest.fixture(scope='module')
def finished(shapes, tmp_path_factory):
    """A comparison that nothing disturbed."""
    out = tmp_path_factory.mktemp('finished') / 'out'
    compare(small(shapes), MODELS, 1, out, device='cpu')
    return out


def edit(root, change, split='val'):
    path = root / 'annotations' / f'instances_{split}.json'
    coco = json.loads(path.read_text())
    change(coco)
    path.write_text(json.dumps(coco))


def table(out):
    return json.loads((out / 'table.json').read_text())


def fail(run, *_):
    """Stand in for a training that fails."""
    runs.write_json(run.folder / 'result.json', {'failure': 'not tried'})
    return []


def check_budget(out, budget):
    runs.check_same(out / 'compare.json', budget.record(), 'comparison', 'budget')


def row(name='evit_m4', *aps, failures=()):
    metrics = [dict.fromkeys(NAMES, ap / 100) for ap in aps]
    return Row(name, Config(), metrics, [2.0] * len(aps), list(failures))


# --- the budget


def test_everything_but_backbone_neck_and_pixels_is_the_same(shapes):
    configs = {name: small(shapes).config(name) for name in available_models()}
    assert {'evit_m0', 'evit_m4', 'mobilenetv2', 'mobilenetv3', 'spos', 'spnasnet'} <= set(configs)
    assert not [name for name in configs if 'lite' in name or 'plus' in name]
    first = configs['evit_m0']
    for name, cfg in configs.items():
        assert {k: v for k, v in cfg.items() if k != 'model'} == {
            k: v for k, v in first.items() if k != 'model'
        }
        for key in {*cfg.model} - {'backbone', 'neck', 'data_preprocessor'}:
            assert cfg.model[key] == first.model[key], (name, key)
        assert cfg.model.neck.out_channels == 64 and cfg.model.bbox_head.num_classes == 5
        assert cfg.model.backbone.norm_eval is False and cfg.model.backbone.init_cfg is None
        own = Config.fromfile(available_models()[name]).model
        assert cfg.model.data_preprocessor == own.data_preprocessor
        assert cfg.model.backbone.type == own.backbone.type
        assert cfg.model.neck.in_channels == own.neck.in_channels
    assert first.train_cfg.max_epochs == first.param_scheduler[1].T_max == EPOCHS
    assert first.max_epochs == EPOCHS < first.train_cfg.val_begin  # a test follows the training
    hook = first.default_hooks.checkpoint
    assert (hook.interval, hook.max_keep_ckpts) == (1, 2)  # one more than the last may be broken


def test_head_pretrained_and_options_change_the_config(shapes):
    full = Budget(str(shapes), head='full', pretrained=True, cfg_options={'log_level': 'ERROR'})
    cfg = full.config('spnasnet')
    assert cfg.model.neck.out_channels == 256 and cfg.model.bbox_head.stacked_convs == 4
    assert cfg.model.backbone.init_cfg.checkpoint.startswith('timm://spnasnet')
    assert cfg.log_level == 'ERROR'
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        (size,) = (s.scale for s in loader.dataset.pipeline if s.type == 'Resize')
        assert size == (320, 240) and loader.batch_size == 8
    assert cfg.train_cfg.max_epochs == 12


def test_each_split_is_read_with_its_images_without_objects(copy):
    from mmdet.registry import DATASETS
    from mmengine.registry import init_default_scope

    def clear(coco):
        coco['annotations'] = [a for a in coco['annotations'] if a['image_id'] != 1]

    edit(copy, clear, 'train')
    cfg = small(copy).config('evit_m0')
    init_default_scope('mmdet')
    train, val = (
        DATASETS.build(loader.dataset) for loader in (cfg.train_dataloader, cfg.test_dataloader)
    )
    assert (len(train), len(val)) == (16, 8)
    for data, split in ((train, 'train'), (val, 'val')):
        assert data.get_data_info(0)['img_path'].startswith(str(copy / split))
        assert data.metainfo['classes'] == ('circle', 'square', 'triangle', 'star', 'cross')
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == str(val.ann_file)
    assert not {'train_pipeline', 'test_pipeline', 'data_root', 'dataset_type'} & set(cfg)


def test_a_last_batch_that_is_not_full_is_an_iteration_too(copy):
    for images, iterations in ((16, 2), (9, 2), (8, 1)):
        edit(copy, lambda coco, n=images: coco.update(images=coco['images'][:n]), 'train')
        edit(copy, lambda coco: coco.update(annotations=[]), 'train')
        assert Budget(str(copy), 5).iterations == 5 * iterations


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'epochs': 0}, '--epochs'),
        ({'scale': (31, 64)}, '--scale'),
        ({'scale': (64, 64, 64)}, '--scale'),
        ({'head': 'tiny'}, '--head'),
    ],
)
def test_impossible_budgets_are_refused(shapes, changes, match):
    with pytest.raises(ConfigError, match=match):
        Budget(str(shapes), **changes)
    Budget(str(shapes), 1, (32, 32))


def test_wrong_names_and_numbers_are_refused(shapes, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'mobilenetv2'"):
        compare(small(shapes), ['mobilnet2'], 1, tmp_path / 'out')
    for name in ('nope', 'vgg16'):  # nothing is like them
        with pytest.raises(ConfigError, match=f"unknown backbone '{name}'; choose from"):
            compare(small(shapes), [name], 1, tmp_path / 'out')
    with pytest.raises(ConfigError, match="'M4' .did you mean 'evit_m4'"):
        compare(small(shapes), ['M4'], 1, tmp_path / 'out')
    with pytest.raises(ConfigError, match='--seeds'):
        compare(small(shapes), MODELS, 0, tmp_path / 'out')
    with pytest.raises(ConfigError, match='--models'):
        compare(small(shapes), [], 1, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


# --- the data set


def test_splits_are_found_in_the_usual_layouts(shapes, copy):
    data = find_data(shapes)
    train, val = data.train, data.val
    assert (train.num_images, val.num_images) == (16, 8) and train.img_dir == shapes / 'train'
    assert train.classes == ('circle', 'square', 'triangle', 'star', 'cross')
    (copy / 'images').mkdir()
    for split in ('train', 'val'):
        (copy / split).rename(copy / 'images' / split)
        file = copy / 'annotations' / f'instances_{split}.json'
        if split == 'val':
            file.rename(file.with_name('instances_val2017.json'))
            (copy / 'images' / 'val').rename(copy / 'val2017')
    data = find_data(copy)
    train, val = data.train, data.val
    assert (train.img_dir, val.img_dir) == (copy / 'images' / 'train', copy / 'val2017')


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (lambda coco: coco.update(images=[]), "the list 'images' is empty"),
        (lambda coco: coco.update(categories=[]), "the list 'categories' is empty"),
        (lambda coco: coco.pop('annotations'), 'export the file in COCO format'),
        (
            lambda coco: coco['images'][0].update(file_name='gone.jpg'),
            r'1 of \d+ images of .* do not exist \(gone.jpg\); put them in',
        ),
    ],
)
def test_empty_and_broken_data_sets_are_refused(copy, tmp_path, change, match):
    edit(copy, change)
    with pytest.raises(DataError, match=match):
        compare(small(copy), MODELS, 1, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_missing_data_are_named(copy, tmp_path):
    with pytest.raises(DataError, match='does not exist'):
        compare(small(tmp_path / 'none'), MODELS, 1, tmp_path / 'out')
    (copy / 'annotations' / 'instances_train.json').unlink()
    with pytest.raises(DataError, match="has no images for the split 'train'"):
        compare(small(copy), MODELS, 1, tmp_path / 'out')


def test_other_formats_are_compared_too(tmp_path, monkeypatch):
    root = yolo(tmp_path / 'set')
    (root / 'labels' / 'val' / 'val0.txt').unlink()
    monkeypatch.setattr(runs, '_train_one', fail)
    compare(small(root), ['evit_m0'], 1, tmp_path / 'out', device='cpu')
    assert 'classes: cat, dog' in (tmp_path / 'out' / 'table.md').read_text()
    budget = json.loads((tmp_path / 'out' / 'compare.json').read_text())
    assert 'sha256 of instances_train.json' in budget
    assert small(root).config('evit_m0').model.bbox_head.num_classes == 2


def test_a_class_without_boxes_in_val_is_mentioned(copy, tmp_path, monkeypatch):
    def drop_stars(coco):
        coco['annotations'] = [a for a in coco['annotations'] if a['category_id'] != 4]

    edit(copy, drop_stars)
    monkeypatch.setattr(runs, '_train_one', fail)
    compare(small(copy), ['evit_m0'], 1, tmp_path / 'out', device='cpu')
    text = (tmp_path / 'out' / 'table.md').read_text()
    assert re.search('classes without a box to evaluate: [^;]*star', text)


def test_splits_with_other_categories_are_refused(copy, tmp_path):
    edit(copy, lambda coco: coco['categories'][0].update(name='ring'))
    with pytest.raises(DataError, match='use the same names in both files'):
        compare(small(copy), MODELS, 1, tmp_path / 'out')


def test_nothing_to_evaluate_is_refused(copy, tmp_path):
    edit(copy, lambda coco: coco.update(annotations=[]))
    with pytest.raises(DataError, match='contains no box'):
        compare(small(copy), MODELS, 1, tmp_path / 'out')


def test_overrides_that_cannot_work_are_refused_before_any_training(shapes, tmp_path):
    for options, match in (
        ({'optim_wraper.optimizer.lr': 1.0}, "the config has no key 'optim_wraper"),
        ({'train_cfg.max_epochs': 7}, 'use --epochs'),
        ({'model.backbone.window_sizes': [7, 7, 4]}, "SPOSNet has no argument 'window_sizes'"),
        ({'model.bbox_head.num_classes.x': 1}, r'cannot be applied \(TypeError: '),
        ({'val_dataloader.dataset.pipeline.9.type': 'X'}, r'cannot be applied \(KeyError: '),
        ({'test_dataloader.num_workers': 0}, 'use val_dataloader.num_workers'),
    ):
        budget = Budget(str(shapes), EPOCHS, (64, 64), cfg_options=options)
        with pytest.raises(ConfigError, match=match):
            compare(budget, ['evit_m0', 'spos'], 1, tmp_path / 'out')
    with pytest.raises(CheckpointError, match=r'spos_megvii\.pth\.tar'):
        compare(small(shapes, pretrained=True), ['spos'], 1, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_flops_are_those_of_the_image_that_is_timed(shapes):
    assert Budget(str(shapes), scale=(100, 70)).input_size() == (96, 96)  # 70 x 70, padded


def test_a_wide_image_stays_wide(tmp_path):
    wide = make_shapes(tmp_path / 'wide', 1, 1, size=(160, 80), quiet=True)
    assert Budget(str(wide), scale=(320, 320)).input_size() == (320, 160)


# --- runs


@pytest.mark.slow
def test_a_comparison_leaves_table_picture_and_usable_weights(finished, shapes):
    from evit_mm.runner.test import test

    content = table(finished)
    assert {r['name'] for r in content['rows']} == set(MODELS)
    assert content['about']['images'] == [16, 8] and content['about']['epochs'] == EPOCHS
    for found in content['rows']:
        assert not found['failures'] and found['minutes'][0] > 0 and found['macs'] > 1e7
        assert 0 < found['latency_seconds']['q25'] <= found['latency_seconds']['median']
        run = finished / 'runs' / f'{found["name"]}_seed0'
        files, found_boxes = (run / 'config.py', run / 'weights.pth'), run / 'found.json'
        metrics = test(*files, str(found_boxes), work_dir=str(run), device='cpu')
        assert {name: metrics[f'coco/bbox_{name}'] for name in NAMES} == found['runs'][0]
        assert not list(run.glob('epoch_*.pth'))
        # all images once: the AP of the evaluation, which prints three decimals
        cfg = Config.fromfile(run / 'config.py')
        truth = evaluated_truth(cfg.val_dataloader.dataset, [cfg.val_evaluator])
        boxes = read_found(json.loads(found_boxes.read_text()), truth)
        evaluator = coco_evaluator(truth, boxes)
        (ap,) = resampled_ap(evaluator, np.ones((1, 8), int))
        assert ap == pytest.approx(metrics['coco/bbox_mAP'], abs=6e-4)
        samples = json.loads((run / 'result.json').read_text())['samples']
        assert samples == pytest.approx(100 * resampled_ap(evaluator, draw_images(8)), abs=0.006)
        assert not (run / 'detections.json').exists()
    assert (finished / 'table.png').read_bytes().startswith(b'\x89PNG')
    text = (finished / 'table.md').read_text()
    assert 'the spread over seeds is unknown' in text and 'published' not in text


@pytest.mark.slow
def test_finished_runs_are_not_repeated_and_more_can_be_added(finished, shapes, monkeypatch):
    asked = []

    def record(run, cfg, device):
        asked.append((run.model, run.seed))
        return fail(run)

    monkeypatch.setattr(runs, '_train_one', record)
    rows = compare(small(shapes), [*MODELS, 'evit_m1'], 2, finished, device='cpu', published=True)
    assert asked == [('evit_m1', 0), *((model, 1) for model in (*MODELS, 'evit_m1'))]
    assert [len(r.metrics) for r in rows if r.name in MODELS] == [1, 1]
    text = (finished / 'table.md').read_text()
    assert '- EfficientViT-M1, seed 0: not tried' in text and '| 28.3 |' in text
    assert 'not measured here' in text
    for folder in (finished / 'runs').iterdir():  # as it was
        if 'failure' in (folder / 'result.json').read_text():
            shutil.rmtree(folder)


def test_the_best_learning_rate_of_a_short_search_is_used(shapes, tmp_path, monkeypatch):
    """Stand in for the trainings: their AP depends on the learning rate alone."""
    trained = []
    aps = {0.001: 0.2, 0.01: 0.4, 0.1: None, 0.0001: 0.3, 0.00001: 0.1}

    def train(run, cfg, device):
        lr = cfg.optim_wrapper.optimizer.lr
        trained.append((run.folder.relative_to(tmp_path).as_posix(), lr, cfg.train_cfg.max_epochs))
        run.folder.mkdir(parents=True, exist_ok=True)
        if aps[lr] is None or run.model == 'evit_m1':
            return fail(run)
        result = {'metrics': dict.fromkeys(NAMES, aps[lr]), 'seconds': 60, 'samples': [0, 1]}
        runs.write_json(run.folder / 'result.json', result)
        return [cfg.train_cfg.max_epochs]

    monkeypatch.setattr(runs, '_train_one', train)
    models = ['evit_m0', 'evit_m1']

    def start(rates):
        trained.clear()
        return compare(small(shapes), models, 2, tmp_path, 'cpu', lr_search=rates)

    m0, m1 = start([0.1, 0.01, 0.001])
    assert trained[:3] == [
        ('lr_search/evit_m0_lr0.001_seed0', 0.001, 1),
        ('lr_search/evit_m0_lr0.01_seed0', 0.01, 1),
        ('lr_search/evit_m0_lr0.1_seed0', 0.1, 1),
    ]
    # without any result, the rate of the config stays
    assert trained[6:] == [
        ('runs/evit_m0_lr0.01_seed0', 0.01, EPOCHS),
        ('runs/evit_m1_lr0.001_seed0', 0.001, EPOCHS),
        ('runs/evit_m0_lr0.01_seed1', 0.01, EPOCHS),
        ('runs/evit_m1_lr0.001_seed1', 0.001, EPOCHS),
    ]
    assert m0.lr == 0.01 and m0.values('mAP') == [40.0, 40.0] and len(m0.samples) == 2
    assert m0.searched == {0.001: 20.0, 0.01: 40.0, 0.1: pytest.approx(math.nan, nan_ok=True)}
    assert m1.lr == 0.001 and m1.failures == ['seed 0: not tried', 'seed 1: not tried']
    content = table(tmp_path)['rows'][0]
    assert content['searched'] == {'0.001': 20.0, '0.01': 40.0, '0.1': None}
    assert content['learning_rate'] == 0.01
    models.pop()
    start([0.001, 0.01])
    # finished runs are kept; the failed one beyond the best is tried again
    assert [folder for folder, *_ in trained] == ['lr_search/evit_m0_lr0.1_seed0']
    aps[0.01] = None
    shutil.rmtree(tmp_path / 'lr_search')
    # the best rate is the lowest one twice; runs with another rate are not mixed up
    (m0,) = start([0.001, 0.01])
    assert [folder for folder, *_ in trained] == [
        *(f'lr_search/evit_m0_lr{rate}_seed0' for rate in ('0.001', '0.01', '0.0001', '1e-05')),
        *(f'runs/evit_m0_lr0.0001_seed{k}' for k in (0, 1)),
    ]
    assert m0.lr == 0.0001 and list(m0.searched) == [0.001, 0.01, 0.0001, 0.00001]
    for rates, options, match in (
        ([-0.1], {}, r'positive learning rates, got \[-0.1\]'),
        ([0.1, math.inf], {}, 'positive learning rates'),
        ([0.1], {'optim_wrapper.optimizer.lr': 0.1}, 'remove this key from --cfg-options'),
    ):
        budget = Budget(str(shapes), 3, (64, 64), cfg_options=options)
        with pytest.raises(ConfigError, match=match):
            compare(budget, models, 1, tmp_path / 'other', lr_search=rates)


def test_a_search_goes_on_beyond_its_edges_only():
    searched = {3e-4: 1.0, 1e-3: 2.0, 3e-3: 3.0}
    assert runs._next_rates(searched) == [9e-3]
    assert runs._next_rates({**searched, 9e-3: 2.5}) == []
    assert runs._next_rates({**searched, 3e-4: 5.0}) == [9e-5]
    assert runs._next_rates({**searched, 3e-3: math.nan}) == []
    assert runs._next_rates({3e-4: 1.0}) == runs._next_rates({1.0: math.nan, 2.0: math.nan}) == []


@pytest.mark.slow
def test_another_budget_or_a_second_process_is_refused(finished, shapes, copy):
    with pytest.raises(ConfigError, match=r'different budget \(epochs: 3 before, 12 now'):
        options = small(shapes).cfg_options
        compare(Budget(str(shapes), 12, (64, 64), cfg_options=options), MODELS, 1, finished)
    edit(copy, lambda coco: coco['images'].pop(), split='train')
    with pytest.raises((ConfigError, DataError)):
        compare(small(copy), MODELS, 1, finished)
    with FileLock(finished / '.lock'), pytest.raises(ConfigError, match='is running'):
        compare(small(shapes), MODELS, 1, finished)


def test_each_change_of_the_budget_or_the_data_is_named(copy, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    out.mkdir()
    check_budget(out, Budget(str(copy)))
    monkeypatch.chdir(copy.parent)
    check_budget(out, Budget(copy.name))
    for changes, match in (
        ({'epochs': 3}, r'budget \(epochs: 12 before, 3 now\)'),
        ({'scale': (240, 320)}, r'\(scale: \[320, 240\] before, \[240, 320\] now\)'),
        ({'head': 'full', 'pretrained': True}, 'head: light .* now; pretrained: False before'),
        ({'cfg_options': {'a': 1}}, r"\(cfg_options: \{\} before, \{'a': 1\} now\)"),
    ):
        with pytest.raises(ConfigError, match=match):
            check_budget(out, Budget(str(copy), **changes))
    for split in ('train', 'val'):
        edit(copy, lambda coco: coco['annotations'].pop(), split)
        with pytest.raises(ConfigError, match=f'sha256 of instances_{split}.json: '):
            check_budget(out, Budget(str(copy)))


def test_a_folder_is_locked_for_one_comparison_until_it_ends(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), runs.claimed(tmp_path / 'a' / 'b'):
            with pytest.raises(ConfigError, match='is running'), runs.claimed(tmp_path / 'a' / 'b'):
                pass
            raise KeyError


def test_what_runs_leave_becomes_rows(shapes, tmp_path, monkeypatch, capsys):
    # trained in this process, which has no comparison to outlive
    trained, iterations = [], []

    class Count(runs.OrphanHook):
        def after_train_iter(self, *args, **kwargs):
            super().after_train_iter(*args, **kwargs)
            iterations.append(1)

    def train(run, cfg, device):
        trained.append((run.model, run.seed))
        run.folder.mkdir(parents=True)
        if run.model != 'evit_m0' or run.seed != 1:
            return fail(run)
        cfg.dump(run.folder / 'config.py')
        runs._train_and_evaluate(run, device)
        return [EPOCHS]

    monkeypatch.setattr(runs, 'OrphanHook', Count)
    monkeypatch.setattr(runs, '_train_one', train)
    budget = Budget(str(shapes), 1, (64, 64))  # so sure of nothing that there are no figures
    first, second = compare(budget, ['evit_m1', 'evit_m0'], 2, tmp_path, device='cpu')
    assert trained == [(m, s) for s in range(2) for m in ('evit_m1', 'evit_m0')]
    assert (first.name, len(first.metrics), len(second.metrics)) == ('evit_m0', 1, 0)
    assert first.failures == ['seed 0: not tried'] and len(iterations) == 2
    assert first.metrics == [dict.fromkeys(NAMES, 0.0)]
    assert first.latency[1] <= first.latency[0] <= first.latency[2] and second.latency is None
    run = tmp_path / 'runs' / 'evit_m0_seed1'
    assert first.weights == run / 'weights.pth' and not list(run.glob('epoch_*'))
    assert first.samples[0].tolist() == [0] * 1000
    saved = min(run.glob('*/vis_data/config.py'))  # the training's; then the test's
    assert Config.fromfile(saved).randomness.seed == 1
    loaded = load_detector(first.config, first.weights)
    assert first.params == sum(p.numel() for p in loaded.parameters())
    assert first.macs == sum(detector_macs(loaded, 64, 64).values())
    output = capsys.readouterr().err
    assert 'EfficientViT-M0, seed 1: AP 0.000 in 0.' in output
    assert 'EfficientViT-M1, seed 1: failed: not tried' in output
    about = table(tmp_path)['about']
    assert (about['data'], about['seeds'], about['images']) == ('shapes', 2, [16, 8])
    assert about['FLOPs and latency at'] == '64x64' and about['classes'][3] == 'star'
    # what is finished stays, and what is not is tried again
    result = json.loads((run / 'result.json').read_text())
    runs.write_json(run / 'result.json', {**result, 'seconds': 90})
    trained.clear()
    monkeypatch.setattr(runs, '_train_one', lambda run, *_: trained.append(run.seed) or fail(run))
    (again,) = compare(budget, ['evit_m0'], 2, tmp_path, device='cpu')
    assert trained == [0] and again.minutes == [1.5]


def test_a_training_that_cannot_start_says_why_and_keeps_its_log(tmp_path):
    run = runs.Run('evit_m0', 0, tmp_path / 'runs' / 'evit_m0_seed0')
    run.folder.mkdir(parents=True)
    runs.write_json(run.folder / 'result.json', {'failure': 'of an earlier try'})
    epochs = list(runs._train_one(run, Config({'model': {'type': 'RetinaNet'}}), 'cpu'))
    assert set(epochs) == {0} and list(run.outcome()) == ['failure']
    assert len(run.outcome()['failure'].splitlines()) == 1
    assert 'Traceback' in (run.folder / 'console.log').read_text()
    assert 'earlier' not in run.outcome()['failure']


def test_what_the_process_of_a_killed_comparison_has_finished_is_kept(tmp_path):
    run = runs.Run('evit_m0', 0, tmp_path)
    lock = FileLock(tmp_path / '.lock')
    lock.acquire()  # as that process in its final evaluation
    epochs = runs._train_one(run, Config({'model': {'type': 'RetinaNet'}}), 'cpu')
    assert next(epochs) == 0
    result = {'metrics': dict.fromkeys(NAMES, 0.5), 'seconds': 1, 'samples': []}
    runs.write_json(tmp_path / 'result.json', result)
    lock.release()
    assert set(epochs) <= {0} and run.outcome() == result


def test_how_far_a_run_is_and_how_it_died(tmp_path):
    run = runs.Run('evit_m0', 0, tmp_path)
    assert (run.epochs_done(), run.outcome(), run.label) == (0, {}, 'EfficientViT-M0, seed 0')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_7.pth'))
    assert run.epochs_done() == 7
    log = tmp_path / 'console.log'
    assert runs.how_it_died(-9, log) == 'the process was killed by SIGKILL (out of memory?)'
    assert runs.how_it_died(-15, log) == 'the process was killed by SIGTERM'
    assert runs.how_it_died(3, log) == f"the process exited with status 3; see '{log}'"


def test_a_training_ends_with_its_comparison_alone(monkeypatch):
    ends = []
    monkeypatch.setattr(runs.os, '_exit', ends.append)
    for alive, expected in ((True, []), (False, [1])):
        parent = SimpleNamespace(is_alive=lambda alive=alive: alive)
        monkeypatch.setattr(runs.multiprocessing, 'parent_process', lambda parent=parent: parent)
        runs.OrphanHook().after_train_iter()
        assert ends == expected


def test_training_time_is_the_mean_step_times_all_steps():
    scalars = [
        {'iter': 10, 'step': 10, 'time': 1.0},
        {'iter': 25, 'step': 25, 'time': 3.0},
        {'iter': 30, 'step': 30},
        {'step': 99, 'time': 50.0},  # an evaluation
    ]
    assert runs.training_seconds(scalars) == 2.0 * 25
    assert runs.training_seconds([]) == 0


def process_of_the_run(parent):
    """Return the process that trains, once there is one."""
    for child in parent.children():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if 'spawn_main' in ' '.join(child.cmdline()):
                return child
    return None


def kill_all(process, number):
    """Kill the command alone, and see its training end."""
    worker = process_of_the_run(process)
    process.send_signal(number)
    process.wait(60)
    if worker is not None:
        worker.wait(60)  # raises if it is still there


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_table(finished, shapes, tmp_path):
    out = shutil.copytree(finished, tmp_path / 'out')
    run = out / 'runs' / f'{MODELS[-1]}_seed0'
    shutil.rmtree(run)
    command = [sys.executable, 'tools/compare.py', '--data', str(shapes), '--models', *MODELS]
    command += ['--epochs', str(EPOCHS), '--scale', '64x64', '--out', str(out), '--device', 'cpu']
    command += ['--cfg-options', 'model.test_cfg.score_thr=0.0']

    def start(epochs):
        process = psutil.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        deadline, training = time.monotonic() + 300, runs.Run(MODELS[-1], 0, run)
        while training.epochs_done() < epochs or not process_of_the_run(process):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process

    process = start(1)  # once the whole command, with a word to it
    kill_all(process, signal.SIGTERM)
    assert 'run the same command to continue' in process.communicate()[0]
    process = start(2)  # and once the training alone
    process_of_the_run(process).send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and 'killed by SIGKILL (out of memory?)' in output
    process = start(2)  # and once more the command
    kill_all(process, signal.SIGKILL)
    process = start(2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert 'seed 0: AP' in output and 'table.md' in output
    before, after = ({r['name']: r for r in table(o)['rows']} for o in (finished, out))
    for model in MODELS:
        assert after[model]['runs'] == before[model]['runs']
        assert after[model]['minutes'][0] > 0
    assert any(r['runs'][0]['mAP_50'] > 0 for r in before.values())  # or equality says little


@pytest.mark.slow
def test_a_run_that_diverges_becomes_a_row(shapes, tmp_path, monkeypatch):
    config = Budget.config

    def diverging(self, model):
        cfg = config(self, model)
        cfg.optim_wrapper.optimizer.lr = 1e30
        cfg.param_scheduler = []
        return cfg

    monkeypatch.setattr(Budget, 'config', diverging)
    (bad,) = compare(small(shapes), ['evit_m0'], 1, tmp_path, device='cpu')
    assert (bad.name, bad.metrics) == ('evit_m0', [])
    assert 'became NaN or infinite in iteration' in bad.failures[0]
    text = (tmp_path / 'table.md').read_text()
    assert '| EfficientViT-M0 | failed |' in text and 'became NaN or infinite' in text


def test_overrides_are_compared_as_they_are_stored(shapes, tmp_path):
    options = {'optim_wrapper.optimizer.betas': (0.8, 0.99)}
    for _ in range(2):
        check_budget(tmp_path, Budget(str(shapes), cfg_options=options))


@pytest.mark.slow
def test_weights_that_are_gone_cost_only_the_latency(finished, shapes, tmp_path):
    out = shutil.copytree(finished, tmp_path / 'out')
    (out / 'runs' / 'evit_m0_seed0' / 'weights.pth').unlink()
    rows = {r.name: r for r in compare(small(shapes), MODELS, 1, out, device='cpu')}
    assert len(rows['evit_m0'].metrics) == 1 and rows['evit_m0'].latency is None
    assert rows['mobilenetv2'].latency


# --- the table


def test_ranking_says_who_leads():
    rows = [row('evit_m4', 30, 31, 32), row('spos', 31.5, 28, 29), row('mobilenetv2', 20, 21, 22)]
    found = {(p['better'], p['worse']): p['verdict'] for p in ranking(rows)}
    assert found == {
        ('evit_m4', 'spos'): 'undecided',
        ('evit_m4', 'mobilenetv2'): 'leads',
        ('spos', 'mobilenetv2'): 'leads',
    }
    single = ranking([row('evit_m4', 30), row('spos', 20, 21)])
    assert [p['verdict'] for p in single] == [None]


def test_table_has_means_spread_failures_and_published_columns():
    rows = [row('evit_m4', 30, 32), row('spos', failures=['seed 0: out of memory'])]
    text = markdown(rows, {'data': 'cells'}, published=True)
    cells = [line.split(' | ') for line in text.splitlines() if line.startswith('| ')]
    header, m4, spos = cells
    assert m4[0] == '| EfficientViT-M4' and m4[1] == '31.0 ± 1.4 (2)'
    assert m4[header.index('training min')] == '2.0'
    assert m4[header.index('AP (COCO, published)')] == '32.7'
    assert spos[1] == 'failed' and spos[header.index('AP (COCO, published)')] == '-'
    assert len(m4) == len(spos) == len(header)
    assert '- SPOS, seed 0: out of memory' in text and 'data: cells.' in text
    assert 'The EfficientViT paper calls Single-Path NAS "SPOS"' in text


def test_minus_one_of_coco_is_no_figure():
    lacking = row('evit_m4', 30)
    lacking.metrics[0]['mAP_s'] = -1.0
    assert math.isnan(lacking.values('mAP_s')[0])
    text = markdown([lacking], {}, published=False)
    header, cells = [line.split(' | ') for line in text.splitlines() if line.startswith('| ')]
    assert cells[header.index('S')] == '-'


def test_functions_are_timed_in_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in 'ab'}
    seconds = time_interleaved(functions, rounds=3, warmup=1)
    assert calls == ['a', 'a', 'b', 'b'] * 4  # the first of each turn is not timed
    assert {name: len(values) for name, values in seconds.items()} == {'a': 3, 'b': 3}
    assert median_and_quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (3.0, 2.0, 4.0)


# --- collected trainings


def work_dir(root, name, ap, last=12):
    """Write what a training with tools/train.py leaves, as far as the table needs it."""
    folder = root / f'{name}_{ap}' / '20261122_000000' / 'vis_data'
    folder.mkdir(parents=True)
    cfg = Config.fromfile(ROOT / 'configs' / f'retinanet_{name}_coco.py')
    cfg.dump(folder.parents[1] / f'retinanet_{name}_coco.py')
    lines = [{'loss': 1.0, 'time': 0.5, 'iter': i, 'step': i} for i in (100, 200)]
    for epoch in range(1, last + 1):
        figures = {f'coco/bbox_{metric}': ap / 100 * epoch / 12 for metric in NAMES}
        lines.append({**figures, 'step': epoch})
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    return folder.parents[1]


def collect_text(folders, out):
    collect(folders, out)
    return (out / 'table.md').read_text()


def test_full_trainings_are_collected_into_the_same_table(tmp_path):
    folders = [
        work_dir(tmp_path, 'mobilenetv2', 28.3),
        work_dir(tmp_path, 'evit_m4', 32.0),
        work_dir(tmp_path, 'evit_m4', 33.0),
        work_dir(tmp_path, 'spnasnet', 30.7, last=11),
    ]
    rows = collect(folders, tmp_path / 'out', published=True)
    assert [r.name for r in rows] == ['evit_m4', 'mobilenetv2', 'spnasnet']
    assert rows[0].ap == pytest.approx(32.5) and rows[0].minutes == [pytest.approx(100 / 60)] * 2
    assert rows[0].macs > 150e9  # at 1344 x 800
    assert 'evaluated up to epoch 11 of 12' in rows[2].failures[0]
    text = (tmp_path / 'out' / 'table.md').read_text()
    assert '| EfficientViT-M4 | 32.5 ± 0.7 (2) |' in text and 'published' in text
    assert 'collected from: mobilenetv2_28.3, evit_m4_32.0, evit_m4_33.0, spnasnet_30.7;' in text
    assert 'evaluated on: instances_val2017.json; FLOPs at: 1344x800.' in text
    assert 'published' not in collect_text(folders[:1], tmp_path / 'other')


def test_runs_of_a_row_differ_in_their_seed_only(tmp_path):
    folders = [work_dir(tmp_path, 'evit_m4', ap) for ap in (31.0, 32.0)]
    out = tmp_path / 'out'

    def change(folder, **options):
        config = folder / 'retinanet_evit_m4_coco.py'
        cfg = Config.fromfile(config)
        cfg.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
        cfg.dump(config)

    change(folders[0], randomness={'seed': 0})
    change(folders[1], randomness={'seed': 1})
    (row,) = collect([*folders, folders[0]], out)
    assert len(row.metrics) == 2  # a folder counts once
    change(folders[1], randomness={'seed': 0})
    with pytest.raises(DataError, match=r'evit_m4_32.0. have the same seed \(0\)'):
        collect(folders, out)
    change(folders[1], model__backbone__drop_path_rate=0.1, optim_wrapper__optimizer__lr=1.0)
    with pytest.raises(
        DataError, match='have the same config, but differ in model, optim_wrapper;'
    ):
        collect(folders, out)
    (out / 'compare.json').touch()
    with pytest.raises(ConfigError, match='contains a comparison'):
        collect(folders[:1], out)


def test_detectors_that_need_padded_images_are_collected(tmp_path):
    folder = work_dir(tmp_path, 'mobilenetv2', 30.0)
    (folder / 'retinanet_mobilenetv2_coco.py').unlink()
    cfg = Config.fromfile(ROOT / 'configs' / 'rtmdet_evit_m0_bccd.py')
    cfg.dump(folder / 'rtmdet_evit_m0_bccd.py')
    assert 'FLOPs at: 320x256.' in collect_text([folder], tmp_path / 'out')


def test_the_same_data_by_another_path_are_the_same(tmp_path, monkeypatch):
    folders = [work_dir(tmp_path, 'mobilenetv2', 28.3), work_dir(tmp_path, 'evit_m4', 32.0)]
    monkeypatch.chdir(tmp_path)
    config = folders[1] / 'retinanet_evit_m4_coco.py'
    cfg = Config.fromfile(config)
    cfg.test_dataloader.dataset.data_root = str(tmp_path / 'data' / 'coco')
    cfg.dump(config)
    assert len(collect(folders, tmp_path / 'out')) == 2


def test_a_metric_that_was_not_evaluated_is_not_in_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[collect.__module__], 'count_detector', lambda *_: None)
    folder = work_dir(tmp_path, 'mobilenetv2', 28.3)
    (scalars,) = folder.glob('*/vis_data/scalars.json')
    scalars.write_text(scalars.read_text().replace('coco/bbox_mAP_75', 'coco/other'))
    (row,) = collect([folder], tmp_path / 'out')
    assert len(row.values('mAP_50')) == 1 and row.values('mAP_75') == []
    line = (tmp_path / 'out' / 'table.md').read_text().partition('| MobileNetV2')[2]
    assert line.split('|')[2:4] == [' 28.3 ', ' - ']


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        ('train_cfg.max_epochs=11', r'the number of epochs \(12, 11\)'),
        ('model.bbox_head.num_classes=3', r'the number of classes \(80, 3\)'),
        ('scale', r'the test scale \(\(1333, 800\), \(800, 1333\)\)'),
        ('resize', 'must have train_cfg.max_epochs, .* one Resize with a scale'),
    ],
)
def test_trainings_of_other_budgets_are_refused(tmp_path, change, match):
    folders = [work_dir(tmp_path, name, 30.0) for name in ('mobilenetv2', 'evit_m4')]
    config = folders[1] / 'retinanet_evit_m4_coco.py'
    cfg = Config.fromfile(config)
    (resize,) = (s for s in cfg.test_dataloader.dataset.pipeline if s.type == 'Resize')
    if change == 'scale':
        resize.scale = (800, 1333)
    elif change == 'resize':
        resize.type = 'Pad'
    else:
        key, value = change.split('=')
        cfg.merge_from_dict({key: int(value)})
    cfg.dump(config)
    with pytest.raises(DataError, match=match):
        collect(folders, tmp_path / 'out')
    (folders[0] / 'other.py').write_text('')
    with pytest.raises(DataError, match='found 2'):
        collect(folders[:1], tmp_path / 'out')


def test_trainings_that_cannot_stand_together_are_refused(tmp_path):
    folders = [work_dir(tmp_path, 'mobilenetv2', 28.3), work_dir(tmp_path, 'evit_m4', 32.0)]
    config = folders[1] / 'retinanet_evit_m4_coco.py'
    text = config.read_text()
    config.write_text(text + "\ntest_dataloader['dataset']['ann_file'] = 'other.json'\n")
    with pytest.raises(DataError, match='differ in the evaluated annotations'):
        collect(folders, tmp_path / 'out')
    config.write_text(text)
    (scalars,) = folders[1].glob('*/vis_data/scalars.json')
    scalars.write_text(scalars.read_text() + '\n{"coco/bb')  # killed while it wrote
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match='cannot be written'):
        collect(folders, tmp_path / 'file')
    assert len(collect(folders, tmp_path / 'out')) == 2


@pytest.mark.slow
def test_what_training_leaves_is_collected(shapes, tmp_path):
    from evit_mm.runner.train import train

    cfg = small(shapes).config('evit_m0')
    cfg.train_cfg.val_begin = 1
    cfg.train_cfg.max_epochs = 1
    cfg.dump(tmp_path / 'retinanet_evit_m0_coco.py')
    train(tmp_path / 'retinanet_evit_m0_coco.py', str(tmp_path / 'work'), device='cpu')
    (found,) = collect([tmp_path / 'work'], tmp_path / 'out')
    assert found.name == 'evit_m0' and len(found.metrics) == 1 and not found.failures
    assert set(found.metrics[0]) == set(NAMES) and found.minutes[0] > 0


def test_what_is_no_work_dir_is_refused(tmp_path):
    with pytest.raises(DataError, match='is not a work dir of tools/train.py'):
        collect([tmp_path], tmp_path / 'out')


def test_the_command_refuses_what_it_cannot_do():
    command = [sys.executable, 'tools/compare.py']
    for args, message in (
        (['--data', 'x', '--scale', '320'], '--scale must be WIDTHxHEIGHT'),
        (['--data', 'nowhere'], "data set 'nowhere' does not exist"),
    ):
        found = subprocess.run([*command, *args], cwd=ROOT, capture_output=True, text=True)
        assert found.returncode and message in found.stderr and 'Traceback' not in found.stderr
