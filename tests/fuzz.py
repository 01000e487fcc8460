"""Made-up cases by the thousand: networks, annotation files and checkpoints, and what must hold.

Each property is a function of hypothesis's ``data``; ``run_fuzz`` runs all of them and counts. A
property passes where the result is right, or where the package's one error type says what is wrong.
"""

import atexit
import copy
import io
import json
import math
import resource
import shutil
import tempfile
import zlib
from collections import Counter
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import safetensors.torch
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from evit_mm.checkpoint import extract_state_dict, fit_state_dict, read_checkpoint
from evit_mm.data import check_coco
from evit_mm.data.layout import find_data
from evit_mm.errors import ConfigError, DataError, EvitError
from evit_mm.models import EfficientViT, EfficientViTFPN
from evit_mm.runner.build import config_faults
from tests.conftest import TINY, randomise, relative_error

# what a sum in another order may change, relative
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-3,
    torch.float16: 5e-2,
    torch.bfloat16: 2e-1,
}
PHASES = [Phase.generate, Phase.shrink]
counts = Counter()


def run_fuzz(cases, start=0, only=None):
    """Run each property on its share of the cases.

    Returns the number of cases that passed by property; the first that fails is raised, shrunk.
    """
    counts.clear()
    torch.set_num_threads(1)  # so small a network waits for its threads most of the time
    with memory_limit():
        for name, (prop, share) in PROPERTIES.items():
            if only is None or name == only:
                run_property(prop, max(round(cases * share), 1), start)
    return dict(counts)


@contextmanager
def memory_limit(extra=6 * 2**30):
    """A case that asks for all memory fails with a MemoryError, and not the whole machine."""
    statm = Path('/proc/self/statm')
    if not statm.exists():  # not Linux
        yield
        return
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def run_property(prop, cases, start):
    chosen = settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=PHASES,
        suppress_health_check=list(HealthCheck),
    )

    def counted(data):
        prop(data)
        counts[prop.__name__] += 1

    seed(zlib.crc32(f'{prop.__name__} {start}'.encode()))(chosen(given(st.data())(counted)))()


# -- networks ---------------------------------------------------------------------------------

ODD = st.one_of(
    st.none(),
    st.integers(-3, 9),
    st.floats(-1, 2),
    st.text(max_size=3),
    st.lists(st.integers(0, 4)),
)


def build(cfg):
    """Build as a config does, where a wrong option must end in a ConfigError."""
    with config_faults(Config({'model': cfg})):
        return MODELS.build(copy.deepcopy(cfg))


def draw_backbone(data):
    out_indices = data.draw(st.sampled_from([(0, 1, 2), (0,), (1, 2), (2,)]), 'out_indices')
    return {
        'type': 'EfficientViT',
        'arch': {
            **TINY,
            'depths': data.draw(st.tuples(*[st.integers(1, 2)] * 3), 'depths'),
            'num_heads': data.draw(st.sampled_from([(2, 2, 2), (1, 2, 1), (1, 1, 2)]), 'heads'),
            'kernel_sizes': data.draw(st.sampled_from([(5, 3), (1, 7), (3, 3, 3)]), 'kernels'),
            'key_dims': data.draw(st.tuples(*[st.integers(1, 5)] * 3), 'key_dims'),
        },
        'window_sizes': data.draw(st.none() | st.tuples(*[st.integers(1, 8)] * 3), 'windows'),
        'in_channels': data.draw(st.sampled_from([3, 1, 4]), 'in_channels'),
        'out_indices': out_indices,
        'out_stem': data.draw(st.booleans(), 'out_stem'),
        'frozen_stages': data.draw(st.integers(-1, out_indices[-1] + 1), 'frozen_stages'),
        'norm_eval': data.draw(st.booleans(), 'norm_eval'),
        'drop_path_rate': data.draw(st.sampled_from([0.0, 0.3]), 'drop_path_rate'),
        'with_cp': data.draw(st.booleans(), 'with_cp'),
    }


def draw_dtype(data):
    return data.draw(st.sampled_from(list(TOLERANCE)), 'dtype')


def laid_out(x, layout):
    """Return the same values with another memory layout."""
    if layout == 'channels_last':
        return x.contiguous(memory_format=torch.channels_last)
    if layout == 'strided':  # every other column of a wider image
        wide = torch.zeros(*x.shape[:3], 2 * x.shape[3], dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    return x


def backbone_runs(data):
    """Any size, dtype and layout: the right shapes, and what float64 gives."""
    cfg = draw_backbone(data)
    backbone = randomise(build(cfg))
    dtype = draw_dtype(data)
    height, width = data.draw(st.tuples(st.integers(16, 150), st.integers(16, 150)), 'size')
    batch = data.draw(st.integers(1, 3), 'batch')
    image = torch.rand(batch, cfg['in_channels'], height, width, dtype=torch.float64)
    layout = data.draw(st.sampled_from(['contiguous', 'channels_last', 'strided']), 'layout')
    with torch.no_grad():
        expected = backbone.double().eval()(image)
        found = backbone.to(dtype)(laid_out(image.to(dtype), layout))
    for out, wanted, stride, channels in zip(
        found, expected, backbone.strides, backbone.out_channels, strict=True
    ):
        shape = (batch, channels, math.ceil(height / stride), math.ceil(width / stride))
        assert out.shape == shape and out.dtype == dtype
        assert relative_error(out, wanted) < TOLERANCE[dtype]


def backbone_trains(data):
    """A step in training mode: gradients exactly where nothing is frozen, all of them finite."""
    cfg = draw_backbone(data)
    backbone = randomise(build(cfg)).train()
    height, width = data.draw(st.tuples(st.integers(65, 130), st.integers(65, 130)), 'size')
    outputs = backbone(torch.rand(2, cfg['in_channels'], height, width))
    loss = sum(out.square().mean() for out in outputs)
    assert torch.isfinite(loss)
    trained = [p for p in backbone.parameters() if p.requires_grad]
    if trained:
        loss.backward()
    frozen = {
        id(p)
        for part in backbone.parts()[: cfg['frozen_stages'] + 1]
        for m in part
        for p in m.parameters()
    }
    for parameter in backbone.parameters():
        assert (id(parameter) in frozen) == (not parameter.requires_grad)
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def backbone_options(data):
    """One option is anything at all: the backbone is built and runs, or one error names it."""
    cfg = draw_backbone(data)
    if data.draw(st.booleans(), 'in arch'):
        key = data.draw(
            st.sampled_from([*cfg['arch'], 'embed_dims', 'window_sizes', 'stem']), 'key'
        )
        cfg['arch'][key] = data.draw(ODD | st.tuples(*[st.integers(-1, 40)] * 3), 'value')
    else:
        key = data.draw(st.sampled_from([*cfg][1:]), 'key')
        cfg[key] = data.draw(ODD, 'value')
    try:
        backbone = build(cfg)
    except ConfigError:
        return
    outputs = backbone.eval()(torch.rand(1, backbone.patch_embed[0].c.in_channels, 64, 48))
    assert len(outputs) == len(backbone.strides)


def neck_runs(data):
    """Any sizes that halve by rounding, dtype and layout: shapes, and what float64 gives."""
    channels = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4), 'in_channels')
    levels = data.draw(st.integers(0, 2), 'transposed')
    cfg = {
        'type': 'EfficientViTFPN',
        'in_channels': channels,
        'out_channels': data.draw(st.integers(1, 8), 'out_channels'),
        'num_outs': len(channels) + levels + data.draw(st.integers(0, 3), 'pooled'),
        'num_extra_trans_convs': levels,
    }
    neck = build(cfg)
    dtype = draw_dtype(data)
    height, width = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)), 'size')
    sizes = [(math.ceil(height / 2**i), math.ceil(width / 2**i)) for i in range(len(channels))]
    layout = data.draw(st.sampled_from(['contiguous', 'channels_last', 'strided']), 'layout')
    inputs = [
        torch.rand(2, c, *size, dtype=torch.float64)
        for c, size in zip(channels, sizes, strict=True)
    ]
    with torch.no_grad():
        expected = neck.double()(inputs)
        found = neck.to(dtype)([laid_out(x.to(dtype), layout) for x in inputs])
    finer = [(height << i, width << i) for i in range(levels, 0, -1)]
    shapes = [*finer, *sizes]
    while len(shapes) < cfg['num_outs']:
        shapes.append(tuple(math.ceil(side / 2) for side in shapes[-1]))
    assert [tuple(out.shape[2:]) for out in found] == shapes
    for out, wanted in zip(found, expected, strict=True):
        assert out.dtype == dtype and relative_error(out, wanted) < TOLERANCE[dtype]


def neck_options(data):
    """One option is anything at all: the neck is built, or one error names it."""
    cfg = {
        'type': 'EfficientViTFPN',
        'in_channels': [8, 16],
        'out_channels': 4,
        'num_outs': 4,
        'num_extra_trans_convs': 1,
    }
    key = data.draw(st.sampled_from([*cfg][1:]), 'key')
    cfg[key] = data.draw(ODD, 'value')
    with suppress(ConfigError):
        assert isinstance(build(cfg), EfficientViTFPN)


# -- annotations ------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-3, 300)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(['a.png', '../a.png', 'a\0.png', '\ud800.png', 'x' * 400, '/', '', 'disc']),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


@cache
def folder():
    """Return a folder for the files of all cases, with the images of the valid data set."""
    root = Path(tempfile.mkdtemp(prefix='evit-fuzz-'))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    (root / 'annotations').mkdir()
    for split in ('train', 'val'):
        (root / split).mkdir()
        for name in ('a.png', 'b.png'):
            cv2.imwrite(str(root / split / name), np.zeros((40, 60, 3), np.uint8))
    return root


def valid_coco():
    polygon = {'iscrowd': 0, 'segmentation': [[2, 2, 20, 2, 20, 20]]}
    runs = {'iscrowd': 0, 'segmentation': {'size': [40, 60], 'counts': [400, 20, 1980]}}
    text = {'iscrowd': 1, 'segmentation': {'size': [40, 60], 'counts': 'e<d0d0000000000000000Sc1'}}
    return {
        'images': [
            {'id': 1, 'file_name': 'a.png', 'width': 60, 'height': 40},
            {'id': 2, 'file_name': 'b.png', 'width': 60, 'height': 40},
        ],
        'annotations': [
            {
                'id': 1,
                'image_id': 1,
                'category_id': 3,
                'bbox': [2, 2, 18, 18],
                'area': 324,
                **polygon,
            },
            {'id': 2, 'image_id': 2, 'category_id': 5, 'bbox': [9, 9, 30, 20], 'area': 600, **runs},
            {'id': 3, 'image_id': 2, 'category_id': 5, 'bbox': [9, 9, 9, 20], 'area': 20, **text},
        ],
        'categories': [{'id': 3, 'name': 'disc'}, {'id': 5, 'name': 'box'}],
    }


def places(node, path=()):
    """Yield the path of every value in a JSON document."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def mutated(data, document):
    """Return the document with one to three values replaced, removed or doubled."""
    document = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 3), 'changes')):
        known = list(places(document))
        if not known:
            break
        *parents, key = data.draw(st.sampled_from(known), 'place')
        owner = document
        for parent in parents:
            owner = owner[parent]
        action = data.draw(st.sampled_from(['replace', 'replace', 'remove', 'double']), 'action')
        if action == 'replace':
            owner[key] = data.draw(VALUES, 'value')
        elif action == 'remove':
            del owner[key]
        elif isinstance(owner, list):
            owner.append(copy.deepcopy(owner[key]))
        else:
            owner[f'{key} ' * data.draw(st.integers(0, 1), 'renamed')] = owner.pop(key)
    return document


def annotations_are_read(data):
    """A mutated file is faulted in sentences, or mmdet really can train on it."""
    text = json.dumps(mutated(data, valid_coco()))
    if data.draw(st.integers(0, 4), 'bytes') == 0:
        text = mangled(data, text.encode())
    else:
        text = text.encode()
    path = folder() / 'annotations' / 'instances_val.json'
    path.write_bytes(text)
    with_mask = data.draw(st.booleans(), 'with_mask')
    classes = ('disc', 'box')
    faults, notes = check_coco(
        path, folder() / 'val', classes, data.draw(st.booleans(), 'training'), with_mask
    )
    assert all(isinstance(sentence, str) and str(path) in sentence for sentence in faults + notes)
    if not faults:
        every_sample_loads(path, classes, with_mask)


def every_sample_loads(path, classes, with_mask):
    """What the check lets pass, mmdet loads: every image, box and mask of it."""
    init_default_scope('mmdet')
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        dataset = CocoDataset(
            ann_file=str(path),
            data_prefix={'img': str(path.parents[1] / 'val')},
            metainfo={'classes': classes},
            test_mode=True,
            pipeline=[
                {'type': 'LoadImageFromFile'},
                {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': with_mask},
                {'type': 'Resize', 'scale': (30, 30), 'keep_ratio': True},
                {'type': 'PackDetInputs'},
            ],
        )
        for index in range(len(dataset)):
            sample = dataset[index]
            assert sample['data_samples'].gt_instances.bboxes.tensor.isfinite().all()


def splits_are_found(data):
    """A mutated training file: its part is described, or a DataError says why not."""
    (folder() / 'annotations' / 'instances_val.json').write_text(json.dumps(valid_coco()))
    text = json.dumps(mutated(data, valid_coco()))
    (folder() / 'annotations' / 'instances_train.json').write_text(text)
    with suppress(DataError):
        train = find_data(folder()).train
        assert train.num_images > 0 and train.classes


# -- checkpoints ------------------------------------------------------------------------------


@cache
def network():
    return randomise(EfficientViT(arch=TINY))


@cache
def valid_files():
    """Return the bytes of one set of weights, in each format that is read."""
    state = network().state_dict()
    meta = {'meta': {'epoch': 1, 'dataset_meta': {'classes': ('disc',)}}, 'state_dict': state}
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save(meta, zipped)
    torch.save(meta, legacy, _use_new_zipfile_serialization=False)
    plain = {name: tensor.contiguous() for name, tensor in state.items()}
    return {
        'zip.pth': zipped.getvalue(),
        'legacy.pth': legacy.getvalue(),
        'plain.safetensors': safetensors.torch.save(plain),
    }


def mangled(data, content):
    """Return the bytes with one to four stretches changed, cut out, doubled or cut off."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4), 'changes')):
        if not content:
            break
        # headers are short and decide most, so half of the changes go there
        last = data.draw(st.sampled_from([300, 5000, len(content)]), 'reach')
        start = data.draw(st.integers(0, min(last, len(content)) - 1), 'start')
        if data.draw(st.integers(0, 3), 'from the end') == 0:
            start = len(content) - 1 - start
        end = start + data.draw(st.sampled_from([1, 1, 2, 8, 100]), 'length')
        action = data.draw(
            st.sampled_from(['put', 'put', 'flip', 'cut', 'double', 'end']), 'action'
        )
        if action == 'put':
            content[start:end] = data.draw(st.binary(min_size=1, max_size=end - start), 'new')
        elif action == 'flip':
            content[start] ^= 1 << data.draw(st.integers(0, 7), 'bit')
        elif action == 'cut':
            del content[start:end]
        elif action == 'double':
            content[start:start] = content[start:end]
        else:
            del content[start:]
    return bytes(content)


def checkpoints_are_read(data):
    """Mutated bytes: weights that fit the network and are finite, or an EvitError."""
    name = data.draw(st.sampled_from(sorted(valid_files())), 'format')
    path = folder() / name
    path.write_bytes(mangled(data, valid_files()[name]))
    with suppress(EvitError):
        state = extract_state_dict(read_checkpoint(path), name=name)
        fitted = fit_state_dict(state, network(), name)
        assert all(tensor.isfinite().all() for tensor in fitted.values())
        copy.deepcopy(network()).load_state_dict(fitted, strict=False)


# each property's share of the cases: reading costs less than computing, and can fail in more ways
PROPERTIES = {
    prop.__name__: (prop, share)
    for prop, share in (
        (backbone_runs, 0.1),
        (backbone_trains, 0.05),
        (backbone_options, 0.15),
        (neck_runs, 0.1),
        (neck_options, 0.1),
        (annotations_are_read, 0.2),
        (splits_are_found, 0.1),
        (checkpoints_are_read, 0.2),
    )
}
