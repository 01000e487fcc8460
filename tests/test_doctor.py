"""What is in order is green; each thing that is broken becomes a line of its own with its mend."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from evit_mm import doctor
from evit_mm.data import make_shapes
from evit_mm.doctor import data, findings, stack
from evit_mm.doctor.anchors import best_ious, resized_boxes
from evit_mm.doctor.findings import Finding, guarded
from evit_mm.errors import DataError

from .conftest import ROOT
from .test_datasets import edit
from .test_engine import write_config

PROBED = ('import torch', 'import mmcv', 'import mmcv.ops', 'mmcv.nms cpu', 'gpu')


def probe_printing(tmp_path, lines, end=''):
    """Return a command in the place of the probe, which prints lines and then ends somehow."""
    script = tmp_path / 'probe.py'
    text = '\n'.join(json.dumps(line) for line in lines)
    script.write_text(f'import os, sys\nprint({text!r}, flush=True)\n{end}\n')
    return sys.executable, str(script)


def steps(names, **errors):
    for name in names:
        yield {'step': name}
        yield {'step': name, 'error': errors.get(name.split()[-1], ''), 'note': ''}


def only(found, level):
    return [finding for finding in found if finding.level == level]


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('doctor') / 'set', 30, 12, (96, 96), quiet=True)


@pytest.fixture
def copy(shapes, tmp_path):
    return shutil.copytree(shapes, tmp_path / 'set')


def examine(folder, root, **changes):
    """Return what the doctor says of a small config on a data set."""
    config = write_config(folder, root, '')
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(changes)
    cfg.dump(folder / 'changed.py')
    return list(data.check_config(str(folder / 'changed.py'), None, False))


# -- the stack --------------------------------------------------------------------------------


def test_the_stack_of_the_tests_is_in_order():
    found = list(stack.check_operators())
    assert not only(found, 'red')
    (operators,) = [f for f in found if f.topic == 'operators']
    names = ('torchvision.nms', 'mmcv.nms', 'mmcv.roi_align', 'mmcv.deform_conv2d')
    assert set(operators.details['operators']) >= {f'{name} cpu' for name in names}


@pytest.mark.parametrize(
    ('name', 'module', 'attribute'),
    [
        ('torchvision_nms', 'torchvision.ops', 'nms'),
        ('nms', 'mmcv.ops', 'nms'),
        ('roi_align', 'mmcv.ops', 'roi_align'),
        ('deform_conv', 'mmcv.ops', 'deform_conv2d'),
    ],
)
def test_an_operator_with_wrong_results_is_found(monkeypatch, name, module, attribute):
    from evit_mm.doctor import probe

    getattr(probe, name)(torch, 'cpu')
    function = getattr(sys.modules[module], attribute)

    def wrong(*args, **kwargs):
        out = function(*args, **kwargs)
        if isinstance(out, tuple):  # mmcv's nms: detections, indices
            return out[0], out[1].flip(0)
        return out.flip(0) if attribute == 'nms' else out * 1.01

    monkeypatch.setattr(f'{module}.{attribute}', wrong)
    with pytest.raises(ArithmeticError, match='wrong'):
        getattr(probe, name)(torch, 'cpu')


def test_pins_are_read_from_the_constraints():
    pins = stack.tested_versions()
    assert (pins['mmcv-lite'], pins['mmdet']) == ('2.1.0', '3.3.0')
    assert set(stack.NEEDED) | set(stack.USEFUL) <= set(pins)
    expected = '2.4.6' if sys.version_info >= (3, 11) else '2.2.6'
    assert pins['numpy'] == expected


def installed(monkeypatch, **versions):
    """Let exactly these packages be installed, on top of the tested stack."""
    packages = {**stack.tested_versions(), **versions}
    packages = {name.replace('_', '-'): version for name, version in packages.items()}

    def version(name):
        if packages.get(name) is None:
            raise stack.metadata.PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr(stack.metadata, 'version', version)


@pytest.mark.parametrize(
    ('versions', 'level', 'message', 'mend'),
    [
        ({'mmcv_lite': None}, 'red', 'mmcv-lite is not installed', 'pip install mmcv-lite==2.1.0'),
        ({'mmdet': None}, 'red', 'mmdet is not installed', 'pip install mmdet==3.3.0'),
        ({'openvino': None}, 'yellow', 'openvino is not installed', 'pip install openvino=='),
        ({'mmdet': '3.2.0'}, 'yellow', 'mmdet is 3.2.0, the pinned version is 3.3.0', 'nothing'),
        ({'setuptools': '82.0.1'}, 'red', 'has no pkg_resources', "pip install 'setuptools<82'"),
    ],
)
def test_versions_that_differ_are_named(monkeypatch, versions, level, message, mend):
    installed(monkeypatch, **versions)
    found = only(stack.check_versions(), level)
    (finding,) = [f for f in found if message in f.text]
    assert mend in finding.mend


@pytest.mark.parametrize(
    'other',
    [
        {'torch': f'{stack.tested_versions()["torch"]}+cpu'},
        {'mmcv_lite': None, 'mmcv': '2.1.0'},
        {'opencv_python': None, 'opencv_python_headless': '5.0.0.93'},
    ],
)
def test_tested_versions_are_green(monkeypatch, other):
    installed(monkeypatch, **other)
    assert {finding.level for finding in stack.check_versions()} == {'green'}


def test_faults_of_the_environment_are_red(tmp_path):
    (finding,) = stack.check_environment()
    assert finding.level == 'green'
    script = tmp_path / 'environment.py'
    command = (sys.executable, str(script))
    script.write_text("print('this is missing; pip install it'); exit(1)")
    (finding,) = stack.check_environment(command)
    assert (finding.level, finding.text) == ('red', 'this is missing')
    assert finding.mend == 'pip install it'
    script.write_text('import os; os.kill(os.getpid(), 11)')
    (finding,) = stack.check_environment(command)
    assert finding.level == 'red' and 'ended python (-11)' in finding.text


def test_a_package_that_does_not_load_is_red(tmp_path):
    error = 'ImportError: mmcv/_ext.so: undefined symbol: _ZN3c10'
    command = probe_printing(tmp_path, steps(PROBED, **{'mmcv.ops': error}))
    (finding,) = only(stack.check_operators(command), 'red')
    assert finding.text == f'import mmcv.ops: {error}'


def test_mmpretrain_alone_may_be_missing(tmp_path):
    names = ('import torch', 'import mmpretrain')
    command = probe_printing(tmp_path, steps(names, mmpretrain='ModuleNotFoundError: no'))
    assert [f.text for f in only(stack.check_operators(command), 'yellow')] == [
        'import mmpretrain: ModuleNotFoundError: no'
    ]


@pytest.mark.parametrize('end', ['os.kill(os.getpid(), 11)', 'sys.exit(3)'])
def test_a_step_that_ends_python_is_named(tmp_path, end):
    lines = [*steps(PROBED[:3]), {'step': 'mmcv.nms cpu'}]
    (finding,) = only(stack.check_operators(probe_printing(tmp_path, lines, end)), 'red')
    status = -11 if 'kill' in end else 3
    assert finding.text == f'mmcv.nms cpu: ended python ({status})'


def test_a_step_that_hangs_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(stack, 'PROBE_SECONDS', 3)
    lines = [*steps(PROBED[:2]), {'step': 'import mmcv.ops'}]
    command = probe_printing(tmp_path, lines, 'import time; time.sleep(60)')
    (finding,) = only(stack.check_operators(command), 'red')
    assert finding.text == 'import mmcv.ops: took over 3 s'


def test_a_package_that_cannot_be_imported_is_red():
    def broken():
        raise ImportError('libtorch.so: cannot open shared object file')

    (finding,) = stack.check_package(broken)
    assert finding.level == 'red' and 'libtorch.so' in finding.text


def test_space_is_weighed_against_what_a_run_takes(tmp_path, monkeypatch):
    usage = type('Usage', (), {'free': 100})
    monkeypatch.setattr(stack.shutil, 'disk_usage', lambda folder: usage)
    for needed, level in ((101, 'red'), (60, 'yellow'), (50, 'green')):
        (finding,) = stack.check_disk(tmp_path / 'not' / 'yet', needed)
        assert (finding.level, finding.details['needed']) == (level, needed)
        assert bool(finding.mend) == (level != 'green')
    for needed, level in ((100, 'yellow'), (99, 'green'), (None, 'yellow')):
        (finding,) = stack.check_shared_memory(needed, tmp_path)
        assert finding.level == level
    (finding,) = stack.check_shared_memory(1, tmp_path / 'absent')
    assert 'not checked' in finding.text


def test_what_a_run_takes_follows_from_its_config(shapes, tmp_path):
    cfg = Config.fromfile(write_config(tmp_path, shapes, ''))
    model = torch.nn.Linear(9, 10)  # 100 parameters, 12 bytes each with AdamW's moments
    cfg.default_hooks = {'checkpoint': {'interval': 2, 'max_keep_ckpts': -1}}
    cfg.train_cfg.max_epochs = 10
    assert data._checkpoint_bytes(cfg, model) == (5 + 1) * 1200
    cfg.default_hooks.checkpoint.update(max_keep_ckpts=2, save_best='coco/bbox_mAP')
    assert data._checkpoint_bytes(cfg, model) == (2 + 1 + 1) * 1200
    cfg.train_dataloader.update(num_workers=3, batch_size=4)
    cfg.train_dataloader.dataset.pipeline[2].scale = (50, 40)
    assert data._batch_bytes(cfg) == 3 * 2 * 4 * 3 * 2000
    cfg.train_dataloader.num_workers = 0
    assert data._batch_bytes(cfg) is None


# -- data and checkpoints ---------------------------------------------------------------------


def test_a_good_config_and_its_histogram(shapes, tmp_path):
    found = examine(tmp_path, shapes)
    assert not only(found, 'red')
    (train,) = [f for f in found if f.topic == 'data train']
    coco = json.loads((shapes / 'annotations' / 'instances_train.json').read_text())
    names = {c['id']: c['name'] for c in coco['categories']}
    for name in names.values():
        own = [a for a in coco['annotations'] if names[a['category_id']] == name]
        assert train.details['objects'][name] == sum(not a['iscrowd'] for a in own)
    assert train.details['images'] == 30


def test_faults_and_notes_of_the_data(copy, tmp_path):
    edit(copy, lambda c: c['annotations'][0].update(bbox=[5, 5, 0, 9]), 'train')
    edit(copy, lambda c: c['annotations'][1].update(bbox=[80, 5, 40, 9]), 'train')
    found = examine(tmp_path, copy)
    assert not only(found, 'red')
    texts = [finding.text for finding in only(found, 'yellow')]
    assert any('1 boxes have no area' in text for text in texts)
    assert any('1 boxes reach over the edge' in text for text in texts)
    edit(copy, lambda c: c['annotations'][2].update(category_id=77), 'train')
    red = only(examine(tmp_path, copy), 'red')
    assert len(red) == 1 and 'category_id that no entry' in red[0].text
    assert red[0].mend == 'mend or remove them'


def test_a_class_without_objects_is_yellow(copy, tmp_path):
    def drop(coco):
        coco['annotations'] = [a for a in coco['annotations'] if a['category_id'] != 2]

    edit(copy, drop, 'train')
    (finding,) = [f for f in only(examine(tmp_path, copy), 'yellow') if f.topic == 'data train']
    assert finding.text.endswith('without any object: square')


def test_all_images_are_decoded_when_asked(copy, tmp_path):
    config = write_config(tmp_path, copy, '')
    images = sorted((copy / 'train').iterdir())
    images[1].write_bytes(b'no picture')  # not among those that a sample opens
    assert not only(data.check_config(str(config), None, False), 'red')
    (finding,) = only(data.check_config(str(config), None, True), 'red')
    assert '1 of 30 images opened in' in finding.text and images[1].name in finding.text


def test_a_config_that_is_not_there_is_one_red_line():
    found = list(guarded('config', lambda: data.check_config('nowhere.py', None, False)))
    assert [f.level for f in found] == ['red'] and 'nowhere.py' in found[0].text


def test_a_checkpoint_is_fitted(shapes, tmp_path):
    config = write_config(tmp_path, shapes, '')
    init_default_scope('mmdet')
    model = MODELS.build(Config.fromfile(config).model)
    path = tmp_path / 'model.pth'
    torch.save({'state_dict': model.state_dict()}, path)
    found = list(data.check_config(str(config), str(path), False))
    assert found[-1].topic == 'checkpoint' and found[-1].level == 'green'
    state = {k: v for k, v in model.state_dict().items() if 'bbox_head' not in k}
    torch.save({'state_dict': state}, path)
    (finding,) = only(data.check_config(str(config), str(path), False), 'red')
    assert finding.topic == 'checkpoint' and 'missing: bbox_head' in finding.mend
    path.write_text('<html>not found</html>')
    (finding,) = only(data.check_config(str(config), str(path), False), 'red')
    assert str(path) in finding.text


# -- anchors ----------------------------------------------------------------------------------

GENERATORS = [
    {
        'type': 'AnchorGenerator',
        'octave_base_scale': 4,
        'scales_per_octave': 3,
        'ratios': [0.5, 1.0, 2.0],
        'strides': [8, 16, 32, 64, 128],
    },
    {
        'type': 'AnchorGenerator',
        'scales': [2, 5],
        'ratios': [0.3, 1.0],
        'strides': [16, 32],
        'center_offset': 0.5,
    },
]


@pytest.mark.parametrize('cfg', GENERATORS)
@pytest.mark.parametrize('divisor', [1, 32])
def test_best_ious_are_those_of_mmdets_grids(cfg, divisor):
    rng = np.random.default_rng(0)
    width, height = 213, 150
    corners = rng.uniform(-5, 140, (300, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 150, (300, 2)) ** 1.1], 1)
    boxes = np.clip(boxes, 0, [width, height] * 2)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).min(1) > 0]
    generator = TASK_UTILS.build(cfg)
    padded = [-(-side // divisor) * divisor for side in (height, width)]
    sizes = [[-(-side // stride[0]) for side in padded] for stride in generator.strides]
    grid = torch.cat(generator.grid_priors(sizes, device='cpu'))
    overlaps = TASK_UTILS.build({'type': 'BboxOverlaps2D'})
    expected = overlaps(torch.from_numpy(boxes).float(), grid).max(1).values
    found = best_ious(boxes, np.tile([width, height], (len(boxes), 1)), generator, divisor)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize('keep_ratio', [True, False])
def test_boxes_are_resized_as_mmdet_does(shapes, keep_ratio):
    from mmdet.datasets import CocoDataset

    init_default_scope('mmdet')
    coco = json.loads((shapes / 'annotations' / 'instances_train.json').read_text())
    resize = {'type': 'Resize', 'scale': (133, 70), 'keep_ratio': keep_ratio}
    dataset = CocoDataset(
        ann_file=str(shapes / 'annotations' / 'instances_train.json'),
        data_prefix={'img': str(shapes / 'train')},
        metainfo={'classes': ('circle', 'square', 'triangle', 'star', 'cross')},
        pipeline=[
            {'type': 'LoadImageFromFile'},
            {'type': 'LoadAnnotations', 'with_bbox': True},
            resize,
            {'type': 'PackDetInputs'},
        ],
    )
    samples: list[DetDataSample] = [sample['data_samples'] for sample in dataset]
    objects: list[InstanceData] = [sample.gt_instances for sample in samples]
    expected = torch.cat([instances.bboxes.tensor for instances in objects])
    boxes, sizes = resized_boxes(coco, None, [resize])
    order, wanted = np.lexsort(boxes.T), np.lexsort(expected.numpy().T)
    np.testing.assert_allclose(boxes[order], expected.numpy()[wanted], atol=1e-3)
    assert {tuple(size[::-1]) for size in sizes} == {sample.img_shape for sample in samples}


def test_objects_that_no_anchor_reaches_are_counted(shapes, tmp_path):
    key = 'model.bbox_head.anchor_generator'
    found = {
        base: next(
            f
            for f in examine(tmp_path, shapes, **{f'{key}.octave_base_scale': base})
            if f.topic.endswith('anchors')
        )
        for base in (2, 64)
    }
    assert (found[2].level, found[64].level) == ('green', 'red')
    assert 'smaller scales' in found[64].mend
    random = {'train_dataloader.dataset.pipeline.2.type': 'RandomChoiceResize'}
    config = Config.fromfile(write_config(tmp_path, shapes, ''))
    config.merge_from_dict(random)
    assert resized_boxes({}, None, config.train_dataloader.dataset.pipeline) is None


# -- the report -------------------------------------------------------------------------------


def test_whatever_a_check_raises_becomes_a_line():
    def check():
        yield Finding('green', 'x', 'before')
        sys.stdout.write('a library talks')
        raise RuntimeError('three\nlines [here]')

    found = list(guarded('x', check))
    assert [f.level for f in found] == ['green', 'red']
    assert found[1].text == 'RuntimeError: three lines [here]'

    def unfit():
        raise DataError("'a.json' is empty; export it again")
        yield

    (finding,) = guarded('x', unfit)
    assert (finding.text, finding.mend) == ("'a.json' is empty", 'export it again')


def test_levels_and_records():
    green, yellow, red = (Finding(level, 't', level) for level in findings.LEVELS)
    assert doctor.worst([]) == doctor.worst([green]) == 'green'
    assert doctor.worst([green, yellow]) == 'yellow' and doctor.worst([red, yellow]) == 'red'
    records = doctor.as_records([green, red])
    assert records['level'] == 'red' and records['findings'][1]['text'] == 'red'


def test_a_line_has_the_level_what_was_found_and_what_to_do(capsys):
    doctor.show([Finding('red', 'topic', 'model[0] [red] broke', 'do this')])
    doctor.show([Finding('green', 'topic', 'fine')])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ['red    topic: model[0] [red] broke -> do this', 'green  topic: fine']


def run_tool(*args, python=sys.executable, **env):
    return subprocess.run(
        [python, ROOT / 'tools' / 'doctor.py', *args],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT), **env},
    )


@pytest.mark.slow
def test_the_command(shapes, tmp_path):
    config = write_config(tmp_path, shapes, '')
    done = run_tool(config, '--json')
    assert done.returncode == 0, done.stdout
    content = json.loads(done.stdout)
    assert content['level'] in ('green', 'yellow') and len(content['findings']) > 8
    done = run_tool(config, tmp_path / 'absent.pth')
    assert done.returncode == 1 and 'absent.pth' in done.stdout.replace('\n', '')
    assert run_tool('--unknown').returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize('missing', ['mmengine', 'mmcv', 'mmdet', 'torchvision', 'rich'])
def test_the_command_where_a_package_is_broken(tmp_path, missing):
    """A module of the same name that fails stands first in the path."""
    Path(tmp_path, f'{missing}.py').write_text("raise ImportError('broken build')")
    done = run_tool('configs/retinanet_evit_m4_shapes.py', PYTHONPATH=f'{tmp_path}:{ROOT}')
    assert 'Traceback' not in done.stdout + done.stderr
    assert done.returncode == 1
    text = ' '.join(done.stdout.split())
    assert 'broken build' in text or missing == 'rich'
    if missing == 'rich':  # plain lines, and evit_mm itself needs it
        assert 'red ' in text and 'rich' in text
