"""How mmcv finds the operators, and what happens to those that are missing."""

import importlib
import importlib.util
import os
import subprocess
import sys

import pytest
import torch

import evit_mm.ops
from evit_mm.errors import EvitError
from evit_mm.ops import MissingOperatorError, extension
from evit_mm.ops.operators import OPERATORS

from .cases import numbers

COMPILED = extension._is_compiled()
HALF = (torch.float16, torch.bfloat16)
provided = pytest.mark.skipif(
    evit_mm.ops.PROVIDED == 'compiled', reason="mmcv's compiled operators are used"
)


def test_mmcv_and_mmengine_find_the_operators():
    import mmcv.ops
    from mmengine.utils.dl_utils import mmcv_full_available

    assert importlib.util.find_spec('mmcv._ext') is not None
    assert mmcv_full_available()
    kept = mmcv.ops.nms(torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8]]), torch.tensor([0.5, 0.9]), 0.5)
    assert kept[1].tolist() == [1]
    if not COMPILED:
        assert evit_mm.ops.PROVIDED == 'torchvision'
        assert 'evit_mm' in mmcv.ops.get_compiler_version()


def test_operators_are_found_whatever_is_imported_before():
    code = (
        'import mmcv, mmdet.utils, mmengine.runner, evit_mm.ops, mmdet.models, torch; '
        'from mmcv.ops import batched_nms; '
        "options = {'type': 'nms', 'iou_threshold': 0.5}; "
        'batched_nms(torch.rand(3, 4), torch.rand(3), torch.arange(3), options)'
    )
    environment = {**os.environ, 'EVIT_MM_OPS': 'torchvision'}
    done = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # one line says which operators are used
    assert (done.stdout + done.stderr).count('torchvision operators of evit_mm.ops') == 1


@pytest.fixture
def fresh(monkeypatch):
    """mmcv as it is before it has looked for its operators."""
    monkeypatch.delenv('EVIT_MM_OPS', raising=False)
    others = [finder for finder in sys.meta_path if not isinstance(finder, extension._Finder)]
    monkeypatch.setattr(sys, 'meta_path', others)
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    return monkeypatch


def test_a_compiled_extension_is_a_file_beside_mmcvs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    (tmp_path / '_ext.py').touch()  # of another package
    assert not extension._is_compiled()  # without mmcv
    (tmp_path / 'mmcv.py').touch()
    importlib.invalidate_caches()
    assert not extension._is_compiled()  # of a module without a folder
    for file, compiled in (('__init__.py', False), ('_ext.py', True)):
        (tmp_path / 'mmcv').mkdir(exist_ok=True)
        (tmp_path / 'mmcv' / file).write_text('raise ImportError')  # it is only looked for
        importlib.invalidate_caches()
        assert extension._is_compiled() is compiled


@pytest.mark.parametrize('compiled', [False, True])
def test_operators_are_provided_where_mmcv_has_none(fresh, compiled):
    fresh.setattr(extension, '_is_compiled', lambda: compiled)
    before = list(sys.meta_path)
    assert extension.provide() == ('compiled' if compiled else 'torchvision')
    assert (sys.meta_path == before) is compiled
    assert extension.provide() == ('compiled' if compiled else 'torchvision')
    assert len(sys.meta_path) == len(before) + (not compiled)  # once


def test_the_switch(fresh):
    fresh.setenv('EVIT_MM_OPS', 'compiled')
    fresh.setattr(extension, '_is_compiled', lambda: False)
    with pytest.raises(EvitError, match='this mmcv has no compiled operators'):
        extension.provide()
    fresh.setattr(extension, '_is_compiled', lambda: True)
    assert extension.provide() == 'compiled'
    fresh.setenv('EVIT_MM_OPS', 'torchvision')
    fresh.setitem(sys.modules, 'mmcv._ext', sys)
    with pytest.raises(EvitError, match='import evit_mm before mmcv.ops'):
        extension.provide()
    fresh.delitem(sys.modules, 'mmcv._ext')
    assert extension.provide() == 'torchvision'
    assert importlib.import_module('mmcv._ext').nms is OPERATORS['nms']


@provided
def test_the_module_has_what_mmcv_reports_and_nothing_private():
    import mmcv._ext
    from mmcv.ops import get_compiler_version, get_compiling_cuda_version

    assert get_compiler_version() == 'none, operators of evit_mm.ops'
    assert get_compiling_cuda_version() == (torch.version.cuda or 'not available')
    assert mmcv._ext.__spec__.origin == 'evit_mm.ops'
    assert callable(mmcv._ext.any_other)
    with pytest.raises(AttributeError, match="module 'mmcv._ext' has no attribute '__path__'"):
        mmcv._ext.__path__  # noqa: B018
    assert extension._Finder().find_spec('mmcv.ops') is None


@pytest.mark.parametrize(
    ('compiled', 'choice', 'first', 'level', 'said'),
    [
        (False, None, True, 'WARNING', 'torchvision operators of evit_mm.ops'),
        (True, 'torchvision', True, 'WARNING', 'of its compiled operators (EVIT_MM_OPS)'),
        (True, None, True, 'INFO', 'mmcv uses its compiled operators'),
        (False, None, False, None, ''),
    ],
)
def test_one_process_says_which_operators_are_used(
    fresh, caplog, compiled, choice, first, level, said
):
    fresh.setattr(extension, '_is_compiled', lambda: compiled)
    fresh.setattr(extension, 'is_first_process', lambda: first)
    if choice:
        fresh.setenv('EVIT_MM_OPS', choice)
    caplog.set_level('INFO', 'evit_mm')
    extension.provide()
    assert [record.levelname for record in caplog.records] == ([level] if level else [])
    assert all(record.getMessage().endswith(said) for record in caplog.records)


@provided
def test_a_missing_operator_is_named_when_it_is_called():
    from mmcv.ops import PSAMask

    mask = PSAMask('collect', (3, 3))
    with pytest.raises(MissingOperatorError, match="'psamask_forward'; install mmcv with compiled"):
        mask(torch.rand(1, 9, 4, 4))


@provided
@pytest.mark.parametrize('dtype', HALF)
def test_half_precision_keeps_its_type_and_is_computed_in_float32(dtype):
    from mmcv.ops import carafe, deform_conv2d, nms, roi_align, sigmoid_focal_loss

    boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60]], dtype=dtype)
    scores = torch.tensor([0.5, 0.75, 0.25], dtype=dtype)
    dets, kept = nms(boxes, scores, 0.5)
    assert dets.dtype == dtype and kept.tolist() == [1, 2]
    x = numbers((1, 4, 8, 8), 0)
    rois = torch.tensor([[0.0, 1, 1, 6, 6]])
    offset, weight = numbers((1, 18, 8, 8), 1, -1, 1), numbers((4, 4, 3, 3), 2)
    masks = numbers((1, 9, 16, 16), 3)
    calls = {
        'roi_align': (lambda x: roi_align(x, rois.to(x), 2), (x,)),
        'deform_conv2d': (lambda x, o, w: deform_conv2d(x, o, w, 1, 1), (x, offset, weight)),
        'carafe': (lambda x, m: carafe(x, m, 3, 1, 2), (x, masks)),
        'focal': (
            lambda x: sigmoid_focal_loss(x, torch.tensor([0, 1]), 2.0, 0.25, None, 'none'),
            (numbers((2, 3), 4),),
        ),
    }
    for name, (call, inputs) in calls.items():
        low = [v.to(dtype).requires_grad_() for v in inputs]
        high = [v.detach().float().requires_grad_() for v in low]
        found, expected = call(*low), call(*high)
        assert found.dtype == dtype, name
        torch.testing.assert_close(found, expected.to(dtype), msg=lambda m, name=name: name + m)
        for a, b in zip(
            torch.autograd.grad(found.sum(), low),
            torch.autograd.grad(expected.sum(), high),
            strict=True,
        ):
            assert a.dtype == dtype, name
            torch.testing.assert_close(a, b.to(dtype))


@provided
def test_equal_results_under_autocast():
    from mmcv.ops import carafe

    x, masks = numbers((1, 4, 8, 8), 0), numbers((1, 9, 16, 16), 3)
    with torch.autocast('cpu', torch.bfloat16):
        found = carafe(x, masks, 3, 1, 2)
    torch.testing.assert_close(found, carafe(x, masks, 3, 1, 2), rtol=0, atol=0)


@provided
def test_layers_that_share_a_gradient_have_their_own_weight_gradients():
    """Those whose results are added, of which the first one's weight is frozen."""
    from mmcv.ops import DeformConv2d

    frozen, layer = (DeformConv2d(3, 4, 3, padding=1) for _ in range(2))
    frozen.weight.requires_grad_(False)
    x, offset = numbers((2, 3, 6, 6), 0), numbers((2, 18, 6, 6), 1, -1, 1)
    factors = numbers((1, 4, 6, 6), 2)
    (layer(x[:1], offset[:1]) * factors).sum().backward()
    alone = layer.weight.grad
    layer.weight.grad = None
    leaf = x[1:].clone().requires_grad_()
    (layer(x[:1], offset[:1]) + frozen(leaf, offset[1:])).backward(factors)
    torch.testing.assert_close(layer.weight.grad, alone)


@provided
def test_soft_nms_of_equal_scores_and_of_what_is_no_number():
    from mmcv.ops import soft_nms

    # the first two become equal when the third is chosen; the order is that of compiled mmcv
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 20]])
    scores = torch.tensor([0.8, 0.4, 0.9])
    assert soft_nms(boxes, scores, 0.3, 0.5, 1e-3, 'linear')[1].tolist() == [2, 1, 0]
    corners = numbers((10, 2), 0, 0, 20)
    boxes, scores = torch.cat((corners, corners + 9), 1), numbers((10,), 1)
    torn = boxes.clone()
    torn[4, 2] = float('nan')
    for method, sigma, these in (
        ('linear', 0.5, torn),
        ('naive', 0.5, torn),
        ('gaussian', 0, boxes),
    ):
        kept = soft_nms(these, scores, 0.3, sigma, 1e-3, method)[1].tolist()
        assert len(set(kept)) == len(kept) and kept[0] == scores.argmax()
    scores[2] = float('nan')
    kept = soft_nms(boxes, scores, 0.3, 0.5, 1e-3, 'linear')[1].tolist()
    assert len(set(kept)) == len(kept) > 1 and kept[0] == scores.nan_to_num(0).argmax()


@provided
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('count', [1, 32, 33, 100])
def test_soft_nms_ends_however_many_scores_are_equal(count, method):
    from mmcv.ops import soft_nms

    corners = numbers((count, 2), 0, 0, 30)
    boxes = torch.cat((corners, corners + 9), 1)
    for levels in (1, 2, 50):
        scores = (numbers((count,), 1) * levels).ceil() / levels
        for minimum in (0.0, 0.05, 2.0):
            kept = soft_nms(boxes, scores, 0.3, 0.5, minimum, method)[1].tolist()
            assert kept and len(set(kept)) == len(kept)


@provided
def test_types_and_shapes_that_compiled_operators_take_too():
    from mmcv.ops import RoIAlign, nms, soft_nms

    corners = numbers((10, 2), 0, 0, 20)
    boxes, scores = torch.cat((corners, corners + 9), 1), numbers((10,), 1)
    kept = nms(boxes, scores, 0.3)[1]
    assert torch.equal(nms(boxes, scores.double(), 0.3)[1], kept)
    for function in (nms, soft_nms):
        assert torch.equal(
            function(boxes, scores[:, None], 0.3)[1], function(boxes, scores, 0.3)[1]
        )
    x, rois = numbers((1, 2, 9, 9), 2), torch.tensor([[0.0, 1, 1, 6, 6]])
    align = RoIAlign(3, 0.5, 2)
    torch.testing.assert_close(align(x, rois.double()), align(x, rois))


@provided
def test_roi_align_of_regions_that_are_not_there():
    from mmcv.ops import RoIAlign, RoIPool

    x = numbers((2, 3, 9, 9), 0)
    for pool in (RoIAlign(3, 0.5, 2), RoIAlign(3, 0.5, 0, 'max'), RoIPool(3, 0.5)):
        for region, fault in (
            ([0, 1, 1, float('nan'), 6], 'region 1, .*nan.* is not finite'),
            ([2, 1, 1, 6, 6], 'index outside the batch of 2 images'),
            ([-1, 1, 1, 6, 6], 'index outside the batch of 2 images'),
        ):
            with pytest.raises(EvitError, match=fault):
                pool(x, torch.tensor([[0, 1, 1, 6, 6], region]))
        assert pool(x[:, :0], torch.tensor([[0.0, 1, 1, 6, 6]])).shape == (1, 0, 3, 3)


@provided
def test_no_gradient_goes_below_the_least_maximum_of_mmcv():
    from mmcv.ops import RoIAlign

    x = torch.full((1, 1, 9, 9), -2e4).requires_grad_()
    found = RoIAlign(3, 0.5, 2, 'max')(x, torch.tensor([[0.0, 1, 1, 6, 6]]))
    found.sum().backward()
    assert (found == -1e4).all() and not x.grad.any()


@pytest.mark.skipif(not COMPILED, reason='this mmcv has no compiled operators to compare with')
def test_indices_equal_those_of_the_compiled_operators_with_and_without_equal_scores():
    from importlib.machinery import ExtensionFileLoader, PathFinder

    import mmcv

    found = PathFinder.find_spec('mmcv._ext', list(mmcv.__path__))
    assert isinstance(found.loader, ExtensionFileLoader)
    compiled = importlib.util.module_from_spec(found)
    found.loader.exec_module(compiled)
    ours = OPERATORS
    for seed in range(20):
        corners = numbers((300, 2), seed, 0, 30).round()
        boxes = torch.cat((corners, corners + numbers((300, 2), seed + 50, 1, 12).round()), 1)
        levels, threshold = ((4, 0.3), (1e6, 0.5))[seed % 2]
        scores = (numbers((300,), seed + 100) * levels).round() / levels
        for offset in (0, 1):
            a, b = (f(boxes, scores, threshold, offset) for f in (compiled.nms, ours['nms']))
            assert a.tolist() == b.tolist()
            for method in range(3):
                found = []
                for f in (compiled.softnms, ours['softnms']):
                    dets = torch.zeros(300, 5)
                    kept = f(boxes, scores, dets, threshold, 0.5, 0.05, method, offset)
                    found.append((kept.tolist(), dets[: len(kept)]))
                assert found[0][0] == found[1][0], (seed, offset, method)
                torch.testing.assert_close(found[0][1], found[1][1])
        dets = torch.cat((boxes, scores[:, None]), 1)
        assert compiled.nms_match(dets, 0.5) == ours['nms_match'](dets, 0.5)
