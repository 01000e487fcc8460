"""The recipe beyond the paper's: each switch alone, all together, and what is trained with them."""

import json
import math
import re
import subprocess
import sys

import pytest
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.model import convert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from evit_mm.checkpoint import read_checkpoint
from evit_mm.compare import RECIPES, Budget, compare, runs
from evit_mm.compare.complexity import measure
from evit_mm.compare.recipes import (
    COCO_ITERATIONS,
    LABELS,
    SWITCHES,
    apply_switches,
    base_of,
    fit_ema,
    row_label,
    switches_of,
    with_recipes,
)
from evit_mm.compare.table import Row, markdown
from evit_mm.data import make_shapes
from evit_mm.errors import ConfigError
from evit_mm.runner.test import test as run_test
from evit_mm.runner.train import train
from tests.conftest import ROOT
from tests.recording import read_losses
from tests.trainings import write_config

PAPER = ROOT / 'configs' / 'retinanet_evit_m4_coco.py'
PLUS = ROOT / 'configs' / 'retinanet_evit_m4_plus_coco.py'
# what a config is read for, as dotted names; each switch changes these and nothing else
CHANGES = {
    'train_bn': {'model.backbone.norm_eval', 'sync_bn'},
    'stem_stride8': {
        'model.backbone.out_stem',
        'model.neck.in_channels',
        'model.neck.num_extra_trans_convs',
    },
    'no_decay': {
        'optim_wrapper.paramwise_cfg.norm_decay_mult',
        'optim_wrapper.paramwise_cfg.bias_decay_mult',
    },
    'drop_path': {'model.backbone.drop_path_rate'},
    'multi_scale': {'train_dataloader.dataset.pipeline'},
    'ema': {'custom_hooks'},
    'schedule_3x': {'max_epochs', 'train_cfg.max_epochs', 'param_scheduler'},
}


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 16, 8, size=(64, 64), quiet=True)


def budget(data, epochs=1, **changes):
    options = {'model.test_cfg.score_thr': 0.0}  # hardly trained, a detector is sure of nothing
    return Budget(str(data), epochs, (64, 64), cfg_options=options, **changes)


def read(path):
    """Return a config as it is run: the list that the loader has copied is of no more use."""
    cfg = Config.fromfile(path)
    cfg.pop('train_pipeline', None)
    return cfg


def differing(one, other, prefix=''):
    """Return the dotted names under which two configs differ."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return {prefix} if one != other else set()
    keys = {*one, *other}
    return set().union(
        *(differing(one.get(k), other.get(k), f'{prefix}.{k}'.lstrip('.')) for k in keys)
    )


def build(cfg):
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    cfg.model.backbone.init_cfg = None
    return MODELS.build(cfg.model)


# --- the table of switches


def test_the_plus_config_is_the_papers_with_the_switches_of_plus():
    expected = apply_switches(read(PAPER), RECIPES['plus'])
    assert not differing(read(PLUS).to_dict(), expected.to_dict())


@pytest.mark.parametrize('name', SWITCHES)
def test_a_switch_changes_what_it_says_and_nothing_else(name):
    changed = apply_switches(read(PAPER), [name])
    assert differing(changed.to_dict(), read(PAPER).to_dict()) == CHANGES[name]


def test_no_decay_spares_every_norm_and_bias():
    cfg = apply_switches(read(PAPER), ['no_decay'])
    model = build(cfg)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    for name, parameter in model.named_parameters():
        spared = parameter.ndim < 2 or name.endswith('attention_biases')
        assert decay[id(parameter)] == (0.0 if spared else 0.05), name


def test_stride_8_of_the_stem_fits_the_anchors():
    model = build(apply_switches(read(PAPER), ['stem_stride8'])).eval()
    with torch.no_grad():
        levels = model.extract_feat(torch.rand(1, 3, 256, 128))
    strides = [256 // level.shape[2] for level in levels]
    assert strides == [s[1] for s in model.bbox_head.prior_generator.strides]
    assert not [m for m in model.modules() if isinstance(m, nn.ConvTranspose2d)]


def test_drop_path_reaches_the_last_block_alone_in_full():
    backbone = build(apply_switches(read(PAPER), ['drop_path'])).backbone
    rates = [block.mixer.drop_path_rate for block in backbone.blocks3[3:]]
    assert rates[-1] == pytest.approx(0.1) and rates == sorted(rates) and rates[0] < 0.1


def test_multi_scale_draws_the_shorter_side_from_640_to_800():
    init_default_scope('mmdet')
    (step,) = (
        s for s in read(PLUS).train_dataloader.dataset.pipeline if s['type'] == 'RandomResize'
    )
    resize = Compose([step])
    image = torch.zeros(300, 400, 3, dtype=torch.uint8).numpy()
    sides = [min(resize({'img': image.copy()})['img'].shape[:2]) for _ in range(200)]
    assert 640 <= min(sides) < 660 and 780 < max(sides) <= 800 and len(set(sides)) > 50


def test_the_schedules_steps_stand_at_the_same_parts_of_it():
    paper, plus = read(PAPER), read(PLUS)
    assert plus.train_cfg.max_epochs == plus.param_scheduler[1].end == 36
    steps = [cfg.param_scheduler[1].milestones for cfg in (paper, plus)]
    assert [step * 3 for step in steps[0]] == steps[1]
    assert plus.param_scheduler[0] == paper.param_scheduler[0]  # the warm-up is not longer


def test_emas_average_is_as_long_a_part_of_a_short_schedule():
    cfg = apply_switches(read(PAPER), ['ema'])
    assert math.ceil(117_266 / 16) * 12 == COCO_ITERATIONS
    fit_ema(cfg, COCO_ITERATIONS)
    assert cfg.custom_hooks == apply_switches(read(PAPER), ['ema']).custom_hooks
    fit_ema(cfg, COCO_ITERATIONS // 100)
    hook = cfg.custom_hooks[-1]
    assert (hook['momentum'], hook['gamma']) == (pytest.approx(0.02, abs=1e-4), 20)
    fit_ema(cfg, 1)
    assert cfg.custom_hooks[-1]['momentum'] == 0.5 and cfg.custom_hooks[-1]['gamma'] == 1


def test_batch_norm_of_all_processes_keeps_names_and_stays_frozen_where_it_is():
    cfg = apply_switches(read(PAPER), ['train_bn'])
    model = build(cfg)
    names = list(model.state_dict())
    converted = convert_sync_batchnorm(model, cfg.sync_bn)
    assert list(converted.state_dict()) == names
    norms = [m for m in converted.backbone.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) > 50 and all(norm.training for norm in norms)
    converted.backbone.norm_eval = True
    assert not any(norm.training for norm in norms if converted.train())


# --- recipes in a comparison


def test_from_scratch_every_row_but_the_papers_has_batch_norm_trained():
    assert switches_of('paper', pretrained=False) == ()
    assert switches_of('ema', pretrained=False) == ('train_bn', 'ema')
    assert switches_of('ema', pretrained=True) == ('ema',)
    assert switches_of('plus', pretrained=False) == ('train_bn', 'multi_scale', 'schedule_3x')
    assert switches_of('ema+no_decay', pretrained=True) == ('no_decay', 'ema')
    assert switches_of('ema+no_decay', pretrained=False) == ('train_bn', 'no_decay', 'ema')
    assert set(LABELS) == set(RECIPES)


def test_the_papers_row_has_what_the_authors_have(shapes):
    coco, cfg = read(PAPER), budget(shapes, 12).config('evit_m4+paper')
    assert cfg.param_scheduler[1] == coco.param_scheduler[1]
    assert cfg.optim_wrapper.paramwise_cfg == coco.optim_wrapper.paramwise_cfg
    assert 'clip_grad' not in cfg.optim_wrapper and cfg.model.backbone.norm_eval
    assert 'sync_bn' not in cfg and cfg.model.neck.num_extra_trans_convs == 1
    for epochs, milestones in ((6, [4, 5]), (1, [1, 1])):
        steps = budget(shapes, epochs).config('evit_m4+paper').param_scheduler[1]
        assert steps.milestones == milestones and steps.end == epochs


@pytest.mark.parametrize('name', SWITCHES)
def test_rows_differ_from_the_base_in_their_switch_alone(shapes, name):
    rows = [budget(shapes, 6).config(f'evit_m0+{r}') for r in ('train_bn', name)]
    found = differing(*(row.to_dict() for row in rows))
    expected = CHANGES[name] if name != 'train_bn' else set()
    if name == 'schedule_3x':  # evaluated once, after the last epoch
        expected = {*expected, 'train_cfg.val_begin', 'max_epochs'}
    assert found == expected
    longest = 18 if name == 'schedule_3x' else 6
    assert rows[1].train_cfg.max_epochs == rows[1].max_epochs == longest
    assert rows[1].train_cfg.val_begin == longest + 1


def test_emas_average_is_fitted_to_the_data_of_the_comparison(shapes, monkeypatch):
    hook = budget(shapes, 6).config('evit_m0+schedule_3x+ema').custom_hooks[-1]
    # 16 images make 2 iterations an epoch, and the 3x schedule has the average of 1x
    assert (hook['momentum'], hook['gamma']) == (0.5, 1)
    monkeypatch.setattr(Budget, 'iterations', 1000 * 12)
    hook = budget(shapes, 12).config('evit_m0+ema').custom_hooks[-1]
    assert hook['momentum'] == pytest.approx(0.0002 * 7330 / 1000, rel=1e-3)
    assert hook['gamma'] == round(2000 * 1000 / 7330)


def test_wrong_recipes_are_refused(shapes, tmp_path):
    with pytest.raises(ConfigError, match="unknown recipe 'emma' .did you mean 'ema'"):
        compare(budget(shapes), ['evit_m0'], 1, tmp_path / 'out', recipes=['emma'])
    with pytest.raises(ConfigError, match="unknown recipe 'plus'; choose from train_bn, "):
        compare(budget(shapes), ['evit_m0'], 1, tmp_path / 'out', recipes=['ema+plus'])
    with pytest.raises(ConfigError, match="needs EfficientViT .*, got 'spos'"):
        compare(budget(shapes), ['evit_m0', 'spos'], 1, tmp_path / 'out', recipes=['ema'])
    with pytest.raises(ConfigError, match="'spos.paper' contains a recipe; .* with --recipes"):
        compare(budget(shapes), ['spos+paper'], 1, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    assert with_recipes(['evit_m0', 'spos', 'evit_m0'], []) == ['evit_m0', 'spos']
    pairs = with_recipes(['evit_m1', 'evit_m0', 'evit_m1'], ['ema', 'paper', 'ema'])
    assert pairs == ['evit_m1+ema', 'evit_m1+paper', 'evit_m0+ema', 'evit_m0+paper']
    found = [base_of(name, pretrained) for pretrained in (True, False) for name in pairs[:2]]
    assert found == ['evit_m1+paper'] * 2 + ['evit_m1+train_bn'] * 2
    assert base_of('evit_m0', True) is None


def test_the_command_knows_its_recipes():
    command = [sys.executable, 'tools/compare.py', '--data', 'nowhere', '--recipes', 'emma']
    found = subprocess.run(
        [*command, '--models', 'evit_m0'], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode and "unknown recipe 'emma'" in found.stderr + found.stdout


def row(recipe, *aps, epochs=6, base='evit_m0+train_bn', failures=()):
    names = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
    metrics = [dict.fromkeys(names, ap / 100) for ap in aps]
    cfg = Config({'train_cfg': {'max_epochs': epochs}})
    return Row(f'evit_m0+{recipe}', cfg, metrics, [1.0] * len(aps), list(failures), base=base)


def cells(text, label):
    lines = [line.strip('| ') for line in text.splitlines() if line.startswith('| ')]
    header, *rows = (line.split(' | ') for line in lines)
    (found,) = (r for r in rows if r[0].endswith(f', {label}'))
    return dict(zip(header, found, strict=True))


def test_table_sets_each_row_against_the_base_and_says_who_had_more_epochs():
    rows = [
        row('train_bn', 20, 21, 22),
        row('ema', 20.5, 21, 23),
        row('stem_stride8', 30, 31, 32),
        row('paper', failures=['seed 0: became NaN']),
        row('plus', 10, 11, 12, epochs=18),
    ]
    text = markdown(rows, {}, published=False)
    found = {
        name: cells(text, LABELS[name])['AP against the base']
        for name in ('train_bn', 'ema', 'stem_stride8', 'paper')
    }
    assert found == {
        'train_bn': 'the base',
        'ema': '+0.5 (-2.2 to +3.2), undecided',
        'stem_stride8': '+10.0 (+7.7 to +12.3), leads',
        'paper': '-',
    }
    plus = cells(text, LABELS['plus'])
    assert plus['AP against the base'] == '-10.0 (-12.3 to -7.7), is behind'
    assert (plus['epochs'], cells(text, LABELS['ema'])['epochs']) == ('18', '6')
    # pairs without the base are only in the JSON
    assert 'leads EfficientViT-M0' not in text and 'interval over the seeds ' in text
    assert "- EfficientViT-M0, the paper's recipe, seed 0: became NaN" in text
    alike = markdown(rows[:2], {}, published=False)
    assert 'epochs' not in alike.splitlines()[0]


def test_rows_are_named_for_people():
    assert row_label('evit_m4') == 'EfficientViT-M4'
    assert row_label('evit_m4+ema') == 'EfficientViT-M4, EMA'
    assert row_label('evit_m0+plus') == 'EfficientViT-M0, the plus recipe'
    label = 'EfficientViT-M0, drop path and EMA'
    assert row_label('evit_m0+drop_path+ema') == label
    assert row_label('mine') == 'mine'


@pytest.mark.slow
def test_an_ablation_runs_every_switch_at_once_and_goes_on(shapes, tmp_path, monkeypatch):
    recipes = ['train_bn', every := '+'.join(list(SWITCHES)[1:])]
    rows = compare(budget(shapes), ['evit_m0'], 1, tmp_path, device='cpu', recipes=recipes)
    assert {r.name for r in rows} == {'evit_m0+train_bn', f'evit_m0+{every}'}
    assert not any(r.failures for r in rows)
    last = [tmp_path / 'runs' / f'evit_m0+{r}_seed0' / 'last_checkpoint' for r in recipes]
    assert [file.read_text().strip()[-11:] for file in last] == ['epoch_1.pth', 'epoch_3.pth']
    assert (tmp_path / 'table.png').read_bytes().startswith(b'\x89PNG')
    # what is evaluated, kept and timed with EMA is the average
    run = tmp_path / 'runs' / f'evit_m0+{every}_seed0'
    weights = read_checkpoint(run / 'weights.pth')['state_dict']
    assert not any(key.startswith('module.') for key in weights)
    metrics = run_test(run / 'config.py', run / 'weights.pth', work_dir=str(run), device='cpu')
    (averaged,) = (r for r in rows if r.name == f'evit_m0+{every}')
    assert metrics['coco/bbox_mAP'] == averaged.metrics[0]['mAP'] and not math.isnan(averaged.ap)

    asked = []

    def fail(run, *_):
        asked.append(run.model)
        runs.write_json(run.folder / 'result.json', {'failure': 'x'})
        return []

    monkeypatch.setattr(runs, '_train_one', fail)
    rows = compare(
        budget(shapes), ['evit_m0'], 1, tmp_path, device='cpu', recipes=[*recipes, 'drop_path']
    )
    assert (
        asked == ['evit_m0+drop_path']
        and 'drop path, seed 0: x' in (tmp_path / 'table.md').read_text()
    )


@pytest.mark.slow
def test_ema_keeps_the_average_and_trains_the_plain_weights(shapes, tmp_path):
    extra = 'train_cfg = dict(max_epochs=1, val_interval=1)\n'
    extra += "custom_hooks = [dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.5)]\n"
    train(write_config(tmp_path, shapes, extra), str(tmp_path), seed=0, device='cpu')
    content = read_checkpoint(tmp_path / 'epoch_1.pth')
    plain = content['ema_state_dict']
    changed = [
        name
        for name, value in content['state_dict'].items()
        if name.endswith('weight') and not torch.equal(value, plain[f'module.{name}'])
    ]
    assert len(changed) > 20


# --- the COCO configs, but for data and size: interrupted, they go on as if they had not been


SMALL = """
_base_ = {base!r}
custom_imports = dict(imports=['evit_mm', 'evit_mm.evaluation.coco_metric', 'tests.recording'])
data_root = {data!r}
metainfo = dict(classes=('circle', 'square', 'triangle', 'star', 'cross'))
model = dict(backbone=dict(init_cfg=None), bbox_head=dict(num_classes=5))
loader = dict(batch_size=4, num_workers={workers}, persistent_workers={workers} > 0)
images = dict(
    data_root=data_root, metainfo=metainfo, ann_file='annotations/instances_train.json',
    data_prefix=dict(img='train/'), indices=8)
val_dataloader = dict(**loader, dataset=dict(
    data_root=data_root, metainfo=metainfo, ann_file='annotations/instances_val.json',
    data_prefix=dict(img='val/'), indices=4))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + '/annotations/instances_val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=3, val_interval=3)
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)]
custom_hooks = [*_base_.custom_hooks, dict(type='RecordLossHook', path={record!r})]
"""
MOSAICS = """
train_dataloader = dict(**loader, dataset=_base_.train_dataloader.dataset)
train_dataloader['dataset']['dataset'].update(images)
train_dataloader['dataset']['pipeline'][0]['img_scale'] = (64, 64)
train_dataloader['dataset']['pipeline'][1]['border'] = (-32, -32)
train_dataloader['dataset']['pipeline'][4]['scale'] = (64, 64)
train_cfg.update(dynamic_intervals=None)
custom_hooks[1]['num_last_epochs'] = 1  # by mmdet's counting, the last two of three
"""
MULTI_SCALE = """
model['backbone']['arch'] = 'm0'
model['neck'] = dict(in_channels=[64, 128, 192], out_channels=16)
model['bbox_head'].update(in_channels=16, feat_channels=16)
train_pipeline = _base_.train_pipeline
train_pipeline[2]['scale'] = [(64, 38), (64, 64)]
train_dataloader = dict(**loader, dataset=dict(pipeline=train_pipeline, **images))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'extra', 'workers'),
    [
        ('rtmdet_evit_m0_coco', MOSAICS, 0),
        ('yolox_evit_m0_coco', MOSAICS, 1),
        ('retinanet_evit_m4_plus_coco', MULTI_SCALE, 0),
    ],
)
def test_an_interruption_changes_nothing(shapes, tmp_path, name, extra, workers):
    def write(folder):
        folder.mkdir()
        config, text = folder / 'config.py', SMALL + extra
        base, record = str(ROOT / 'configs' / f'{name}.py'), str(folder / 'losses.jsonl')
        config.write_text(text.format(base=base, data=str(shapes), record=record, workers=workers))
        return config

    whole, later = tmp_path / 'whole', tmp_path / 'later'
    train(write(whole), str(whole), seed=0, device='cpu')
    losses = read_losses(whole / 'losses.jsonl')
    assert len(losses) == 6 and all(math.isfinite(loss) for loss in losses.values())
    log = next(whole.glob('*/*.log')).read_text()
    assert 'coco/bbox_mAP' in log or 'The testing results of the whole dataset is empty' in log
    assert ('No mosaic and mixup aug now!' in log) == (extra is MOSAICS)
    train(write(later), str(later), resume=str(whole / 'epoch_2.pth'), device='cpu')
    found = read_losses(later / 'losses.jsonl')
    assert found == {iteration: losses[iteration] for iteration in (4, 5)}
    averages = [
        read_checkpoint(folder / 'epoch_3.pth')['state_dict']['backbone.patch_embed.0.c.weight']
        for folder in (whole, later)
    ]
    assert torch.equal(*averages)


# --- the page


PAGE = ROOT / 'docs' / 'recipes.md'


def totals(config, size):
    """Return a detector's parameters in M and multiply-adds in G."""
    params, macs = (sum(kind) for kind in zip(*measure(config, size).parts.values(), strict=True))
    return params / 1e6, macs / 1e9


def test_the_page_has_the_table_that_the_command_wrote():
    page, folder = PAGE.read_text(), ROOT / 'docs' / 'recipes'
    table = (folder / 'bccd.md').read_text()
    content = json.loads((folder / 'bccd.json').read_text())
    assert table.split('\n\n')[0] in page
    about = content['about']
    assert f'--epochs {about["epochs"]} --seeds {about["seeds"]} ' in page
    (recipes,) = re.findall(r'--recipes (.+?) --', page.partition('## Ablation')[2])
    names = {f'evit_m4+{recipe}' for recipe in recipes.split()}
    assert names == {row['name'] for row in content['rows']}
    assert {*SWITCHES} - {*recipes.split()} == {'schedule_3x'}
    for row in content['rows']:
        assert len(row['runs']) == about['seeds'] and not row['failures'], row['name']


@pytest.mark.parametrize('name', ['rtmdet', 'yolox'])
def test_the_page_has_the_figures_of_the_logs(name):
    log = (ROOT / 'docs' / 'logs' / f'bccd_{name}.log').read_text()
    config = f'configs/{name}_evit_m0_bccd.py'
    assert log.startswith(f'$ python tools/train.py {config} --seed 0\n')
    epochs = Config.fromfile(ROOT / config).train_cfg.max_epochs
    assert f'Epoch(val) [{epochs}]' in log.splitlines()[-1]
    figures = re.findall(r'bbox_mAP_copypaste: (.+)', log)[-1].split()
    assert f'| `{config}` | {" | ".join(figures)} |' in PAGE.read_text()
    assert float(figures[0]) > 0.1


def test_the_page_has_every_switch_and_what_is_counted(tmp_path):
    page = PAGE.read_text()
    assert re.findall(r'^\| `(\w+)` \|', page, re.MULTILINE) == list(SWITCHES)
    rows = re.findall(
        r'^\| `(configs/\S+_coco.py)` \| ([\d.]+) \| ([\d.]+) \|$', page, re.MULTILINE
    )
    assert len(rows) == 4
    for config, *stated in rows:
        assert stated == [f'{figure:.2f}' for figure in totals(ROOT / config, (640, 640))]
    apply_switches(Config.fromfile(PAPER), ['stem_stride8']).dump(tmp_path / 'stem.py')
    files = (PAPER, tmp_path / 'stem.py')
    less = [a - b for a, b in zip(*(totals(f, (1333, 800)) for f in files), strict=True)]
    assert f'saves {less[1]:.1f} G multiply-adds and {less[0]:.2f} M parameters' in page
