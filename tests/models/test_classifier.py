"""ImageNet classification through mmpretrain: the authors' files, their recipe, the tools."""

import argparse
import json
import math
import pickle
import re
import subprocess
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import timm.data
import timm.loss
import torch
from mmengine.optim import AmpOptimWrapper, build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPERS, PARAM_SCHEDULERS, init_default_scope
from mmengine.visualization import Visualizer
from mmpretrain.registry import DATASETS, MODELS, TRANSFORMS
from mmpretrain.structures import DataSample
from PIL import Image
from torch.nn import functional as F  # noqa: N812

from evit_mm import inference
from evit_mm.checkpoint import read_checkpoint
from evit_mm.compare.complexity import count_macs, count_parameters
from evit_mm.data import check_config_data
from evit_mm.errors import CheckpointError, ConfigError, DataError
from evit_mm.models import VARIANTS, EfficientViT, EfficientViTHead
from evit_mm.models.classifier import ClsVisualizationHook, EfficientViTClsHead
from evit_mm.runner.adaptive_clipping import AGCOptimWrapper
from evit_mm.runner.config import load_config
from evit_mm.runner.test import test as run_test
from evit_mm.runner.train import train
from tests.conftest import ROOT, TINY, golden_weights, relative_error
from tests.models.test_numerics import CLASSIFIER, PUBLISHED, samples

CONFIGS = sorted((ROOT / 'configs').glob('*_imagenet.py'))
BASE = str(ROOT / 'configs' / 'evit_m0_imagenet.py')
AT_224 = [path for path in CONFIGS if path.stem.count('_') == 2]
FINE_TUNED = [path for path in CONFIGS if path not in AT_224]

TINY_CONFIG = f"""
_base_ = {BASE!r}
model = dict(
    backbone=dict(_delete_=True, type='EfficientViT', arch={TINY!r}, window_sizes=(4, 2, 1)),
    head=dict(in_channels=32, num_classes=3),
)
_base_.train_pipeline[1]['scale'] = 64
_base_.train_pipeline.pop(3)  # RandAugment inverts colours, which are the classes here
_base_.test_pipeline[1]['scale'] = 72
_base_.test_pipeline[2]['crop_size'] = 64
loader = dict(batch_size=12, num_workers=0, persistent_workers=False, pin_memory=False)
data = dict(type='CustomDataset', data_root='DATA')
train_dataloader = dict(dataset=dict(**data, pipeline=_base_.train_pipeline), **loader)
val_dataloader = dict(dataset=dict(**data, pipeline=_base_.test_pipeline), **loader)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1, 2))
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=12, val_interval=12)
param_scheduler = None
optim_wrapper = dict(optimizer=dict(lr=1e-2))
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=12))
"""


def draw_images(root, numbers=(('train', 12), ('val', 4))):
    """Draw noisy pictures of one colour per class, 64 to 96 pixels a side."""
    rng = np.random.default_rng(0)
    colours = {'blue': (220, 40, 40), 'green': (40, 220, 40), 'red': (40, 40, 220)}  # BGR
    for split, number in numbers:
        for name, colour in colours.items():
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                height, width = rng.integers(64, 97, 2)
                pixels = rng.normal(colour, 25, (height, width, 3)).clip(0, 255)
                cv2.imwrite(str(root / split / name / f'{index}.png'), pixels.astype(np.uint8))
    return root


def write_config(folder, data, extra=''):
    path = folder / 'tiny.py'
    path.write_text(TINY_CONFIG.replace('DATA', str(data)) + extra)
    return str(path)


def build(cfg):
    init_default_scope('mmpretrain')
    return MODELS.build(cfg.model)


def official_state(arch, num_classes=1000, window_sizes=(7, 7, 4)):
    """Return what an ImageNet file of the authors holds under ``model``, with golden weights."""
    backbone = golden_weights(EfficientViT(arch, window_sizes=window_sizes))
    head = golden_weights(EfficientViTHead(backbone.out_channels[-1], num_classes))
    state = {**backbone.state_dict(), **head.state_dict()}
    for key in [key for key in state if key.endswith('attention_biases')]:
        tokens = state[key].shape[1]
        state[key.replace('biases', 'bias_idxs')] = torch.zeros(tokens, tokens, dtype=torch.long)
    return state


def save_official(path, state):
    torch.save({'model': state, 'args': argparse.Namespace(lr=0.004), 'epoch': 299}, path)
    return str(path)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return draw_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    """A config, the folder of a training of it, and the losses of its iterations."""
    folder = tmp_path_factory.mktemp('trained')
    config = write_config(folder, data)
    train(config, work_dir=str(folder / 'work'), seed=0, device='cpu')
    lines = next((folder / 'work').glob('*/vis_data/scalars.json')).read_text().splitlines()
    losses = [json.loads(line)['loss'] for line in lines if 'loss' in json.loads(line)]
    return config, folder / 'work', losses


# --- the network and the authors' files -----------------------------------------------------------


@pytest.mark.parametrize('arch', ['m1', 'm4'])
def test_official_file_gives_the_authors_logits(arch, tmp_path):
    cfg = load_config(ROOT / 'configs' / f'evit_{arch}_imagenet.py')
    source = save_official(tmp_path / 'official.pth', official_state(arch))
    cfg.model.init_cfg = {'type': 'Pretrained', 'checkpoint': source}
    model = build(cfg)
    model.init_weights()
    image = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(image), mode='tensor')
        predicted = model(torch.from_numpy(image), mode='predict')
    golden = CLASSIFIER[f'{arch}_cls_224x224'][-1]
    assert list(logits.shape) == golden['shape'] == [2, 1000]
    assert relative_error(samples(logits), torch.tensor(golden['samples'])) < 1e-4
    assert float(logits.norm()) == pytest.approx(golden['l2'], rel=1e-4)
    assert float(logits.std()) == pytest.approx(golden['std'], rel=1e-4)
    for sample, row in zip(predicted, logits, strict=True):
        assert int(sample.pred_label) == int(row.argmax())


@pytest.mark.parametrize('arch', VARIANTS)
def test_parameters_and_macs_are_the_published_ones(arch):
    params, macs, _ = PUBLISHED[arch]
    model = build(load_config(ROOT / 'configs' / f'evit_{arch}_imagenet.py')).eval()
    assert count_parameters(model) / 1e6 == pytest.approx(params, abs=0.0006)
    assert count_macs(model, torch.rand(1, 3, 224, 224)) / 1e6 == pytest.approx(macs, rel=1e-3)


@pytest.mark.parametrize('path', FINE_TUNED, ids=lambda p: p.stem)
def test_biases_are_resized_to_the_windows_of_a_higher_resolution(path, tmp_path):
    cfg = load_config(path)
    size = int(path.stem.split('_')[2])
    maps = [-(-size // stride) for stride in (16, 32, 64)]
    assert list(cfg.model.backbone.window_sizes) == [min(7, side) for side in maps]
    assert 'efficientvit_m5.pth' in cfg.model.init_cfg.checkpoint
    state = official_state('m5')
    cfg.model.init_cfg.checkpoint = save_official(tmp_path / 'm5.pth', state)
    model = build(cfg)
    model.init_weights()
    loaded = model.state_dict()
    window = min(7, maps[2])
    for key, value in state.items():
        if key.endswith('bias_idxs'):
            continue
        found = loaded[key if key.startswith('head.') else f'backbone.{key}']
        if key.startswith('blocks3') and key.endswith('attention_biases'):
            grid = value.reshape(1, -1, 4, 4)
            value = F.interpolate(grid, (window, window), mode='bicubic').reshape(4, -1)
        assert relative_error(found, value) < 1e-6, key


def test_own_names_load_as_well_and_init_weights_runs_once(tiny, tmp_path):
    def classifier(**kwargs):
        backbone = {'type': 'EfficientViT', 'arch': tiny}
        head = {'type': 'EfficientViTClsHead', 'in_channels': 32, 'num_classes': 4}
        init_default_scope('mmpretrain')
        return MODELS.build(
            {'type': 'EfficientViTClassifier', 'backbone': backbone, 'head': head, **kwargs}
        )

    first = classifier()
    torch.save({'state_dict': first.state_dict()}, tmp_path / 'own.pth')
    source = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'own.pth')}
    second = classifier(init_cfg=[source])
    second.init_weights()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    torch.nn.init.zeros_(second.head.l.weight)
    second.init_weights()  # as mmengine's modules: a second call changes nothing
    assert not second.head.l.weight.any()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('head.bn.weight'), r'missing: head\.bn\.weight'),
        (
            lambda s: s.pop('patch_embed.0.c.weight'),
            r'missing: backbone\.patch_embed\.0\.c\.weight',
        ),
        (lambda s: s.update(extra=torch.zeros(1)), r'unexpected: backbone\.extra'),
        (lambda s: s.update({'head_dist.l.bias': torch.zeros(3)}), r'unexpected: .*head_dist'),
        (
            lambda s: s.update({'head.l.bias': torch.zeros(1000)}),
            r'head\.l\.bias is \(1000,\) in the file, \(3,\) in the model',
        ),
        (lambda s: s.update({'head.l.bias': torch.full((3,), torch.nan)}), 'not finite: head'),
    ],
)
def test_an_official_file_that_does_not_fit_is_refused(change, message, tmp_path):
    state = official_state(TINY, num_classes=3)
    change(state)
    source = save_official(tmp_path / 'official.pth', state)
    cfg = load_config(write_config(tmp_path, tmp_path))
    cfg.model.init_cfg = {'type': 'Pretrained', 'checkpoint': source}
    with pytest.raises(CheckpointError, match=message):
        build(cfg).init_weights()


def test_snippet_of_the_documentation_starts_from_the_official_backbone(tmp_path):
    page = (ROOT / 'docs' / 'classification.md').read_text()
    snippet = re.search(r'```python\n(.*?)```', page, re.DOTALL)[1]
    (tmp_path / 'mine.py').write_text(snippet.replace("'configs/", f"'{ROOT}/configs/"))
    state = official_state('m4')
    source = save_official(tmp_path / 'm4.pth', state)
    cfg = load_config(tmp_path / 'mine.py', {'model.backbone.init_cfg.checkpoint': source})
    model = build(cfg)
    model.init_weights()
    key = 'patch_embed.0.c.weight'
    assert torch.equal(model.backbone.state_dict()[key], state[key])
    assert model.head.l.out_features == 3
    assert cfg.train_dataloader.dataset.data_prefix == 'train'


def test_head_and_backbone_must_fit():
    cfg = load_config(BASE, {'model.head.in_channels': 384})
    with pytest.raises(ConfigError, match=r'set model\.head\.in_channels=192'):
        build(cfg)


def test_head_is_the_authors():
    ours, theirs = EfficientViTClsHead(16, 5), EfficientViTHead(16, 5)
    golden_weights(theirs)
    ours.load_state_dict({k.removeprefix('head.'): v for k, v in theirs.state_dict().items()})
    feats = (torch.rand(2, 8, 8, 8), torch.rand(2, 16, 4, 4))
    assert torch.equal(ours.eval()(feats), theirs.eval()(feats))


def test_head_passes_on_what_mmpretrains_takes():
    head = EfficientViTClsHead(
        16, 5, topk=(1, 3), cal_acc=True, loss={'type': 'CrossEntropyLoss', 'loss_weight': 2.0}
    )
    head.init_weights()
    golden_weights(head).eval().requires_grad_(False)
    head.l.bias.add_(10)  # mmpretrain counts no score below 0 as right
    feats = (torch.rand(6, 16, 4, 4),)
    labels = [4, 1, 0, 2, 3, 3]
    logits = head(feats)
    found = head.loss(feats, [DataSample().set_gt_label(label) for label in labels])
    assert found['loss'].item() == pytest.approx(
        2 * float(F.cross_entropy(logits, torch.tensor(labels)))
    )
    for k in (1, 3):
        right = sum(label in row.topk(k).indices for label, row in zip(labels, logits, strict=True))
        assert float(found[f'accuracy_top-{k}'][0]) == pytest.approx(100 * right / 6)
    assert (head.in_channels, head.num_classes) == (16, 5)


def test_a_classifier_without_a_file_starts_as_its_parts_say(tiny, tmp_path, monkeypatch):
    """As for another number of classes: the backbone has a file, and the head another way."""
    body = EfficientViT(tiny, window_sizes=(7, 7, 4))
    torch.save(body.state_dict(), tmp_path / 'body.pth')
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'body.pth')}
    fill = {'type': 'Constant', 'layer': 'Linear', 'val': 0.5}
    init_default_scope('mmpretrain')
    model = MODELS.build(
        {
            'type': 'EfficientViTClassifier',
            'backbone': {'type': 'EfficientViT', 'arch': tiny, 'init_cfg': init_cfg},
            'head': {'type': 'EfficientViTClsHead', 'in_channels': 32, 'num_classes': 4},
            'init_cfg': fill,
        }
    )
    model.init_weights()
    assert torch.equal(model.backbone.patch_embed[0].c.weight, body.patch_embed[0].c.weight)
    assert (model.head.l.weight == 0.5).all()
    assert model.data_preprocessor.num_classes == 4
    said = []
    monkeypatch.setattr(
        'evit_mm.models.classifier.print_log', lambda text, logger: said.append(text)
    )
    model.translate_state_dict(body.state_dict())
    model.translate_state_dict(model.state_dict())
    assert said == ['resized 2 attention biases']  # of the two last blocks


# --- the recipe -----------------------------------------------------------------------------------


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config_builds_and_trains_a_step(path):
    cfg = load_config(path)
    cfg.model.pop('init_cfg', None)
    model = build(cfg)
    inputs = {
        'inputs': torch.randint(0, 256, (4, 3, 96, 96), dtype=torch.uint8),
        'data_samples': [DataSample().set_gt_label(i) for i in range(4)],
    }
    inputs = model.data_preprocessor(inputs, training=True)
    assert inputs['data_samples'][0].gt_score.shape == (1000,)
    loss = model.train()(**inputs, mode='loss')['loss']
    loss.backward()
    assert float(loss) == pytest.approx(math.log(1000), rel=0.2)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_recipe_is_the_authors(path):
    cfg = load_config(path)
    size = int(path.stem.split('_')[2]) if path in FINE_TUNED else 224
    tuned = size > 224
    assert cfg.model.backbone.arch == path.stem.split('_')[1]
    assert not cfg.model.backbone.get('drop_path_rate')
    assert (
        cfg.default_scope == 'mmpretrain'
        and 'evit_mm.models.heads' not in cfg.custom_imports.imports
    )

    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.betas, optimizer.eps) == ('AdamW', (0.9, 0.999), 1e-8)
    assert (optimizer.lr, optimizer.weight_decay) == ((4e-5, 1e-8) if tuned else (4e-3, 0.025))
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.clip_factor) == ('AGCOptimWrapper', 0.02)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 2048
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == (30 if tuned else 300)
    assert cfg.param_scheduler[1].T_max == cfg.train_cfg.max_epochs - 5
    if not tuned:
        assert optimizer.lr == 1e-3 * 2048 / 512
        assert cfg.param_scheduler[0].start_factor * optimizer.lr == pytest.approx(1e-6)
        assert cfg.param_scheduler[1].eta_min == 1e-5

    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert 'ColorJitter' not in steps  # timm leaves it out beside RandAugment
    augment, erase = steps['RandAugment'], steps['RandomErasing']
    assert (augment.policies, augment.num_policies) == ('timm_increasing', 2)
    assert (augment.magnitude_level, augment.total_level, augment.magnitude_std) == (9, 10, 0.5)
    assert (erase.erase_prob, erase.mode) == (0.25, 'rand')
    crop = steps['RandomResizedCrop']
    assert (crop.scale, crop.interpolation) == (size, 'bicubic')
    assert cfg.train_dataloader.sampler.type == 'RepeatAugSampler'
    assert cfg.train_dataloader.sampler.num_repeats == 3 and cfg.train_dataloader.drop_last

    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        _, resize, crop, _ = loader.dataset.pipeline
        assert (resize.scale, resize.edge) == (int(256 / 224 * size), 'short')
        assert (resize.interpolation, crop.crop_size) == ('bicubic', size)
        assert loader.dataset.data_prefix == 'val'
    assert cfg.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert cfg.model.data_preprocessor.std == [58.395, 57.12, 57.375]
    assert cfg.model.data_preprocessor.to_rgb

    mixup, cutmix = cfg.model.train_cfg.augments
    assert (mixup.type, mixup.alpha, cutmix.type, cutmix.alpha) == ('Mixup', 0.8, 'CutMix', 1.0)
    assert cfg.model.head.loss == {
        'type': 'LabelSmoothLoss',
        'label_smooth_val': 0.1,
        'mode': 'original',
    }
    average = next(hook for hook in cfg.custom_hooks if hook.type == 'EMAHook')
    assert 1 - average.momentum == pytest.approx(0.99996, abs=1e-9) and average.update_buffers
    assert average.evaluate_on_origin and not average.evaluate_on_ema
    assert (cfg.runner_type, cfg.train_cfg.type) == ('CheckedRunner', 'ExactTrainLoop')
    assert cfg.visualizer.type == 'UniversalVisualizer' and 'name' not in cfg.visualizer


def test_schedule_is_that_of_timm():
    """Per epoch: linear from 1e-6 to the peak in 5 epochs, then cosine to 1e-5."""
    cfg = load_config(BASE)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=4e-3)
    schedulers = [
        PARAM_SCHEDULERS.build(part, default_args={'optimizer': optimizer})
        for part in cfg.param_scheduler
    ]
    found = []
    for _ in range(300):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    for epoch in range(6):
        assert found[epoch] == pytest.approx(1e-6 + (4e-3 - 1e-6) * epoch / 5, rel=1e-6)
    assert max(found) == found[5]
    for epoch in range(6, 300):
        cosine = 1e-5 + (4e-3 - 1e-5) * (1 + math.cos(math.pi * epoch / 300)) / 2
        assert abs(found[epoch] - cosine) < 0.016 * 4e-3
    assert found[-1] < 1.05e-5


def test_weight_decay_is_off_where_timm_and_the_authors_switch_it_off():
    cfg = load_config(BASE)
    model = build(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert isinstance(wrapper, AGCOptimWrapper)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = set()
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            name = names.pop(id(parameter))
            free = parameter.ndim == 1 or name.endswith('.bias') or 'attention_biases' in name
            assert group['weight_decay'] == (0.0 if free else 0.025), name
            decayed.add(not free)
    assert not names and decayed == {True, False}


def test_clipping_is_per_unit():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    torch.nn.init.zeros_(model[0].weight[1])  # clipped as if its norm were 1e-3
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    wrapper = OPTIM_WRAPPERS.build(
        {'type': 'AGCOptimWrapper', 'optimizer': optimizer, 'clip_factor': 0.02}
    )
    scale = torch.tensor([100.0, 0.001])  # the second output's gradients stay below the limit
    loss = (model(torch.rand(5, 3, 3, 3)) * scale).sum()
    raw = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    wrapper.update_params(loss)
    clipped = 0
    for (name, parameter), gradient in zip(model.named_parameters(), raw, strict=True):
        units = len(gradient) if gradient.ndim > 1 else 1  # a vector is one unit
        for weight, grad, now in zip(
            before[name].reshape(units, -1),
            gradient.reshape(units, -1),
            parameter.detach().reshape(units, -1),
            strict=True,
        ):
            limit = 0.02 * max(math.sqrt(sum(float(w) ** 2 for w in weight)), 1e-3)
            norm = math.sqrt(sum(float(g) ** 2 for g in grad))
            clipped += norm > limit
            expected = weight - grad * min(1.0, limit / max(norm, 1e-12))
            assert torch.allclose(now, expected, rtol=1e-5, atol=1e-7), name
    assert 0 < clipped < 8


def test_mixed_precision_keeps_the_clipping():
    kind = OPTIM_WRAPPERS.get('AmpAGCOptimWrapper')  # what --amp makes of AGCOptimWrapper
    assert issubclass(kind, AmpOptimWrapper)
    assert kind._clip_grad is AGCOptimWrapper._clip_grad


def test_smoothed_and_mixed_targets_are_those_of_timm():
    cfg = load_config(BASE)
    init_default_scope('mmpretrain')
    ours = MODELS.build(cfg.model.head.loss)
    logits, labels = torch.randn(6, 10), torch.arange(6)
    targets = timm.data.mixup.mixup_target(labels, 10, lam=0.3, smoothing=0.1)
    expected = timm.loss.SoftTargetCrossEntropy()(logits, targets)
    one_hot = F.one_hot(labels, 10).float()
    found = ours(logits, 0.3 * one_hot + 0.7 * one_hot.flip(0))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_evaluation_sees_what_the_authors_saw(tmp_path):
    """Resize, crop and normalisation equal timm's, up to rounding to whole pixel values."""
    small = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    pixels = cv2.resize(small, (400, 300), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / 'a.png'), pixels)
    cfg = load_config(BASE)
    init_default_scope('mmpretrain')
    results = {'img_path': str(tmp_path / 'a.png'), 'gt_label': 0}
    for step in cfg.test_dataloader.dataset.pipeline:
        results = TRANSFORMS.build(step)(results)
    batch = {'inputs': [results['inputs']], 'data_samples': [results['data_samples']]}
    found = build(cfg).data_preprocessor(batch)['inputs'][0]
    theirs = timm.data.create_transform(224, interpolation='bicubic', crop_pct=0.875)
    expected = theirs(Image.open(tmp_path / 'a.png'))
    assert found.shape == expected.shape == (3, 224, 224)
    assert (found - expected).abs().max() < 0.02  # a grey level is 1 / 58


def test_every_policy_of_randaugment_works_here():
    """mmpretrain 1.2 is older than the numpy and OpenCV that it runs with."""
    from mmpretrain.datasets.transforms.auto_augment import RANDAUG_POLICIES

    cfg = load_config(BASE)
    step = next(s for s in cfg.train_dataloader.dataset.pipeline if s.type == 'RandAugment')
    pixels = np.random.default_rng(0).integers(20, 200, (32, 32, 3), np.uint8)
    for policy in RANDAUG_POLICIES[step.policies]:
        transform = TRANSFORMS.build({**step, 'policies': [policy], 'num_policies': 1})
        found = [transform({'img': pixels.copy()})['img'] for _ in range(20)]
        assert all(image.shape == pixels.shape and image.dtype == np.uint8 for image in found)
        assert any((image != pixels).any() for image in found), policy


def test_pictures_are_handed_on_in_rgb_under_a_name_of_their_own(tmp_path, monkeypatch):
    drawn = []
    visualizer = SimpleNamespace(visualize_cls=lambda **given: drawn.append(given))
    monkeypatch.setattr(Visualizer, 'get_current_instance', lambda: visualizer)
    hook = ClsVisualizationHook(enable=True, interval=1, out_dir=str(tmp_path))
    images = [torch.randint(0, 255, (3, 4, 6), dtype=torch.uint8) for _ in range(2)]
    samples = [DataSample(metainfo={'img_path': f'data/{name}/1.jpg'}) for name in ('cat', 'dog')]
    hook._draw_samples(0, {'inputs': images}, samples)
    assert [sample.img_path for sample in samples] == ['data/cat/1.jpg', 'data/dog/1.jpg']
    for (blue, green, red), given in zip(images, drawn, strict=True):
        assert np.array_equal(given['image'], torch.stack((red, green, blue), 2).numpy())
    names = [given['out_file'].split('/')[-1] for given in drawn]
    assert names == ['cat_1.jpg_0.png', 'dog_1.jpg_0.png']
    hook._draw_samples(1, {'inputs': images}, samples, 7)
    ClsVisualizationHook(enable=False)._draw_samples(0, {'inputs': images}, samples)
    names = [given['out_file'].split('/')[-1] for given in drawn[2:]]
    assert names == ['cat_1.jpg_7.png', 'dog_1.jpg_7.png']


def test_pictures_of_subfolders_of_the_classes_have_names_of_their_own(tmp_path, monkeypatch):
    drawn = []
    visualizer = SimpleNamespace(visualize_cls=lambda **given: drawn.append(given['out_file']))
    monkeypatch.setattr(Visualizer, 'get_current_instance', lambda: visualizer)
    hook = ClsVisualizationHook(enable=True, interval=1, out_dir=str(tmp_path))
    loader = SimpleNamespace(dataset=SimpleNamespace(img_prefix='data/val/'))
    names = ('cat/more/1.jpg', 'dog/more/1.jpg')
    samples = [DataSample(metainfo={'img_path': f'data/val/{name}'}) for name in names]
    images = [torch.zeros(3, 4, 6, dtype=torch.uint8)] * 2
    for start in (hook.before_val_epoch, hook.before_test_epoch):
        start(SimpleNamespace(val_dataloader=loader, test_dataloader=loader))
        hook._draw_samples(0, {'inputs': images}, samples)
    expected = ['cat_more_1.jpg_0.png', 'dog_more_1.jpg_0.png']
    assert [name.split('/')[-1] for name in drawn] == expected * 2


# --- the tools ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_loss_falls_and_accuracy_is_that_of_the_plain_weights(trained, tmp_path):
    config, work, losses = trained
    assert len(losses) == 36
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:6])
    summary = json.loads((work / 'summary.json').read_text())
    assert summary['best']['metric'] == 'accuracy/top1' and summary['best']['value'] > 60
    assert (work / summary['best']['checkpoint']).is_file()
    log = max(work.glob('*/*.log')).read_text()
    assert '--show-dir' in log and 'tools/predict.py' not in log  # it detects nothing
    content = read_checkpoint(work / 'epoch_12.pth')
    assert content['meta']['dataset_meta']['classes'] == ('blue', 'green', 'red')
    # mmengine keeps the averaged weights under state_dict and the plain ones beside them
    plain = {k[7:]: v for k, v in content['ema_state_dict'].items() if k.startswith('module.')}
    key = 'head.l.weight'
    assert not torch.allclose(plain[key], content['state_dict'][key], atol=1e-3)
    own = run_test(
        config,
        work / 'epoch_12.pth',
        out=str(tmp_path / 'own.pkl'),
        show_dir=str(tmp_path / 'pictures'),
        work_dir=str(tmp_path),
        device='cpu',
    )
    assert own['accuracy/top1'] > 60 and own['accuracy/top2'] >= own['accuracy/top1']

    # the same weights as the authors would have saved them
    official = {k.removeprefix('backbone.'): v for k, v in plain.items()}
    official = save_official(tmp_path / 'official.pth', official)
    again = run_test(
        config, official, out=str(tmp_path / 'a.pkl'), work_dir=str(tmp_path), device='cpu'
    )
    assert again == own
    for a, b in zip(
        pickle.loads((tmp_path / 'own.pkl').read_bytes()),
        pickle.loads((tmp_path / 'a.pkl').read_bytes()),
        strict=True,
    ):
        assert torch.equal(a['pred_score'], b['pred_score'])

    pictures = sorted((tmp_path / 'pictures').glob('*.png'))
    assert len(pictures) == 12  # the files are called 0.png to 3.png in each class
    for picture in pictures:
        bgr = cv2.imread(str(picture)).mean((0, 1))
        assert picture.name.startswith(('blue', 'green', 'red')[int(bgr.argmax())])


@pytest.mark.slow
def test_resume_and_start_from_another_head(trained, data, tmp_path):
    config, work, _ = trained
    options = {'train_cfg.max_epochs': 13}
    resumed = train(
        config,
        str(tmp_path / 'a'),
        resume=str(work / 'epoch_12.pth'),
        cfg_options=options,
        device='cpu',
    )
    assert (resumed.epoch, resumed.iter) == (13, 39)
    # an official file with ten classes: the backbone is taken over, the head is not
    state = official_state(TINY, num_classes=10, window_sizes=(4, 4, 1))
    options = {
        'load_from': save_official(tmp_path / 'ten.pth', state),
        'optim_wrapper.optimizer.lr': 0.0,
        'train_cfg.max_epochs': 1,
    }
    runner = train(config, str(tmp_path / 'b'), cfg_options=options, device='cpu')
    found = runner.model.state_dict()
    assert torch.equal(found['backbone.patch_embed.2.c.weight'], state['patch_embed.2.c.weight'])
    assert found['backbone.blocks2.3.mixer.m.attn.attention_biases'].shape == (2, 4)
    assert torch.equal(found['head.bn.weight'], state['head.bn.weight'])
    assert found['head.l.weight'].shape == (3, 32)
    del state['patch_embed.2.c.weight']
    options['load_from'] = save_official(tmp_path / 'ten.pth', state)
    with pytest.raises(CheckpointError, match=r'missing: backbone\.patch_embed\.2\.c\.weight'):
        train(config, str(tmp_path / 'b'), cfg_options=options, device='cpu')


def test_an_official_file_of_another_size_is_refused_by_the_test_tool(data, tmp_path):
    config = write_config(tmp_path, data)
    source = save_official(tmp_path / 'm0.pth', official_state('m0'))
    with pytest.raises(CheckpointError, match='does not fit EfficientViTClassifier'):
        run_test(config, source, work_dir=str(tmp_path), device='cpu')


def test_what_is_for_detectors_alone_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r'must end in \.pkl for a classifier'):
        run_test(BASE, None, out='x.json')
    with pytest.raises(ConfigError, match='is a classifier, not a detector'):
        inference.predict('x.pth', tmp_path, tmp_path / 'out', BASE)


def test_missing_imagenet_is_named_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="train: image folder 'data/imagenet/train' does not exist"):
        train(BASE, str(tmp_path / 'work'), device='cpu')
    assert not list(tmp_path.rglob('*.pth'))


# --- the data -------------------------------------------------------------------------------------


def checked(folder, data, options=None, splits=('train', 'val')):
    check_config_data(load_config(write_config(folder, data), options), splits)


def test_good_folders_and_lists_pass(data, tmp_path):
    checked(tmp_path, data)
    checked(tmp_path, data, splits=('test',))
    root = draw_images(tmp_path / 'listed', [('all', 2)])
    (root / 'val.txt').write_text('red/0.png 2\nblue/1.png 0\n')
    options = {
        'val_dataloader.dataset.ann_file': 'val.txt',
        'val_dataloader.dataset.data_prefix': 'all',
        'val_dataloader.dataset.data_root': str(root),
    }
    checked(tmp_path, data, options)
    cfg = load_config(write_config(tmp_path, data), options)
    init_default_scope('mmpretrain')
    assert DATASETS.build(cfg.val_dataloader.dataset)[0]['data_samples'].gt_label == 2


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        ('rm -r train', r"train: image folder '.*train' does not exist; set train_dataloader"),
        ('rm -r val/*', r"val: '.*val' has no class folders"),
        (
            'rm train/red/*; touch train/red/._0.png',
            r"train: '.*train': no image \(\.jpg.*\) in red",
        ),
        ('rm -r val/green', r"'.*val' has 2 class folders; set model\.head\.num_classes=2"),
        ('mv val/green val/verde', r'have different class folders \(green, verde\)'),
        ('echo x > train/blue/0.png; rm train/blue/1.png', r"image '.*0\.png' cannot be decoded"),
        (': > train/blue/0.png; rm train/blue/1.png', r"image '.*0\.png' cannot be decoded"),
    ],
)
def test_spoilt_folders_are_named(spoil, message, tmp_path):
    root = draw_images(tmp_path / 'images', [('train', 2), ('val', 2)])
    subprocess.run(spoil, shell=True, cwd=root, check=True)
    with pytest.raises(DataError, match=message):
        checked(tmp_path, root)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'model.head.num_classes': 4}, r'num_classes is 4 but .* set model\.head\.num_classes=3'),
        (
            {'val_evaluator.topk': (1, 5)},
            r'val_evaluator computes the top-5 accuracy of only 3 classes',
        ),
        ({'val_dataloader.dataset.ann_file': 'no.txt'}, r"list '.*no\.txt' does not exist"),
    ],
)
def test_configs_that_do_not_fit_the_data_are_named(options, message, data, tmp_path):
    with pytest.raises(DataError, match=message):
        checked(tmp_path, data, options)
