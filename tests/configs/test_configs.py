"""Every config is complete, says what to expect, and builds."""

import ast
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from evit_mm.compare.complexity import measure
from evit_mm.runner.config import load_config
from tests.conftest import ROOT
from tests.steps import train_a_step_and_predict

CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
COCO = [path for path in CONFIGS if path.stem.endswith('_coco')]
# with the authors' recipe; the others are for real time, or go beyond it
AUTHORS = [
    path
    for path in COCO
    if path.stem.startswith(('retinanet', 'mask')) and '_plus_' not in path.stem
]
LITE = [path for path in COCO if path.stem.startswith('retinanet_lite_')]
DETECTORS = [path for path in CONFIGS if not path.stem.endswith('_imagenet')]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_docstring_says_how_its_result_is_known(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert 'not run' in docstring or 'Measured' in docstring


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_bases_are_here_and_at_most_three_layers(path):
    def depth(file):
        bases = Config._get_base_files(str(file))
        bases = [bases] if isinstance(bases, str) else bases
        assert not any('::' in base for base in bases)
        return 1 + max((depth(file.parent / base) for base in bases), default=0)

    assert depth(path) <= 3


@pytest.mark.parametrize('path', DETECTORS, ids=lambda p: p.stem)
def test_detector_builds_trains_a_step_and_predicts(path):
    train_a_step_and_predict(load_config(path))


@pytest.mark.parametrize('path', AUTHORS, ids=lambda p: p.stem)
def test_coco_recipe_is_the_authors(path):
    cfg = load_config(path)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
    assert tuple(optimizer.betas) == (0.9, 0.999)
    assert 'clip_grad' not in cfg.optim_wrapper
    assert cfg.train_cfg.max_epochs == 12
    warmup, steps = cfg.param_scheduler
    assert (warmup.start_factor, warmup.end, warmup.by_epoch) == (0.001, 500, False)
    assert (steps.milestones, steps.gamma) == ([8, 11], 0.1)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.model.backbone.norm_eval and cfg.model.backbone.get('frozen_stages', -1) == -1
    backbone, neck = cfg.model.backbone, cfg.model.neck
    if backbone.type == 'EfficientViT':
        finer = 0 if path in LITE else {'RetinaNet': 1, 'MaskRCNN': 2}[cfg.model.type]
        assert neck.num_extra_trans_convs == finer and neck.num_outs == 5
        assert backbone.arch in backbone.init_cfg.checkpoint
    elif backbone.type == 'TIMMNet':
        assert backbone.init_cfg.checkpoint.startswith(f'timm://{backbone.model_name}.')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        scales = [t.scale for t in loader.dataset.pipeline if t.type == 'Resize']
        assert scales == [(640, 640) if path in LITE else (1333, 800)]


RIVALS = """
    mobilenetv2 mobilenetv3 efficientnet_b0 spnasnet mixnet_m spos
    mobilenetv4_small mobilenetv4_medium repvit_m1_1 pvtv2_b0
"""


@pytest.mark.parametrize('name', RIVALS.split())
def test_the_comparison_differs_in_nothing_but_backbone_and_taps(name):
    ours = load_config(ROOT / 'configs' / f'retinanet_{name}_coco.py')
    coco = load_config(ROOT / 'configs' / 'retinanet_evit_m4_coco.py')
    different = {key for key in {*ours, *coco} if ours.get(key) != coco.get(key)}
    # ours is no variant and has no file of that release
    assert different == {'model', 'work_dir', 'release', 'arch', 'embed_dims'}
    parts = {key for key in {*ours.model, *coco.model} if ours.model[key] != coco.model[key]}
    assert parts == {'backbone', 'neck'} | ({'data_preprocessor'} if name == 'spos' else set())
    neck = ours.model.neck
    assert (neck.type, neck.add_extra_convs, neck.num_outs) == ('FPN', 'on_input', 5)
    assert neck.out_channels == coco.model.neck.out_channels


def test_shvit_differs_from_efficientvit_in_nothing_but_the_backbone():
    ours = load_config(ROOT / 'configs' / 'retinanet_shvit_s4_coco.py')
    coco = load_config(ROOT / 'configs' / 'retinanet_evit_m4_coco.py')
    assert {key for key in {*ours, *coco} if ours.get(key) != coco.get(key)} == {
        'model',
        'work_dir',
    }
    assert {**ours.model.neck, 'in_channels': 0} == {**coco.model.neck, 'in_channels': 0}
    for model in (ours.model, coco.model):
        del model['neck'], model['backbone']
    assert ours.model == coco.model


def test_spos_sees_bgr_pixels_as_they_are():
    from mmdet.registry import MODELS

    cfg = load_config(ROOT / 'configs' / 'retinanet_spos_coco.py')
    init_default_scope('mmdet')
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    image = torch.randint(0, 256, (3, 32, 64), dtype=torch.uint8)  # BGR, as mmcv reads it
    seen = preprocessor({'inputs': [image], 'data_samples': None})['inputs']
    assert torch.equal(seen[0], image.float())


def test_weight_decay_is_off_for_attention_biases_alone():
    from mmdet.registry import MODELS
    from mmengine.optim import build_optim_wrapper

    cfg = load_config(ROOT / 'configs' / 'retinanet_evit_m4_coco.py')
    init_default_scope('mmdet')
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            is_bias = names[id(parameter)].endswith('attention_biases')
            assert group['weight_decay'] == (0.0 if is_bias else 0.05)


def test_light_head_differs_from_the_full_one_only_where_it_says():
    light = load_config(ROOT / 'configs' / 'retinanet_evit_m4_shapes.py').model
    coco = load_config(ROOT / 'configs' / 'retinanet_evit_m4_coco.py').model
    assert light.backbone == {
        'type': 'EfficientViT',
        'arch': 'm4',
        'norm_eval': False,
        'channels_last': True,
    }
    assert light.neck == {**coco.neck, 'out_channels': 64}
    changed = {k for k in coco.bbox_head if light.bbox_head[k] != coco.bbox_head[k]}
    assert changed == {
        'type',
        'num_classes',
        'in_channels',
        'stacked_convs',
        'feat_channels',
        'anchor_generator',
        'loss_bbox',
    }
    assert light.train_cfg == coco.train_cfg and light.test_cfg == coco.test_cfg


@pytest.mark.parametrize(
    'path', [path for path in COCO if path in LITE or path not in AUTHORS], ids=lambda p: p.stem
)
def test_docstring_has_what_is_counted(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    stated = re.search(
        r'(\d+)x(\d+)\simage takes (\S+) G multiply-adds\. The model has (\S+) M parameters',
        docstring,
    ).groups()
    width, height, *stated = stated
    parts = measure(path, (int(width), int(height))).parts.values()
    params, macs = (sum(figures) for figures in zip(*parts, strict=True))
    assert stated == [f'{macs / 1e9:.2f}', f'{params / 1e6:.2f}']


def test_lite_maps_have_the_strides_of_their_anchors():
    from mmdet.registry import MODELS

    assert len(LITE) == 3
    for path in LITE:
        cfg = load_config(path)
        init_default_scope('mmdet')
        cfg.model.backbone.init_cfg = None
        model = MODELS.build(cfg.model).eval()
        with torch.no_grad():
            levels = model.extract_feat(torch.rand(1, 3, 256, 128))
        anchors = model.bbox_head.prior_generator
        assert [256 // level.shape[2] for level in levels] == [s[1] for s in anchors.strides]
        assert anchors.num_base_priors == [6] * 5
