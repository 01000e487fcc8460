"""Attention maps against naive loops in float64, and what the tool makes of them."""

import json
import math

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from scipy.spatial.distance import jensenshannon

from evit_mm.errors import CheckpointError, ConfigError, DataError
from evit_mm.inference.attention_maps import pictures, visualize_attention
from evit_mm.inference.attention_maps.maps import (
    BlockAttention,
    attention_cosine,
    attention_divergence,
    attention_of_heads,
    given,
    look,
    output_similarity,
    received,
    similarities,
)
from evit_mm.models import VARIANTS, EfficientViT
from evit_mm.models.attention import CascadedGroupAttention
from evit_mm.runner.config import load_config
from tests.conftest import ROOT, TINY, randomise

W = 4
DETECTOR = ROOT / 'configs' / 'retinanet_evit_m4_shapes.py'
OPTIONS = {
    'model.backbone.arch': {'_delete_': True, **TINY},
    'model.neck.in_channels': [16, 24, 32],
    'test_dataloader.dataset.pipeline.1.scale': (150, 110),
}


def conv_bn(x, layer):
    """A convolution at the tokens of one window, then BatchNorm, token by token: ``(C, w, w)``."""
    weight, bn = layer.c.weight.numpy(), layer.bn
    channels, per_group, side, _ = weight.shape
    pad, out = side // 2, np.zeros((channels, *x.shape[1:]))
    groups = x.shape[0] // per_group
    for c in range(channels):
        first = c * groups // channels * per_group
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                for i in range(side):
                    for j in range(side):
                        y, z = row + i - pad, column + j - pad
                        if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                            part = x[first : first + per_group, y, z]
                            out[c, row, column] += part @ weight[c, :, i, j]
    mean, var = bn.running_mean.numpy(), bn.running_var.numpy()
    scale = bn.weight.numpy() / np.sqrt(var + bn.eps)
    return (out - mean[:, None, None]) * scale[:, None, None] + bn.bias.numpy()[:, None, None]


def naive(attn, window):
    """Weights and outputs of each head on one window ``(C, w, w)``, in loops over tokens."""
    side, key_dim = attn.window_size, attn.split_sizes[0]
    places = [(y, x) for y in range(side) for x in range(side)]
    heads, before = [], 0
    for head, part in enumerate(np.split(window, len(attn.qkvs))):
        q, k, v = np.split(conv_bn(part + before, attn.qkvs[head]), [key_dim, 2 * key_dim])
        q = conv_bn(q, attn.dws[head])
        weights, output = np.zeros((side**2, side**2)), np.zeros_like(v)
        for i, (y, x) in enumerate(places):
            logits = [
                q[:, y, x] @ k[:, b, a] / math.sqrt(key_dim)
                + float(attn.attention_biases[head, abs(y - b) * side + abs(x - a)])
                for b, a in places
            ]
            exponents = np.exp(np.array(logits) - max(logits))
            weights[i] = exponents / exponents.sum()
            for share, (b, a) in zip(weights[i], places, strict=True):
                output[:, y, x] += share * v[:, b, a]
        heads.append((weights, output))
        before = output
    return heads


@torch.no_grad()
def test_weights_and_outputs_equal_a_naive_computation():
    attn = randomise(CascadedGroupAttention(12, 4, 3, W, (5, 3, 3)), gain=1.0).eval().double()
    windows = torch.randn(2, 12, W, W, dtype=torch.float64)
    weights, outputs = attention_of_heads(attn, windows)
    assert weights.shape == (3, 2, 16, 16) and outputs.shape == (3, 2, 4, W, W)
    for index, window in enumerate(windows.numpy()):
        for head, (expected, output) in enumerate(naive(attn, window)):
            np.testing.assert_allclose(weights[head, index], expected, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(outputs[head, index], output, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 16, dtype=torch.float64))
    assert weights.std() > 0.02  # the queries are not indifferent


@torch.no_grad()
@pytest.mark.parametrize('arch', VARIANTS)
def test_every_block_of_every_variant_is_what_the_network_computes(arch):
    """Projected, the outputs are the mixer's; the forward itself is unchanged bit for bit."""
    backbone = randomise(EfficientViT(arch=arch)).eval()
    x = torch.randn(1, 3, 150, 230)  # maps of 10 x 15, 5 x 8, 3 x 4: no whole windows
    mixers = [m.m for m in backbone.modules() if hasattr(getattr(m, 'm', None), 'attn')]
    expected = []
    hooks = [m.register_forward_hook(lambda m, i, o: expected.append((m, o))) for m in mixers]
    plain = backbone(x)
    for hook in hooks:
        hook.remove()
    blocks = look(backbone, x)
    assert all(torch.equal(a, b) for a, b in zip(plain, backbone(x), strict=True))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in backbone.modules())
    variant = VARIANTS[arch]
    places = [(s + 1, b + 1) for s in range(3) for b in range(variant.depths[s])]
    assert [(block.stage, block.block) for block in blocks] == places
    for block, (mixer, output) in zip(blocks, expected, strict=True):
        assert len(block.weights) == variant.num_heads[block.stage - 1]
        assert block.stride == 16 << (block.stage - 1)
        torch.testing.assert_close(block.weights.sum(-1), torch.ones(block.weights.shape[:-1]))
        projected = mixer.attn.proj(block.outputs.flatten(0, 1)[None])
        torch.testing.assert_close(projected, output, rtol=1e-4, atol=1e-5)


@pytest.fixture
def block():
    """A map of 5 x 6 in windows of 4 x 4: padded to 2 x 2 windows."""
    weights = torch.randn(3, 4, 16, 16, dtype=torch.float64).softmax(-1)
    outputs = torch.randn(3, 8, 5, 6, dtype=torch.float64)
    return BlockAttention(1, 1, 16, (5, 6), W, weights, outputs)


def place(row, column):
    """Window and token of a place on the map."""
    return row // W * 2 + column // W, row % W * W + column % W


def test_windows_are_put_together_and_padding_asks_nothing(block):
    found = received(block)
    assert found.shape == (3, 5, 6)
    tokens = [(row, column) for row in range(5) for column in range(6)]
    for row, column in tokens:
        window, key = place(row, column)
        queries = [q for w, q in (place(*token) for token in tokens) if w == window]
        expected = 16 * block.weights[:, window, queries, key].mean(1)
        torch.testing.assert_close(found[:, row, column], expected)


def test_a_query_looks_into_its_own_window_alone(block):
    found = given(block, 4, 1)
    window, query = place(4, 1)
    for row in range(5):
        for column in range(6):
            other, key = place(row, column)
            expected = 16 * block.weights[:, window, query, key] if other == window else 0
            torch.testing.assert_close(
                found[:, row, column], torch.as_tensor(expected).double().expand(3)
            )


def test_divergence_and_cosine_equal_scipys_and_numpys(block):
    divergence, cosine = attention_divergence(block), attention_cosine(block)
    tokens = [place(row, column) for row in range(5) for column in range(6)]
    for a in range(3):
        for b in range(3):
            rows = [block.weights[[a, b], w, q].numpy() for w, q in tokens]
            expected = np.mean([jensenshannon(p, q, base=2) ** 2 for p, q in rows])
            assert divergence[a, b].item() == pytest.approx(expected, abs=1e-12)
            cosines = [p @ q / np.linalg.norm(p) / np.linalg.norm(q) for p, q in rows]
            assert cosine[a, b].item() == pytest.approx(np.mean(cosines), abs=1e-12)


def test_divergence_is_one_bit_where_heads_have_nothing_in_common():
    weights = torch.zeros(2, 1, 16, 16)
    weights[0, :, :, 0] = weights[1, :, :, 5] = 1
    apart = BlockAttention(1, 1, 16, (4, 4), W, weights, torch.randn(2, 3, 4, 4))
    assert torch.equal(attention_divergence(apart), 1 - torch.eye(2, dtype=torch.float64))
    assert torch.equal(attention_cosine(apart), torch.eye(2, dtype=torch.float64))


def test_cka_equals_its_form_with_gram_matrices_and_sees_through_rotations(block):
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    block.outputs[2] = 3 * torch.einsum('ij,jhw->ihw', rotation, block.outputs[0]) + 5
    found = output_similarity(block)
    grams = []
    for output in block.outputs:
        tokens = output.flatten(1).T.numpy()
        centring = np.eye(30) - 1 / 30
        grams.append(centring @ tokens @ tokens.T @ centring)
    for a in range(3):
        for b in range(3):
            norms = np.linalg.norm(grams[a]) * np.linalg.norm(grams[b])
            assert found[a, b].item() == pytest.approx((grams[a] * grams[b]).sum() / norms)
    assert found[0, 2].item() == pytest.approx(1)
    assert found[0, 1] < 0.9


def test_what_is_not_defined_is_none_and_means_are_those_of_pairs(block):
    block.outputs[1] = 2.0
    second = BlockAttention(1, 2, 16, (5, 6), W, block.weights.roll(1, 1), block.outputs)
    single = BlockAttention(2, 1, 32, (5, 6), W, block.weights[:1], block.outputs[:1])
    measured = json.loads(json.dumps(similarities([block, second, single])))
    first = measured['blocks'][0]
    cka = first['output_cka']
    assert cka['matrix'][0][1] is None and cka['matrix'][0][2] is not None and cka['mean'] is None
    matrix = np.array(first['attention_cosine']['matrix'])
    mean = np.mean([matrix[0, 1], matrix[0, 2], matrix[1, 2]])
    assert first['attention_cosine']['mean'] == pytest.approx(mean)
    other = measured['blocks'][1]['attention_cosine']['mean']
    assert measured['stages'][0]['attention_cosine'] == pytest.approx((mean + other) / 2)
    assert measured['stages'][1] == {'stage': 2, **dict.fromkeys(pictures.TITLES)}


def write_image(path, height=90, width=140):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    cv2.imwrite(str(path), pixels)
    return path


def test_the_tool_writes_pictures_and_measures_of_a_detector_and_of_its_bare_backbone(tmp_path):
    backbone = randomise(EfficientViT(arch=TINY))
    state = backbone.state_dict()
    torch.save(state, tmp_path / 'bare.pth')
    whole = {f'backbone.{key}': value for key, value in state.items()}
    whole['neck.lateral_convs.0.conv.weight'] = torch.zeros(1)
    torch.save({'state_dict': whole, 'meta': {}}, tmp_path / 'detector.pth')
    image = write_image(tmp_path / 'a.png')
    found = {}
    for name in ('bare.pth', 'detector.pth', 'random'):
        checkpoint = name if name == 'random' else tmp_path / name
        found[name] = visualize_attention(
            DETECTOR, checkpoint, image, tmp_path / name.split('.')[0], cfg_options=OPTIONS
        )
    assert found['bare.pth'] == found['detector.pth'] != found['random']
    names = {'heads.png', 'similarity.json', 'stage1.png', 'stage2.png', 'stage3.png'}
    assert {p.name for p in (tmp_path / 'detector').iterdir()} == names
    written = json.loads((tmp_path / 'detector' / 'similarity.json').read_text())
    assert written['blocks'] == found['detector.pth']['blocks']
    assert written['image'] == str(image)
    # 140 x 90 becomes 150 x 96, padded to 160 x 96: the measures are of that
    x = cv2.resize(cv2.imread(str(image)), (150, 96))[..., ::-1].astype(np.float64)
    x = (x - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    x = np.pad(x, ((0, 0), (0, 10), (0, 0)))
    x = torch.from_numpy(x).permute(2, 0, 1)[None].float()
    expected = similarities(look(backbone.eval(), x))
    for ours, theirs in zip(written['blocks'], expected['blocks'], strict=True):
        for name in pictures.TITLES:
            np.testing.assert_allclose(ours[name]['matrix'], theirs[name]['matrix'], atol=1e-4)


def test_a_point_draws_another_picture_and_stays_within_its_window(tmp_path):
    image = write_image(tmp_path / 'a.png', 110, 150)
    torch.save(randomise(EfficientViT(arch=TINY)).state_dict(), tmp_path / 'bare.pth')
    drawn, first = [], {**OPTIONS, 'model.backbone.out_indices': [0]}
    for point in (None, (0.1, 0.1), (1, 1)):
        visualize_attention(DETECTOR, tmp_path / 'bare.pth', image, tmp_path / 'out', point, first)
        drawn.append(cv2.imread(str(tmp_path / 'out' / 'stage1.png')))
    assert drawn[0].shape == drawn[1].shape
    assert not any(np.array_equal(a, b) for a, b in ((drawn[0], drawn[1]), (drawn[1], drawn[2])))
    for wrong in ((0.5, 1.1), (-0.1, 0.5)):
        with pytest.raises(ConfigError, match='--point must be x and y between 0 and 1'):
            visualize_attention(DETECTOR, 'random', image, tmp_path / 'out', wrong, OPTIONS)


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone():
    cfg = load_config(DETECTOR, OPTIONS)
    state = torch.get_rng_state()
    first = pictures.load_backbone(cfg, 'random')
    assert torch.equal(torch.get_rng_state(), state) and not first.training
    torch.rand(3)
    second = pictures.load_backbone(cfg, 'random').state_dict()
    assert all(torch.equal(x, second[name]) for name, x in first.state_dict().items())


def test_the_image_shown_is_the_resized_one(tmp_path):
    image = write_image(tmp_path / 'a.png')
    cfg = load_config(DETECTOR, OPTIONS)
    init_default_scope('mmdet')
    seen, fed = pictures.network_input(cfg, image)
    assert seen.dtype == np.uint8 and fed.shape == (1, 3, 96, 160)
    assert np.array_equal(seen, cv2.resize(cv2.imread(str(image)), (150, 96)))


@pytest.mark.parametrize('query', [None, (75.0, 35.0)])
def test_a_stage_is_drawn_as_computed(query):
    """A map of 5 x 6 tokens of 16 pixels, of which the image shows 75 x 90 pixels."""
    weights = torch.randn(2, 3, 4, 16, 16, dtype=torch.float64).softmax(-1)
    blocks = [
        BlockAttention(2, number, 16, (5, 6), W, part, torch.randn(3, 8, 5, 6))
        for number, part in enumerate(weights, 1)
    ]
    seen = np.random.default_rng(0).integers(0, 255, (75, 90, 3), np.uint8)
    figure = pictures.draw_stage(seen, blocks, query)
    what = 'attention that each token receives' if query is None else 'attention of the query'
    assert figure.get_suptitle() == f'stage 2, stride 16: {what}, 1 = uniform attention'
    panels = [axis for axis in figure.axes if axis.images]
    titles = [['block 1', *(f'head {h}' for h in (1, 2, 3))], ['block 2', 'head 1']]
    assert [axis.get_title() for axis in panels[:6]] == [*titles[0], *titles[1]]
    for axis in panels:
        assert axis.get_xticks().tolist() == [63.5] and axis.get_yticks().tolist() == [63.5]
        crosses = [line.get_xydata().tolist() for line in axis.lines]
        assert crosses == ([] if query is None else [[[75.0, 35.0]]])
    for number, block in enumerate(blocks):
        first, *heads = panels[4 * number : 4 * number + 4]
        assert np.array_equal(first.images[0].get_array(), seen[..., ::-1])
        maps = received(block) if query is None else given(block, 2, 4)
        for axis, expected in zip(heads, maps.numpy(), strict=True):
            grey, heat = axis.images
            luma = seen @ [0.114, 0.587, 0.299]
            assert np.abs(grey.get_array() - luma).max() < 1 and grey.get_clim() == (0, 255)
            shown = heat.get_array()
            assert shown.shape == (75, 90) and heat.get_clim() == (0, maps.max())
            for y, x in ((0, 0), (15, 16), (70, 75), (74, 89)):
                assert shown[y, x] == expected[y // 16, x // 16]


def test_matrices_are_drawn_as_measured(block):
    block.outputs[1] = 2.0  # its similarity is not defined
    other = BlockAttention(2, 1, 32, (5, 6), W, block.weights[:2], block.outputs[::2])
    measured = similarities([block, other])
    axes = np.array(pictures.draw_matrices(measured).axes).reshape(3, 2)
    for row, name in zip(axes, pictures.TITLES, strict=True):
        for axis, entry in zip(row, measured['blocks'], strict=True):
            matrix = np.array(entry[name]['matrix'], float)
            np.testing.assert_array_equal(axis.images[0].get_array().filled(np.nan), matrix)
            assert axis.images[0].get_clim() == (0, 1)
            mean = '-' if entry[name]['mean'] is None else f'{entry[name]["mean"]:.2f}'
            place = f'stage {entry["stage"]}, block {entry["block"]}'
            assert axis.get_title() == f'{place}: {mean}'
            for text in axis.texts:
                column, line = text.get_position()
                value = matrix[line, column]
                assert text.get_text() == ('-' if np.isnan(value) else f'{value:.2f}')
                assert text.get_color() == ('black' if value > 0.6 else 'white')
            assert len(axis.texts) == matrix.size
            names = [label.get_text() for label in axis.get_xticklabels()]
            assert names == [str(head + 1) for head in range(len(matrix))]


def test_a_classifier_sees_its_crop(tmp_path):
    image = write_image(tmp_path / 'a.png', 110, 150)
    config = ROOT / 'configs' / 'evit_m0_imagenet.py'
    options = {'model.backbone.out_indices': [1]}
    measured = visualize_attention(config, 'random', image, tmp_path / 'out', None, options)
    places = [(block['stage'], block['block']) for block in measured['blocks']]
    assert places == [(1, 1), (2, 1), (2, 2)]
    assert {len(b['attention_cosine']['matrix']) for b in measured['blocks']} == {4}


def test_what_cannot_be_looked_at_is_named(tmp_path):
    image = write_image(tmp_path / 'a.png')
    out = tmp_path / 'out'
    other = ROOT / 'configs' / 'retinanet_mobilenetv2_coco.py'
    with pytest.raises(ConfigError, match=r'model\.backbone is .*; this tool needs'):
        visualize_attention(other, 'random', image, out)
    (tmp_path / 'broken.jpg').write_bytes(b'no image')
    with pytest.raises(DataError, match=r"broken\.jpg': the image cannot be decoded"):
        visualize_attention(DETECTOR, 'random', tmp_path / 'broken.jpg', out, None, OPTIONS)
    thin = write_image(tmp_path / 'thin.png', 3000, 2)
    with pytest.raises(DataError, match='2x3000 pixels are too thin to resize'):
        visualize_attention(DETECTOR, 'random', thin, out, None, OPTIONS)
    torch.save(EfficientViT(arch='m0').state_dict(), tmp_path / 'm0.pth')
    with pytest.raises(CheckpointError, match='does not fit'):
        visualize_attention(DETECTOR, tmp_path / 'm0.pth', image, out, None, OPTIONS)
    with pytest.raises(CheckpointError, match='no.pth'):
        visualize_attention(DETECTOR, tmp_path / 'no.pth', image, out, None, OPTIONS)
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match="-o: folder '.*file' cannot be created"):
        visualize_attention(DETECTOR, 'random', image, tmp_path / 'file', None, OPTIONS)
    assert not out.exists()
