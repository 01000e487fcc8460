"""The bases of a config follow the variables that a child config or the command line sets."""

import copy
import logging
import re
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, PARAM_SCHEDULERS, RUNNERS

from evit_mm.errors import ConfigError
from evit_mm.models.variants import VARIANTS
from evit_mm.runner.config import load_config, read_config
from evit_mm.runner.variables import follow_variables
from tests.configs.test_configs import CONFIGS, DETECTORS
from tests.conftest import ROOT


def child(folder, base, text=''):
    path = folder / 'child.py'
    path.write_text(f'_base_ = {str(ROOT / "configs" / base)!r}\n{text}\n')
    return path


def edited(folder, base, edits):
    """Copy our configs, edit lines in their bases, and read one as mmengine does."""
    shutil.copytree(ROOT / 'configs', folder / 'configs')
    for file, before, after in edits:
        path = folder / 'configs' / file
        text = path.read_text()
        assert text.count(before) == 1, (file, before)
        path.write_text(text.replace(before, after))
    return Config.fromfile(folder / 'configs' / base)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_our_configs_are_the_same_in_mmengine(path):
    cfg, notes = read_config(path)
    cfg.pop('work_dir')
    assert not notes
    assert cfg.to_dict() == Config.fromfile(path).to_dict()


DATA, SCHEDULES = '_base_/datasets', '_base_/schedules'
EDITS = {
    'epochs_scratch': (
        'retinanet_evit_m4_bccd.py',
        {'max_epochs': 7},
        [(f'{SCHEDULES}/schedule_scratch.py', 'max_epochs = 30', 'max_epochs = 7')],
    ),
    'epochs_1x': (
        'retinanet_evit_m2_coco.py',
        {'max_epochs': 24},
        [
            (f'{SCHEDULES}/schedule_1x.py', 'max_epochs = 12', 'max_epochs = 24'),
            (
                f'{SCHEDULES}/schedule_1x.py',
                '[max(max_epochs * part // 12, 1) for part in (8, 11)]',
                '[16, 22]',
            ),
        ],
    ),
    'epochs_300e': (
        'rtmdet_evit_m0_coco.py',
        {'max_epochs': 30},
        [(f'{SCHEDULES}/schedule_300e.py', 'max_epochs = 300\n', 'max_epochs = 30\n')],
    ),
    'epochs_of_a_config_that_sets_them': (
        'yolox_evit_m0_bccd.py',
        {'max_epochs': 5},
        [
            (f'{SCHEDULES}/schedule_scratch.py', 'max_epochs = 30', 'max_epochs = 5'),
            ('yolox_evit_m0_bccd.py', 'max_epochs = 12', 'max_epochs = 5'),
        ],
    ),
    'scale': (
        'retinanet_evit_m4_bccd.py',
        {'scale': (128, 96)},
        [
            (f'{DATA}/coco_detection.py', 'scale = (1333, 800)', 'scale = (128, 96)'),
            (f'{DATA}/bccd_detection.py', 'scale = (320, 240)', 'scale = (128, 96)'),
        ],
    ),
    'scale_of_mosaics': (
        'yolox_evit_m0_coco.py',
        {'scale': (416, 416)},
        [
            (f'{DATA}/coco_detection.py', 'scale = (1333, 800)', 'scale = (416, 416)'),
            (f'{DATA}/coco_mosaic_640.py', 'scale = (640, 640)', 'scale = (416, 416)'),
        ],
    ),
    'batch_size': (
        'retinanet_evit_m4_coco.py',
        {'batch_size': 5},
        [(f'{DATA}/coco_detection.py', 'batch_size = 2', 'batch_size = 5')],
    ),
    'data': (
        'retinanet_evit_m4_bccd.py',
        {
            'data_root': 'my data/',
            'classes': ('red cell', 'white cell'),
            'train_ann_file': 'a.json',
            'val_ann_file': 'b.json',
            'train_images': 'c/',
            'val_images': 'd/',
        },
        [
            (
                f'{DATA}/bccd_detection.py',
                "\ndata_root = 'data/bccd/'\n"
                "train_ann_file = 'annotations/instances_train.json'\n"
                "val_ann_file = 'annotations/instances_val.json'\n"
                "train_images = 'images/'\n"
                "val_images = 'images/'\n"
                "classes = ('RBC', 'WBC', 'Platelets')",
                "\ndata_root = 'my data/'\n"
                "train_ann_file = 'a.json'\n"
                "val_ann_file = 'b.json'\n"
                "train_images = 'c/'\n"
                "val_images = 'd/'\n"
                "classes = ('red cell', 'white cell')",
            )
        ],
    ),
    'arch': (
        'retinanet_lite_evit_m2_coco.py',
        {'arch': 'm5'},
        [('retinanet_lite_evit_m2_coco.py', "arch = 'm2'", "arch = 'm5'")],
    ),
}


@pytest.mark.parametrize('name', EDITS)
def test_a_variable_is_the_same_as_an_edit_of_the_bases(name, tmp_path):
    base, values, edits = EDITS[name]
    expected = edited(tmp_path, base, edits).to_dict()
    assert expected != Config.fromfile(ROOT / 'configs' / base).to_dict()
    path = child(tmp_path, base, '\n'.join(f'{k} = {v!r}' for k, v in values.items()))
    plain = tmp_path / 'plain.py'
    plain.write_text(f'_base_ = {str(ROOT / "configs" / base)!r}\n')
    given = {
        'child': load_config(path),
        'options': load_config(plain, values),
        # the runner is built from what a tool of mmdet has read and merged
        'mmdet': follow_variables(Config.fromfile(path)),
        'mmdet, options': follow_variables(merged(Config.fromfile(plain), values)),
    }
    for way, cfg in given.items():
        differing = {key for key in expected if cfg.to_dict().get(key) != expected[key]}
        assert not differing, way


def merged(cfg, values):
    cfg.merge_from_dict(values)
    return cfg


def test_a_variable_with_an_absolute_annotation_file_and_a_folder_without_a_slash(tmp_path):
    path = child(tmp_path, 'retinanet_evit_m4_coco.py', "data_root = '/x/my data'")
    for options, file in (
        ({}, '/x/my data/annotations/instances_val2017.json'),
        ({'val_ann_file': '/y/val.json'}, '/y/val.json'),
    ):
        cfg = load_config(path, options)
        assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == file


def test_mmdets_tools_honour_a_variable(tmp_path, monkeypatch):
    path = child(
        tmp_path,
        'retinanet_evit_m4_shapes.py',
        f"max_epochs = 3\nscale = (128, 128)\nbatch_size = 4\narch = 'm0'\nwork_dir = '{tmp_path}'",
    )
    runner = RUNNERS.build(Config.fromfile(path))  # what the tool of mmdet does
    cfg = runner.cfg
    assert (cfg.train_cfg.max_epochs, cfg.param_scheduler[1].T_max) == (3, 3)
    assert cfg.train_dataloader.batch_size == 4
    assert [t.scale for t in cfg.test_dataloader.dataset.pipeline if t.type == 'Resize'] == [
        (128, 128)
    ]
    assert runner.model.backbone.out_channels == (64, 128, 192)


def test_the_runner_keeps_what_a_tool_has_set(tmp_path):
    path = child(tmp_path, 'retinanet_evit_m4_bccd.py', 'max_epochs = 3\nscale = (64, 64)')
    cfg = follow_variables(merged(Config.fromfile(path), {'train_cfg.max_epochs': 9}))
    assert (cfg.train_cfg.max_epochs, cfg.param_scheduler[1].T_max) == (9, 3)
    assert cfg.train_dataloader.dataset.pipeline[2].scale == (64, 64)
    # also where it is the value of the base
    loaded = load_config(path, {'train_cfg.max_epochs': 30})
    assert follow_variables(copy.deepcopy(loaded)).train_cfg.max_epochs == 30
    assert load_config(path, {'max_epochs': 4}).train_cfg.max_epochs == 4
    path = child(tmp_path, 'retinanet_evit_m4_bccd.py', 'batch_size = 4')
    loaded = load_config(path, {'train_dataloader.batch_size': 8})
    assert follow_variables(copy.deepcopy(loaded)).train_dataloader.batch_size == 8


@pytest.mark.parametrize(
    'path', [p for p in CONFIGS if '_evit_' in p.stem or p.stem == 'evit_m4_imagenet'],
    ids=lambda p: p.stem,
)  # fmt: skip
def test_arch_is_enough(path):
    arch = 'm1' if path.stem != 'retinanet_evit_m1_coco' else 'm5'
    cfg = load_config(path, {'arch': arch})
    backbone = MODELS.build({**cfg.model.backbone, 'init_cfg': None})
    variant = VARIANTS[arch]
    assert backbone.variant.embed_dims == variant.embed_dims
    if path in DETECTORS:
        assert cfg.model.neck.in_channels == list(backbone.out_channels)
        init_cfg = cfg.model.backbone.get('init_cfg')
        assert init_cfg is None or init_cfg.checkpoint.endswith(f'/efficientvit_{arch}.pth')
    else:
        assert cfg.model.head.in_channels == backbone.out_channels[-1]


def test_the_table_of_channels_is_that_of_the_backbone():
    cfg = Config.fromfile(ROOT / 'configs' / '_base_' / 'models' / 'efficientvit_release.py')
    assert cfg.embed_dims == {name: list(v.embed_dims) for name, v in VARIANTS.items()}


def test_classification_sizes_follow(tmp_path):
    expected = load_config(ROOT / 'configs' / 'evit_m5_512_imagenet.py')
    cfg = load_config(ROOT / 'configs' / 'evit_m5_384_imagenet.py', {'scale': 512})
    assert cfg.model == expected.model
    assert cfg.train_dataloader == expected.train_dataloader
    assert cfg.val_dataloader == expected.val_dataloader


@pytest.mark.parametrize('epochs', [1, 11])
@pytest.mark.parametrize(
    'name',
    ['retinanet_evit_m4_coco', 'retinanet_evit_m4_plus_coco', 'retinanet_evit_m4_bccd',
     'rtmdet_evit_m0_coco', 'evit_m4_imagenet', 'evit_m5_384_imagenet'],
)  # fmt: skip
def test_schedules_of_any_length_run(name, epochs):
    cfg = load_config(name, {'max_epochs': epochs})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    assert cfg.train_cfg.max_epochs == epochs
    for schedule in cfg.param_scheduler:
        built = PARAM_SCHEDULERS.build(
            schedule, default_args={'optimizer': optimizer, 'epoch_length': 10}
        )
        assert built.end > built.begin
        if schedule.get('by_epoch') and schedule.type != 'LinearLR':
            assert schedule.get('end', epochs) == epochs
            assert schedule.get('T_max', epochs) <= epochs


@pytest.mark.parametrize(
    'line',
    [
        'max_epochs = 6',
        'max_epochs, other = 6, _base_.scale',
        'other = max_epochs = 6',
        'max_epochs: int = 6',
        'max_epochs = _base_.max_epochs // 2',  # of 12
        'max_epochs = 3\nmax_epochs *= 2',
        'if True:\n    max_epochs = 6',
        'for max_epochs in range(7):\n    pass',
        'max_epochs = (  # a comment\n    6\n); é = "ä"',
        '"""é"""; max_epochs = len("äöüßéè"); work_dir = "{{ fileDirname }}"',
    ],
)
def test_a_variable_can_be_assigned_in_any_way(line, tmp_path):
    cfg = load_config(child(tmp_path, 'retinanet_evit_m4_shapes.py', line))
    assert (cfg.max_epochs, cfg.train_cfg.max_epochs, cfg.param_scheduler[1].T_max) == (6, 6, 6)
    if 'fileDirname' in line:
        assert cfg.work_dir == str(tmp_path)
    chosen = load_config(tmp_path / 'child.py', {'max_epochs': 9})
    assert (chosen.train_cfg.max_epochs, chosen.param_scheduler[1].T_max) == (9, 9)


def test_explicit_settings_win(tmp_path):
    text = 'max_epochs = 3\ntrain_cfg = dict(max_epochs=7)'
    path = child(tmp_path, 'retinanet_evit_m4_bccd.py', text)
    for options, epochs in (({}, 7), ({'max_epochs': 5}, 7), ({'train_cfg.max_epochs': 8}, 8)):
        assert load_config(path, options).train_cfg.max_epochs == epochs


def test_a_config_can_name_variables_of_its_own(tmp_path):
    text = 'base_lr = 0.1\noptim_wrapper = dict(optimizer=dict(lr=base_lr))\n'
    (tmp_path / 'lr.py').write_text(text)
    runtime = str(ROOT / 'configs' / '_base_' / 'default_runtime.py')
    (tmp_path / 'middle.py').write_text(
        f"_base_ = ['lr.py'] + [{runtime!r}]\nvariables = (*_base_.variables, 'base_lr')\n"
        'model = dict()\ntest_dataloader = dict()\n'
    )
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = '{{ fileDirname }}/middle.py'\nbase_lr = 0.2\n")
    assert load_config(path).optim_wrapper.optimizer.lr == 0.2
    assert load_config(path, {'base_lr': 3}).optim_wrapper.optimizer.lr == 3


@pytest.mark.parametrize(
    ('line', 'said'),
    [
        ("max_epochs = '3'", "'max_epochs' must be a positive integer, such as 30, got '3'"),
        ('max_epochs = 0', "'max_epochs' must be a positive integer"),
        ('batch_size = 2.0', "'batch_size' must be a positive integer, such as 2, got 2.0"),
        ('scale = 320', "'scale' must be 2 positive integers, such as .1333, 800., got 320"),
        ("classes = ('cell')", r"'classes' must be a tuple of names, .*, got 'cell'"),
        ("arch = 'm9'", "'arch' must be one of m0, m1, m2, m3, m4, m5.*, got 'm9'"),
        ('data_root = 3', "'data_root' must be a string"),
        ('max_epoch = 3', "unknown key 'max_epoch' .did you mean 'max_epochs'"),
        ('batchsize = 3', "unknown key 'batchsize' .did you mean 'batch_size'"),
        ('train_dataloaders = 3', "unknown key 'train_dataloaders' .did you mean"),
    ],
)  # fmt: skip
def test_wrong_names_and_values_are_refused(line, said, tmp_path):
    with pytest.raises(ConfigError, match=f'child.py: .*{said}'):
        load_config(child(tmp_path, 'retinanet_evit_m4_bccd.py', line))


@pytest.mark.parametrize(
    'text',
    [
        'max_epoch = 3\ntrain_cfg = dict(max_epochs=max_epoch)',
        "dataset_type = 'TolerantCocoDataset'\nbackend_args = None",
        "metainfo = dict(classes=('a', 'b', 'c'))\n"
        'train_dataloader = dict(dataset=dict(metainfo=metainfo))',
        'lr = 0.1\nweight_decay = lr / 2\n'
        'optim_wrapper = dict(optimizer=dict(lr=lr, weight_decay=weight_decay))',
        'def double(x):\n    y = 2 * x\n    return y\n_unused = 3\n'
        'train_cfg = dict(max_epochs=double(3))',
        "sync_bn = 'torch'\nfind_unused_parameters = True",
        'max_epochs = 3\nscale = (64, 64)\nbatch_size = 8',
    ],
)
def test_variables_that_are_used_pass_without_a_note(text, tmp_path):
    path = child(tmp_path, 'retinanet_evit_m4_bccd.py', text)
    cfg, notes = read_config(path)
    assert not notes
    cfg.dump(tmp_path / 'flat.py')  # the config in a work dir
    assert not read_config(tmp_path / 'flat.py')[1]


@pytest.mark.parametrize(
    ('base', 'text', 'said'),
    [
        ('retinanet_evit_m4_bccd', 'num_classes = 3',
         "nothing reads 'num_classes' (did you mean 'classes'?); set the keys that use it, such as "
         'model.bbox_head.num_classes'),
        ('retinanet_evit_m4_bccd', "metainfo = dict(classes=('a', 'b', 'c'))",
         "nothing reads 'metainfo'; set the keys that use it, such as train_dataloader.dataset."),
        ('retinanet_evit_m4_bccd', 'img_scale = (64, 64)',
         "nothing reads 'img_scale' (did you mean 'scale'?); remove it or use it"),
        ('retinanet_lite_evit_m0_coco', 'train_pipeline = []', "reads 'train_pipeline'; set"),
        ('retinanet_mobilenetv2_coco', "arch = 'm2'", "nothing reads 'arch'; remove it"),
        ('retinanet_evit_m4_bccd',
         'scale = (64, 64)\nplain = [dict(type="LoadImageFromFile")]\n'
         'train_dataloader = dict(dataset=dict(pipeline=plain))\n'
         'val_dataloader = dict(dataset=dict(pipeline=plain))\ntest_dataloader = val_dataloader',
         "depends on 'scale'; remove it"),
    ],
)  # fmt: skip
def test_a_variable_that_nothing_reads_is_noted(base, text, said, tmp_path):
    path = child(tmp_path, f'{base}.py', text)
    (note,) = read_config(path)[1]
    assert said in note and str(path) in note


def test_the_doctor_and_the_log_show_the_note(tmp_path, monkeypatch):
    from evit_mm.doctor.config import check_config

    logged = []
    monkeypatch.setattr('evit_mm.runner.config.print_log', lambda *words: logged.append(words))
    path = child(tmp_path, 'retinanet_evit_m4_bccd.py', 'num_classes = 3')
    load_config(path)
    ((note, *to),) = logged
    assert f"{path}: nothing reads 'num_classes'" in note and to == ['current', logging.WARNING]
    found = [(f.level, f.text) for f in check_config(str(path), None, all_images=False)]
    assert ('yellow', f"{path}: nothing reads 'num_classes' (did you mean 'classes'?)") in found


@pytest.mark.parametrize(
    ('base', 'option', 'said'),
    [
        ('retinanet_evit_m4_bccd', 'num_classes',
         "uses 'num_classes' before .* .did you mean 'classes'.*bbox_head.num_classes"),
        ('retinanet_lite_evit_m0_coco', 'channels',
         "uses 'channels' before .*such as model.neck.out_channels and model.bbox_head"),
        ('retinanet_evit_m4_bccd', 'train_pipeline', "uses 'train_pipeline' before"),
        ('retinanet_mobilenetv2_coco', 'arch', "nothing in .* depends on 'arch'; remove it"),
        ('retinanet_evit_m4_bccd', 'max_epoch', "key 'max_epoch' .did you mean 'max_epochs'"),
        ('retinanet_evit_m4_bccd', 'xyz', "unknown key 'xyz'; remove it or correct its name"),
    ],
)  # fmt: skip
def test_an_option_without_an_effect_is_refused(base, option, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        load_config(child(tmp_path, f'{base}.py'), {option: 3})


def test_variables_of_a_config_in_a_work_dir_are_refused_with_the_keys_to_set(tmp_path):
    load_config('retinanet_evit_m4_bccd', {'scale': [64, 64]}).dump(tmp_path / 'flat.py')
    for option, key in (('max_epochs', 'train_cfg.max_epochs'), ('arch', 'model.backbone.arch')):
        said = f"depends on '{option}'; set the keys that use it, such as {re.escape(key)}"
        with pytest.raises(ConfigError, match=said):
            load_config(tmp_path / 'flat.py', {option: 5 if option == 'max_epochs' else 'm0'})
    assert load_config(tmp_path / 'flat.py', {'train_cfg.max_epochs': 5}).train_cfg.max_epochs == 5


def test_options_with_spaces_reach_the_data_set(tmp_path):
    import argparse

    from evit_mm.utils.cli import add_cfg_options

    parser = argparse.ArgumentParser()
    add_cfg_options(parser)
    words = [
        'train_dataloader.dataset.data_root=my data/',
        "val_dataloader.dataset.metainfo.classes=('red cell','white cell')",
        'data_root=my cells/',
    ]
    options = parser.parse_args(['--cfg-options', *words]).cfg_options
    cfg = load_config('retinanet_evit_m4_bccd', options)
    assert cfg.train_dataloader.dataset.data_root == 'my data/'
    assert cfg.val_dataloader.dataset.metainfo.classes == ('red cell', 'white cell')
    assert cfg.val_evaluator.ann_file == 'my cells/annotations/instances_val.json'
