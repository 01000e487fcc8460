"""Counted figures against those that were counted from the authors' own code."""

import csv
import io
import json
import subprocess
import sys

import pytest
import timm
import torch

from evit_mm.compare.complexity import as_markdown, as_records, count_macs, detector_macs, measure
from evit_mm.errors import ConfigError
from tests.conftest import ROOT

# parameters M, multiply-adds M of the classifier at 224 px
CLASSIFIERS = {
    'evit_m0': (2.349, 79.2),
    'evit_m1': (2.981, 167.1),
    'evit_m2': (4.188, 201.0),
    'evit_m3': (6.901, 262.7),
    'evit_m4': (8.804, 299.3),
    'evit_m5': (12.474, 521.6),
    'mobilenetv2': (3.505, 300.8),
    'mobilenetv3': (5.483, 216.6),
    'spnasnet': (4.422, 333.5),
    'mixnet_m': (5.014, 339.2),
    'efficientnet_b0': (5.289, 385.8),
    'spos': (3.558, 322.9),
}
# image side, then the published multiply-adds G of the classifier, as they are rounded
RIVALS = {
    'shvit_s4': (256, '0.99'),
    'repvit_m1_1': (224, '1.3'),
    'pvt_v2_b0': (224, '0.6'),
    'cpubone_b0_bfrobust': (224, '0.52'),
    'cpubone_b1_bfrobust': (224, '0.75'),
    'cpubone_b2_bfrobust': (224, '1.35'),
}
# multiply-adds G of the backbone at 1333 x 800
BACKBONES = {'m0': 1.62, 'm1': 3.51, 'm2': 4.21, 'm3': 5.41, 'm4': 6.10, 'm5': 10.80}


@pytest.fixture(scope='module')
def rows():
    return {name: measure(ROOT / f'configs/retinanet_{name}_coco.py') for name in CLASSIFIERS}


def test_every_system_is_within_a_percent(rows):
    for name, (params, macs) in CLASSIFIERS.items():
        assert rows[name].classifier[0] / 1e6 == pytest.approx(params, rel=0.01), name
        assert rows[name].classifier[1] / 1e6 == pytest.approx(macs, rel=0.01), name
    for variant, macs in BACKBONES.items():
        assert rows[f'evit_{variant}'].parts['backbone'][1] / 1e9 == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize('name', RIVALS)
def test_timms_rivals_are_the_published_networks(name):
    side, published = RIVALS[name]
    with torch.device('meta'):
        macs = count_macs(timm.create_model(name).eval(), torch.empty(1, 3, side, side))
    digits = len(published.partition('.')[2])
    assert f'{macs / 1e9:.{digits}f}' == published


def test_neck_and_head_add_what_the_shapes_say(rows):
    # 4 + 4 convolutions and two predictors, on 3x3 kernels at strides 8 to 128
    positions = sum(-(-800 // s) * -(-1333 // s) for s in (8, 16, 32, 64, 128))
    per_position = 9 * 256 * (8 * 256 + 9 * 80 + 9 * 4)
    expected = positions * per_position
    assert rows['mobilenetv2'].parts['head'][1] == pytest.approx(expected, rel=0.02)
    assert 145e9 < sum(rows['evit_m4'].parts[part][1] for part in ('neck', 'head')) < 165e9


def test_parameters_of_the_parts_are_those_of_the_detector(rows):
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    cfg = Config.fromfile(ROOT / 'configs/retinanet_evit_m4_coco.py').model
    cfg.backbone.init_cfg = None
    model = MODELS.build(cfg)
    total = sum(p.numel() for p in model.parameters())
    parts = rows['evit_m4'].parts
    assert sum(params for params, _ in parts.values()) == total
    for name in ('backbone', 'neck'):
        assert parts[name][0] == sum(p.numel() for p in getattr(model, name).parameters())
    before = {name: p.clone() for name, p in model.named_parameters()}
    macs = detector_macs(model, 64, 96)
    assert model.training and all(torch.equal(before[n], p) for n, p in model.named_parameters())
    # two images' worth of positions cost twice as much in the convolutions of the head
    assert detector_macs(model, 128, 96)['head'] == pytest.approx(2 * macs['head'], rel=0.1)


def test_published_stands_beside_counted_with_the_deviation(rows):
    row = rows['spnasnet']
    assert (row.published.params, row.published.macs) == (4.3e6, 365e6)
    assert row.deviation('macs') == pytest.approx(333.5 / 365 - 1, abs=1e-3)
    line = next(x for x in as_markdown([row]).splitlines() if 'spnasnet' in x)
    assert '365' in line and '333.5' in line and '-8.6%' in line
    record = as_records([row])[0]
    assert record['macs_published'] == 365e6 and record['width'] == 1333


def test_the_committed_table_is_what_the_command_prints(rows):
    committed = (ROOT / 'docs' / 'complexity.md').read_text()
    lines = as_markdown(list(rows.values())).splitlines()
    for line in lines[: len(rows) + 2]:
        assert line in committed
    assert lines[-1] in committed


def test_masks_and_two_stages_are_counted():
    row = measure(ROOT / 'configs/mask_rcnn_evit_m4_coco.py', (256, 256))
    # one mask head: four 3x3 convolutions and a transposed one at 14 x 14, a predictor at 28 x 28
    mask = 196 * 256 * 256 * (4 * 9 + 4) + 784 * 256 * 80
    box = 256 * 49 * 1024 + 1024 * 1024 + 1024 * (81 + 320)
    strided = sum((256 // s) ** 2 for s in (4, 8, 16, 32, 64))
    rpn = strided * (9 * 256 * 256 + 256 * 15)
    assert row.parts['head'][1] == pytest.approx(1000 * box + 100 * mask + rpn, rel=0.01)


def test_a_backbone_without_a_known_classifier_has_no_such_figures(tmp_path):
    config = tmp_path / 'r18.py'
    config.write_text(
        f"_base_ = '{ROOT}/configs/retinanet_mobilenetv2_coco.py'\n"
        "model = dict(backbone=dict(_delete_=True, type='ResNet', depth=18, out_indices=(1, 2, 3)),"
        'neck=dict(in_channels=[128, 256, 512]))\n'
    )
    row = measure(config, (64, 64))
    assert row.classifier is None and row.published is None and row.parts['backbone'][0] > 1e7
    assert '| r18 | - | - | - |' in as_markdown([row])


def test_published_figures_go_by_the_network_and_not_by_the_files_name(tmp_path):
    config = tmp_path / 'my_evit_m4_small.py'
    config.write_text(f"_base_ = '{ROOT}/configs/retinanet_evit_m0_coco.py'\n")
    assert measure(config, (64, 64)).published.macs == 79e6
    config.write_text(
        f"_base_ = '{ROOT}/configs/retinanet_spos_coco.py'\n"
        'model = dict(backbone=dict(choices=[0] * 20))\n'
    )
    row = measure(config, (64, 64))
    assert row.published is None and row.classifier[1] < 322.9e6


def test_the_command_writes_each_format(tmp_path):
    config = 'configs/retinanet_evit_m0_coco.py'
    command = [sys.executable, 'tools/complexity.py', config, '--size', '64', '64']

    def run(*args):
        return subprocess.run(
            [*command, *args], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    record = json.loads(run('--format', 'json'))[0]
    assert record['config'] == 'retinanet_evit_m0_coco' and record['height'] == 64
    file = tmp_path / 'table.csv'
    run('--format', 'csv', '-o', str(file))
    (row,) = csv.DictReader(io.StringIO(file.read_text()))
    assert float(row['macs']) == record['macs']


def test_a_missing_config_is_named():
    with pytest.raises(ConfigError, match='nothing.py'):
        measure('nothing.py')


def test_a_size_that_a_neck_cannot_join_is_refused_in_one_sentence():
    config = ROOT / 'configs' / 'rtmdet_evit_m0_coco.py'
    with pytest.raises(ConfigError, match='rtmdet_evit_m0_coco cannot .* --size of multiples'):
        measure(config, (1333, 800))
    assert measure(config, (64, 96)).parts['neck'][1] > 0
