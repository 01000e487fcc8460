import argparse
import io
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import initialize
from torch import nn

from evit_mm import checkpoint as ckpt
from evit_mm.checkpoint import reading
from evit_mm.checkpoint.allowed_types import TORCH_HAS_SAFE_TYPES
from evit_mm.checkpoint.contents import own_names
from evit_mm.checkpoint.conversion import convert
from evit_mm.errors import CheckpointError
from evit_mm.models import EfficientViT, EfficientViTHead
from tests.conftest import randomise, relative_error


@pytest.fixture
def published(tiny):
    """An ImageNet file's weights: 4x4 last windows, a classifier, index buffers, counters."""
    backbone = randomise(EfficientViT(tiny, window_sizes=(7, 7, 4)))
    state = dict(backbone.state_dict())
    for key in [k for k in state if k.endswith('attention_biases')]:
        side = round(state[key].shape[1] ** 0.5)
        state[key.replace('biases', 'bias_idxs')] = torch.zeros(side**2, side**2, dtype=torch.long)
    state.update(EfficientViTHead(32, 10).state_dict())
    return state


def save(path, content):
    torch.save(content, path)
    return str(path)


def load(tiny, path, **kwargs):
    model = EfficientViT(tiny, init_cfg={'type': 'Pretrained', 'checkpoint': path, **kwargs})
    model.init_weights()
    return model


@pytest.mark.parametrize(
    'wrapping', ['bare', 'model', 'state_dict', 'module', 'detector', 'prefix']
)
def test_published_files_load_as_they_are(tmp_path, tiny, published, wrapping):
    kwargs = {}
    if wrapping == 'bare':
        content = published
    elif wrapping == 'model':
        content = {'model': published, 'args': argparse.Namespace(lr=1e-3), 'epoch': 299}
    elif wrapping == 'state_dict':
        content = {'state_dict': published}
    elif wrapping == 'module':
        content = {'model': {f'module.{k}': v for k, v in published.items()}}
    elif wrapping == 'detector':
        content = {f'backbone.{k}': v for k, v in published.items() if k[:4] != 'head'}
        content = {'state_dict': {**content, 'neck.conv.weight': torch.ones(1)}}
    else:
        content, kwargs = {f'net.{k}': v for k, v in published.items()}, {'prefix': 'net'}
    model = load(tiny, save(tmp_path / 'file.pth', content), **kwargs)
    for name, tensor in model.state_dict().items():
        if name.endswith('attention_biases') and name.startswith('blocks3'):
            grid = published[name].reshape(1, -1, 4, 4)
            grid = nn.functional.interpolate(grid, (7, 7), mode='bicubic')
            assert torch.equal(tensor, grid.reshape(-1, 49))
        elif not name.endswith('num_batches_tracked'):
            assert torch.equal(tensor, published[name]), name


def test_any_module_takes_the_checked_initializer_by_its_name(tmp_path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    path = save(tmp_path / 'file.pth', {f'net.{k}': v for k, v in other.state_dict().items()})
    initialize(model, {'type': 'CheckedPretrained', 'checkpoint': path, 'prefix': 'net'})
    assert torch.equal(model.weight, other.weight) and torch.equal(model.bias, other.bias)
    with pytest.raises(CheckpointError, match=r'shape: weight is \(2, 3\) in the file'):
        initialize(
            nn.Linear(4, 2), {'type': 'CheckedPretrained', 'checkpoint': path, 'prefix': 'net'}
        )


def test_stages_that_are_not_built_are_left_out(tmp_path, tiny, published):
    path = save(tmp_path / 'file.pth', published)
    model = EfficientViT(
        tiny, out_indices=(0,), init_cfg={'type': 'Pretrained', 'checkpoint': path}
    )
    model.init_weights()
    assert torch.equal(model.patch_embed[0].c.weight, published['patch_embed.0.c.weight'])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('blocks1.0.dw0.m.c.weight'), r'missing: blocks1\.0\.dw0\.m\.c\.weight'),
        (lambda s: s.update(extra=torch.ones(1)), 'unexpected: extra'),
        (lambda s: s.update({'blocks1.9.x': torch.ones(1)}), r'unexpected: blocks1\.9\.x'),
        (
            lambda s: s.update({'patch_embed.0.c.weight': torch.ones(4, 3, 3, 3)}),
            r'shape: patch_embed\.0\.c\.weight is \(4, 3, 3, 3\) in the file',
        ),
        (
            lambda s: s['patch_embed.0.bn.weight'].fill_(float('nan')),
            r'not finite: patch_embed\.0\.bn\.weight',
        ),
        (
            lambda s: s.update({'blocks1.0.mixer.m.attn.attention_biases': torch.ones(2, 17)}),
            r'shape: blocks1\.0\.mixer\.m\.attn\.attention_biases is \(2, 17\)',
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(
    tmp_path, tiny, published, change, message
):
    change(published)
    path = save(tmp_path / 'file.pth', published)
    model = EfficientViT(tiny, init_cfg={'type': 'Pretrained', 'checkpoint': path})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        model.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('missing', [20, 21, 23])
def test_twenty_differences_are_listed_and_the_others_counted(missing):
    wanted = nn.ParameterDict({f'w{i:02}': torch.ones(1) for i in range(missing)})
    with pytest.raises(CheckpointError) as caught:
        ckpt.check_state_dict({}, wanted, 'a.pth')
    lines = str(caught.value).splitlines()
    assert lines[1:21] == [f'  missing: w{i:02}' for i in range(20)]
    assert lines[21:] == ([f'  ... and {missing - 20} more'] if missing > 20 else [])


@pytest.mark.parametrize(
    ('stored', 'wanted', 'fits'),
    [
        (torch.float16, torch.float32, True),
        (torch.bfloat16, torch.float32, True),
        (torch.float64, torch.float64, True),
        (torch.float64, torch.float32, False),
        (torch.int64, torch.float32, False),
        (torch.float32, torch.int64, False),
        (torch.int64, torch.int64, True),
    ],
)
def test_only_types_that_lose_nothing_are_taken(stored, wanted, fits):
    model = nn.Module()
    model.register_buffer('w', torch.ones(2, dtype=wanted))
    state = {'w': torch.ones(2, dtype=stored)}
    if fits:
        assert ckpt.fit_state_dict(state, model)['w'] is state['w']
    else:
        with pytest.raises(CheckpointError, match=f'type: w is {stored} in the file, {wanted} in'):
            ckpt.fit_state_dict(state, model)


def test_a_checkpoint_without_a_name_is_called_checkpoint():
    state, model = {'a.w': torch.ones(1)}, nn.Linear(1, 1)
    timms = {'patch_embed.conv1.conv.weight': torch.ones(1), 'stages.x.blocks.0': torch.ones(1)}
    for call in (
        lambda: ckpt.tensors_of({}),
        lambda: ckpt.extract_state_dict({}),
        lambda: ckpt.extract_state_dict(state, 'net'),
        lambda: ckpt.extract_state_dict(timms),
        lambda: own_names(timms),
        lambda: ckpt.fit_state_dict(state, model),
        lambda: ckpt.check_state_dict(state, model),
        lambda: convert(state),
    ):
        with pytest.raises(CheckpointError, match="^'checkpoint' "):
            call()


@pytest.mark.parametrize('windows', [(7, 7, 4), (7, 7, 7)])
def test_the_log_says_what_was_loaded_and_resized(tmp_path, tiny, published, monkeypatch, windows):
    said = []
    monkeypatch.setattr(
        'evit_mm.checkpoint.fitting.print_log', lambda text, logger: said.append(text)
    )
    path = save(tmp_path / 'file.pth', published)
    model = EfficientViT(tiny, window_sizes=windows)
    ckpt.load_pretrained(model, path)
    number = sum('num_batches_tracked' not in key for key in model.state_dict())
    resized = ', resized 2 attention biases' if windows[2] == 7 else ''  # of the last two blocks
    assert said == [f'loaded {number} entries from {path}{resized}']


@pytest.mark.parametrize(
    ('meta', 'expected'),
    [
        ({'CLASSES': ['a', 'b'], 'config': 'x'}, (('a', 'b'), 'x')),
        ({'dataset_meta': {'classes': ('c',)}, 'CLASSES': ('a',), 'cfg': 'y'}, (('c',), 'y')),
        ({'cfg': 'y', 'config': 'x', 'CLASSES': [1, 'a']}, (None, 'y')),
        ({'cfg': {'a': 1}, 'CLASSES': 'abc'}, (None, None)),
        (None, (None, None)),
    ],
)
def test_class_names_and_config_of_both_mmdets(meta, expected):
    found = ckpt.metadata_of({'meta': meta})
    assert (found.get('dataset_meta', {}).get('classes'), found.get('cfg')) == expected
    assert None not in found.values()


def test_another_arch_is_reported_not_loaded(tmp_path, tiny, published):
    path = save(tmp_path / 'file.pth', published)
    with pytest.raises(CheckpointError, match=r"'.*file\.pth' does not fit EfficientViT"):
        load({**tiny, 'embed_dims': (24, 24, 32)}, path)


@pytest.mark.parametrize('content', [{}, {'model': {}}, {'a': 1}, [1, 2], torch.ones(1)])
def test_a_file_without_weights_is_an_error(tmp_path, tiny, content):
    with pytest.raises(CheckpointError, match='contains no weights'):
        load(tiny, save(tmp_path / 'file.pth', content))


def test_missing_prefix_is_an_error(tmp_path, tiny, published):
    path = save(tmp_path / 'file.pth', published)
    with pytest.raises(CheckpointError, match=r"no entry with the prefix 'net\.'"):
        load(tiny, path, prefix='net')


BOMB = r"bomb\.pth' was refused: .* weights \(GLOBAL (posix|nt)\.mkdir\)\. No code from it was run"


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('nested', [False, True])
def test_a_pickle_bomb_is_refused_and_does_not_go_off(tmp_path, legacy, nested):
    trap = tmp_path / 'went_off'
    content = {'model': {'w': torch.ones(1)}, 'x': Bomb(trap)} if nested else Bomb(trap)
    path = tmp_path / 'bomb.pth'
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=BOMB):
        ckpt.read_checkpoint(path)
    assert not trap.exists()
    if TORCH_HAS_SAFE_TYPES:
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path)  # mmengine's own way is as safe
    assert not trap.exists()
    pickle.loads(pickle.dumps(Bomb(trap)))  # the bomb is real
    assert trap.exists()


@pytest.mark.parametrize('cut', [0, 10, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path, published, cut):
    buffer = io.BytesIO()
    torch.save(published, buffer)
    whole = buffer.getvalue()
    path = tmp_path / 'cut.pth'
    path.write_bytes(whole[: cut if isinstance(cut, int) else int(len(whole) * cut)])
    with pytest.raises(CheckpointError, match=r"cut\.pth' .*download"):
        ckpt.read_checkpoint(path)


@pytest.mark.parametrize('text', ['just text', '<html>404</html>', '{"a": 1}'])
def test_other_files_named_pth_are_refused(tmp_path, text):
    path = tmp_path / 'page.pth'
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r'page\.pth'):
        ckpt.read_checkpoint(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pth' does not exist"):
        ckpt.read_checkpoint(tmp_path / 'none.pth')


@pytest.mark.parametrize('own', [False, True])
def test_what_mmengine_logs_is_read(tmp_path, monkeypatch, own):
    """With torch's unpickler, and with the one before torch 2.6."""
    if own:
        monkeypatch.setattr(reading, 'TORCH_HAS_SAFE_TYPES', False)
    content = {
        'loss': HistoryBuffer([1.0, 2.0], [1, 1]),
        'numbers': [np.float64(3), np.int64(2**40), np.float32(0.5)],
        'seed': 5,
        'dtype': torch.bfloat16,
        'size': torch.Size([2, 3]),
        'args': argparse.Namespace(lr=0.1, names=['a']),
        'weight': torch.nn.Parameter(torch.ones(2).bfloat16()),
        'momentum': {0: {'step': torch.tensor(3.0)}},
    }
    found = ckpt.read_checkpoint(save(tmp_path / 'log.pth', content))
    assert found['loss'].statistics('mean') == 1.5 and found['loss'].data[1].tolist() == [1, 1]
    assert found['loss'].statistics('current') == 2
    for key in ('numbers', 'seed', 'dtype', 'size', 'args', 'momentum'):
        assert found[key] == content[key], key
    assert [type(x) for x in found['numbers']] == [np.float64, np.int64, np.float32]
    assert torch.equal(found['weight'], content['weight'])


@pytest.mark.skipif(not TORCH_HAS_SAFE_TYPES, reason='torch before 2.6 has no such list')
def test_mmengine_types_are_allowed_and_no_more(tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    path = save(tmp_path / 'log.pth', {'message_hub': {'loss': history}, 'n': np.float64(3)})
    assert torch.load(path)['message_hub']['loss'].mean() == 1.5
    found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    assert found == []
    ckpt.read_checkpoint(path)
    assert torch.load(path)['n'] == 3  # reading has not forbidden them again
    argparse_file = save(tmp_path / 'args.pth', {'args': argparse.Namespace(a=1)})
    assert ckpt.read_checkpoint(argparse_file)['args'].a == 1
    with pytest.raises(pickle.UnpicklingError):
        torch.load(argparse_file)  # allowed while an ImageNet file is read, not everywhere


class Getattr:
    def __init__(self, owner, name):
        self.arguments = owner, name

    def __reduce__(self):
        return getattr, self.arguments


@pytest.mark.parametrize(
    ('owner', 'name'), [(HistoryBuffer, '__init__'), (HistoryBuffer, 'data'), (np.ndarray, 'dump')]
)
def test_getattr_is_limited_to_the_statistics_of_a_history(tmp_path, owner, name):
    path = save(tmp_path / 'reach.pth', {'w': torch.ones(1), 'x': Getattr(owner, name)})
    with pytest.raises(CheckpointError, match='was refused'):
        ckpt.read_checkpoint(path)
    if TORCH_HAS_SAFE_TYPES:
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path)


def test_resized_biases_keep_a_smooth_grid():
    ys, xs = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing='ij')
    ramp = (ys + 2 * xs).reshape(1, 16)
    resized = ckpt.resize_attention_biases(ramp, 7).reshape(7, 7)
    centers = (torch.arange(7) + 0.5) * 4 / 7 - 0.5
    expected = centers[:, None] + 2 * centers[None, :]
    inner = slice(2, 5)
    assert relative_error(resized[inner, inner], expected[inner, inner]) < 0.02
    assert ckpt.resize_attention_biases(ramp, 4) is ramp
    with pytest.raises(ValueError, match=r'\(heads, w \* w\)'):
        ckpt.resize_attention_biases(torch.ones(2, 15), 7)


def test_other_init_cfgs_still_work_beside_pretrained(tmp_path, tiny, published):
    path = save(tmp_path / 'file.pth', published)
    cfgs = [
        {'type': 'Constant', 'layer': 'Conv2d', 'val': 0.25},
        {'type': 'Pretrained', 'checkpoint': path},
    ]
    model = EfficientViT(tiny, init_cfg=cfgs)
    model.init_weights()
    assert torch.equal(model.patch_embed[0].c.weight, published['patch_embed.0.c.weight'])
    model = EfficientViT(tiny, init_cfg=cfgs[0])
    model.init_weights()
    assert (model.patch_embed[0].c.weight == 0.25).all()
