import copy
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from torch.nn.modules.batchnorm import _BatchNorm

from evit_mm.errors import ConfigError, EvitError
from evit_mm.models import VARIANTS, EfficientViT, EfficientViTHead, TIMMNet
from evit_mm.models.classifier import EfficientViTClsHead
from tests.conftest import ROOT, randomise, relative_error


def run(model, *size, batch=1):
    return model(torch.randn(batch, 3, *size))


@pytest.mark.parametrize('size', [(16, 16), (17, 23), (64, 64), (5 * 32 + 1, 200), (16, 300)])
@pytest.mark.parametrize('training', [False, True])
def test_any_size_gives_the_promised_shapes(tiny, size, training):
    model = EfficientViT(tiny, out_stem=True).train(training)
    outs = run(model, *size, batch=2)
    assert model.strides == (8, 16, 32, 64)
    assert model.out_channels == (8, 16, 24, 32)
    for out, channels, stride in zip(outs, model.out_channels, model.strides, strict=True):
        assert out.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
        assert torch.isfinite(out).all()


@pytest.mark.parametrize('indices', [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_out_indices_choose_among_the_same_maps(tiny, indices):
    full = randomise(EfficientViT(tiny)).eval()
    model = EfficientViT(tiny, out_indices=indices).eval()
    state = full.state_dict()
    model.load_state_dict({k: state[k] for k in model.state_dict()})
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        expected, found = full(x), model(x)
    assert len(found) == len(indices) == len(model.strides)
    for index, out in zip(indices, found, strict=True):
        assert torch.equal(out, expected[index])
    # nothing is built that no output needs, so DDP finds no unused parameters
    assert all(int(k[6]) <= indices[-1] + 1 for k in model.state_dict() if k[:6] == 'blocks')


def test_the_stem_output_is_the_input_of_its_last_convolution(tiny):
    model = randomise(EfficientViT(tiny, out_indices=(0,), out_stem=True)).eval()
    seen = []
    model.patch_embed[-1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert torch.equal(run(model, 64, 64)[0], seen[0])


@pytest.mark.parametrize('stages', [-1, 0, 1, 2, 3])
def test_frozen_stages_keep_weights_and_statistics(tiny, stages):
    model = EfficientViT(tiny, frozen_stages=stages)
    randomise(model)
    assert model.train() is model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    if parameters:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        sum(out.square().mean() for out in run(model, 64, 64, batch=2)).backward()
        optimizer.step()
    parts = ['patch_embed', 'blocks1', 'blocks2', 'blocks3']
    frozen = set(parts[: stages + 1])
    for name, tensor in model.state_dict().items():
        if name.endswith('attention_biases'):
            continue  # moves little; the gradient below decides
        assert torch.equal(tensor, before[name]) == (name.split('.')[0] in frozen), name
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name.split('.')[0] in frozen), name


@pytest.mark.parametrize('norm_eval', [False, True])
def test_norm_eval_keeps_statistics_but_trains_weights(tiny, norm_eval):
    model = EfficientViT(tiny, norm_eval=norm_eval).train()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    before = [norm.running_mean.clone() for norm in norms]
    sum(out.sum() for out in run(model, 64, 64, batch=2)).backward()
    same = [torch.equal(n.running_mean, b) for n, b in zip(norms, before, strict=True)]
    assert all(same) if norm_eval else not any(same)
    assert all(norm.weight.grad is not None for norm in norms)
    assert not any(m.training for m in model.eval().modules())


def test_drop_path_drops_more_with_depth_and_only_while_training(tiny):
    model = EfficientViT(tiny, drop_path_rate=0.6)
    rates = [m.drop_path_rate for m in model.modules() if hasattr(m, 'drop_path_rate')]
    # four branches lead into a later stage, with the rate of its first block
    by_block = [0.0, 0.2, 0.4, 0.6]
    layers = [5, 4 + 5, 4 + 5, 5]
    expected = [rate for rate, n in zip(by_block, layers, strict=True) for _ in range(n)]
    assert rates == pytest.approx(expected)
    randomise(model)
    x = torch.randn(2, 3, 64, 64)
    model.train()
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            norm.eval()
    assert not torch.equal(model(x)[2], model(x)[2])
    model.eval()
    assert torch.equal(model(x)[2], model(x)[2])
    model.train()
    # on average, dropping and rescaling changes nothing at the last branch
    branch = model.blocks3[-1].ffn1.eval()
    y = torch.randn(1, 32, 2, 2)
    exact = branch(y)
    branch.train()
    branch.m.eval()
    mean = torch.stack([branch(y) for _ in range(4000)]).mean(0)
    assert relative_error(mean - y, exact - y) < 0.1  # of the branch alone


@pytest.mark.parametrize('name', ['efficientvit', 'shvit_s1', 'mobilenetv2_100'])
def test_with_cp_changes_neither_gradients_nor_statistics(tiny, name):
    build = partial(EfficientViT, tiny) if name == 'efficientvit' else partial(TIMMNet, name)
    plain = randomise(build()).train()
    saving = build(with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    kept = {}
    x = torch.randn(2, 3, 64, 64)
    for name, model in (('plain', plain), ('saving', saving)):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t
        ):
            loss = sum(out.square().mean() for out in model(x))
        loss.backward()
        kept[name] = sum(saved)
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert relative_error(b.grad, a.grad) < 1e-5, name
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(saving.state_dict()[name], tensor, atol=1e-6), name
    assert kept['saving'] < 0.5 * kept['plain']
    for a, b in zip(plain.modules(), saving.modules(), strict=True):
        assert getattr(a, 'momentum', None) == getattr(b, 'momentum', None)


def test_only_recomputing_needs_a_newer_torch_and_every_relu_is_in_place(tiny, monkeypatch):
    monkeypatch.setattr('importlib.metadata.version', lambda package: '2.0.1')
    model = EfficientViT(tiny)
    assert all(m.inplace for m in model.modules() if isinstance(m, torch.nn.ReLU))
    with pytest.raises(EvitError, match=r'with_cp=True needs torch 2\.1 or newer'):
        EfficientViT(tiny, with_cp=True)


def test_a_new_network_starts_from_identities_and_small_logits(tiny):
    model = EfficientViT(tiny)
    for block in (*model.blocks1, model.blocks2[3], *model.blocks3[3:]):
        x = torch.randn(2, block.dw0.m.c.in_channels, 9, 8)
        assert torch.equal(block(x), x)
        assert not block.mixer.m.attn.attention_biases.any()
    # those that change the number of channels, and those around them, are no identities
    assert all(
        norm.weight.eq(1).all() for norm in (model.patch_embed[0].bn, model.blocks2[0][0].m.bn)
    )
    for head in (EfficientViTHead(192), EfficientViTClsHead(192)):
        linear = next(m for m in head.modules() if isinstance(m, torch.nn.Linear))
        assert linear.out_features == 1000 and not linear.bias.any()
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_in_channels_and_window_sizes_reach_the_network(tiny):
    model = EfficientViT(tiny, in_channels=5, window_sizes=(3, 5, 4)).eval()
    assert model(torch.randn(1, 5, 64, 64))[2].shape == (1, 32, 1, 1)
    sides = [
        model.state_dict()[f'blocks{s}.{b}.mixer.m.attn.attention_biases'].shape[1]
        for s, b in ((1, 0), (2, 3), (3, 3))
    ]
    assert sides == [9, 25, 16]


@pytest.mark.parametrize(
    ('kwargs', 'error', 'message'),
    [
        ({'arch': 'm9'}, KeyError, 'unknown arch'),
        ({'out_indices': (3,)}, ValueError, 'out_indices must contain indices from'),
        ({'out_indices': ()}, ValueError, 'out_indices'),
        ({'out_indices': (2, 1)}, ValueError, 'increasing'),
        ({'out_indices': (1, 1)}, ValueError, 'increasing'),
        ({'out_indices': 1}, ValueError, 'increasing'),
        ({'frozen_stages': 4}, ValueError, 'frozen_stages'),
        ({'frozen_stages': -2}, ValueError, 'frozen_stages'),
        ({'frozen_stages': 3, 'out_indices': (0, 1)}, ValueError, 'to 2 '),
        ({'drop_path_rate': 1.0}, ValueError, 'drop_path_rate'),
        ({'drop_path_rate': -0.1}, ValueError, 'drop_path_rate'),
        ({'in_channels': 0}, ValueError, 'in_channels'),
        ({'window_sizes': (7, 7)}, ValueError, 'window_sizes must have 3 entries'),
        ({'window_sizes': 7}, TypeError, 'window_sizes'),
    ],
)
def test_bad_arguments_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        EfficientViT(**kwargs)


@pytest.mark.parametrize(
    ('x', 'said'),
    [
        (torch.rand(3, 64, 64), r'the shape \(3, 64, 64\); add the batch dimension, .* x\[None\]'),
        (torch.rand(64, 64), r'the shape \(64, 64\); add'),
        (torch.rand(1, 1, 3, 64, 64), r'the shape \(1, 1, 3, 64, 64\); add'),
        (torch.rand(1, 64, 64, 3), r'the shape \(1, 64, 64, 3\); move the channels to the second'),
        (np.zeros((1, 3, 64, 64), np.float32), 'ndarray; convert an array with torch.from_numpy'),
        (torch.rand(1, 3, 64, 64).double(), r'torch.float64, but its weights are torch.float32; '
         r'use x.to\(torch.float32\)'),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), 'torch.uint8, but its weights are'),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int64), 'torch.int64, but its weights are'),
    ],
)  # fmt: skip
def test_wrong_images_are_named(tiny, x, said):
    model = EfficientViT(tiny)
    with pytest.raises(ConfigError, match=rf'needs a tensor \(B, 3, H, W\), got {said}'):
        model(x)


def test_weights_and_images_in_float64_fit(tiny):
    model = EfficientViT(tiny).double().eval()
    assert model(torch.rand(1, 3, 64, 64).double())[0].dtype == torch.float64
    with pytest.raises(ConfigError, match='got torch.float32, but its weights are torch.float64'):
        model(torch.rand(1, 3, 64, 64))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        EfficientViT(tiny).eval()(torch.rand(1, 3, 64, 64).bfloat16())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_mixed_precision_stays_near_float32(tiny, dtype):
    model = randomise(EfficientViT(tiny)).eval()
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast('cpu', dtype=dtype):
            found = model(x)
        cast = copy.deepcopy(model).to(dtype)
        whole = cast(x.to(dtype))
    for out, low, lower in zip(expected, found, whole, strict=True):
        assert relative_error(low, out) < 0.05
        assert lower.dtype == dtype and relative_error(lower, out) < 0.1


def test_amp_trains(tiny):
    model = EfficientViT(tiny).train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = sum(out.float().square().mean() for out in run(model, 64, 64, batch=2))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_loading_after_eval_is_not_stale_and_copies_are_independent(tiny):
    trained = randomise(EfficientViT(tiny)).eval()
    model = EfficientViT(tiny).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        model(x)
        model.load_state_dict(trained.state_dict())
        assert torch.equal(model(x)[2], trained(x)[2])
        twin = copy.deepcopy(model)
        model.blocks3[3].mixer.m.attn.attention_biases.add_(3.0)
        assert torch.equal(twin(x)[2], trained(x)[2])
        assert not torch.equal(model(x)[2], trained(x)[2])


def test_sync_batchnorm_conversion_keeps_names_freezing_and_results(tiny):
    model = randomise(EfficientViT(tiny, frozen_stages=1, norm_eval=True)).eval()
    names = set(model.state_dict())
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)[2]
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert set(converted.state_dict()) == names
    assert torch.equal(converted(x)[2], expected)
    converted.train()
    assert not any(m.training for m in converted.modules() if isinstance(m, _BatchNorm))


@pytest.mark.slow
@pytest.mark.parametrize('training', [False, True])
def test_compiles_whole_and_computes_the_same(tiny, training):
    """One graph without breaks, the same outputs and gradients."""
    model = randomise(EfficientViT({**tiny, 'depths': (1, 1, 1)})).train(training)
    compiled = torch.compile(copy.deepcopy(model), backend='eager', fullgraph=True, dynamic=False)
    x = torch.randn(2, 3, 64, 64)
    losses = [sum(out.square().mean() for out in m(x)) for m in (model, compiled)]
    for loss in losses:
        loss.backward()
    assert relative_error(losses[1], losses[0]) < 1e-5
    for (name, a), b in zip(model.named_parameters(), compiled.parameters(), strict=True):
        assert relative_error(b.grad, a.grad) < 1e-4, name


def test_state_dict_names_are_the_authors():
    names = set(EfficientViT('m4').state_dict())
    # 699 in the authors' file: 4 of the head's BatchNorm, its counter, 2 of its linear layer, and
    # one index buffer per block
    assert len(names) == 699 - 7 - sum(VARIANTS['m4'].depths)
    for name in (
        'patch_embed.6.bn.running_var',
        'blocks1.0.dw0.m.c.weight',
        'blocks1.0.ffn1.m.pw2.bn.weight',
        'blocks1.0.mixer.m.attn.qkvs.3.c.weight',
        'blocks2.0.0.m.c.weight',
        'blocks2.0.1.m.pw1.c.weight',
        'blocks2.1.se.fc2.bias',
        'blocks3.2.1.m.pw2.bn.bias',
        'blocks3.5.mixer.m.attn.attention_biases',
        'blocks3.5.mixer.m.attn.proj.1.c.weight',
        'blocks3.5.mixer.m.attn.dws.0.c.weight',
    ):
        assert name in names


def test_registered_for_every_library_without_importing_one(tiny):
    assert isinstance(MODELS.build({'type': 'EfficientViT', 'arch': tiny}), EfficientViT)
    code = (
        'import sys, evit_mm.models\n'
        'heavy = {"mmdet", "mmpretrain", "mmseg", "timm"} & set(sys.modules)\n'
        'assert not heavy, heavy\n'
    )
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    subprocess.run([sys.executable, '-c', code], check=True, env=env)


@pytest.mark.parametrize('library', ['mmdet', 'mmpretrain'])
def test_builds_by_name_in_the_libraries(tiny, library):
    registry = pytest.importorskip(f'{library}.registry')
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope(library):
        model = registry.MODELS.build({'type': 'EfficientViT', 'arch': tiny})
        neck = registry.MODELS.build(
            {'type': 'EfficientViTFPN', 'in_channels': [16], 'out_channels': 8, 'num_outs': 2}
        )
    assert isinstance(model, EfficientViT)
    assert neck.num_outs == 2
