"""What is in order is green; each thing that is broken becomes a line of its own with its fix."""

import json
import math
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torchvision.ops import nms

from evit_mm import doctor
from evit_mm.data import make_shapes
from evit_mm.doctor import findings, probe, stack
from evit_mm.doctor.config import check_config, check_folder
from evit_mm.doctor.findings import Finding, from_sentence, guarded
from evit_mm.errors import DataError
from tests.conftest import ROOT
from tests.data.test_check import edit
from tests.data.test_formats import yolo
from tests.trainings import write_config

# for two epochs
FITTING = 'param_scheduler = [dict(type="MultiStepLR", milestones=[1])]\n'


def only(found, level):
    return [finding for finding in found if finding.level == level]


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('doctor') / 'set', 30, 12, (96, 96), quiet=True)


@pytest.fixture
def copy(shapes, tmp_path):
    return shutil.copytree(shapes, tmp_path / 'set')


def examine(folder, root, checkpoint=None, all_images=False):
    """Return what the doctor says of a small config on a data set."""
    config = write_config(folder, root, FITTING)
    return list(check_config(str(config), checkpoint, all_images))


def program(folder, text):
    """Return a program that takes the place of one that the doctor runs."""
    file = folder / 'program.py'
    file.write_text(f'import os, sys\n{text}')
    return file


# -- a data folder ----------------------------------------------------------------------------


def test_a_data_folder_is_recognised_and_checked(tmp_path):
    root = yolo(tmp_path / 'set')
    first, *notes, last = check_folder(str(root), False)
    assert first == Finding(
        'green',
        'data',
        f"'{root}' is in YOLO format: 2 images for training, 2 for validation, "
        '2 classes (cat, dog)',
    )
    assert last.level == 'green' and last.text.startswith('no errors found')
    assert {note.level for note in notes} == {'yellow'}
    (root / 'labels' / 'val' / 'val0.txt').unlink()
    (root / 'images' / 'train' / 'train0.jpg').write_bytes(b'broken')
    broken, background, *_ = only(list(check_folder(str(root), True)), 'yellow')
    assert broken.text == 'images cannot be read and were left out: 1 (train0.jpg)'
    assert background.text.startswith('images have no label file and count as background')
    (root / 'data.yaml').unlink()
    (fault,) = guarded('data', lambda: check_folder(str(root), False))
    assert (fault.level, fault.fix) == ('red', 'arrange the data like one of these')


# -- the stack --------------------------------------------------------------------------------


def test_the_stack_of_the_tests_is_in_order():
    (found,) = stack.check_operators()
    assert found.level == 'green'
    for name in ('import mmdet', 'mmcv.nms cpu', 'mmcv.roi_align cpu', 'mmcv.deform_conv2d cpu'):
        assert name in found.text


@pytest.mark.parametrize(
    ('name', 'module', 'attribute'),
    [
        ('nms', 'mmcv.ops', 'nms'),
        ('roi_align', 'mmcv.ops', 'roi_align'),
        ('deform_conv', 'mmcv.ops', 'deform_conv2d'),
    ],
)
def test_an_operator_with_wrong_results_is_found(monkeypatch, name, module, attribute):
    getattr(probe, name)(torch, 'cpu')
    function = getattr(sys.modules[module], attribute)

    def wrong(*args, **kwargs):
        out = function(*args, **kwargs)
        if isinstance(out, tuple):  # nms: detections, indices
            return out[0], out[1].flip(0)
        return out * 1.01

    monkeypatch.setattr(f'{module}.{attribute}', wrong)
    with pytest.raises(AssertionError, match='not equal|not close'):
        getattr(probe, name)(torch, 'cpu')


@pytest.mark.parametrize('wrong', range(3))
def test_a_deformable_convolution_with_one_wrong_gradient_is_found(monkeypatch, wrong):
    from mmcv.ops import deform_conv2d

    def broken(*tensors_and_sizes):
        tensors = list(tensors_and_sizes)
        tensors[wrong] = 1.01 * tensors[wrong] - 0.01 * tensors[wrong].detach()
        return deform_conv2d(*tensors)

    monkeypatch.setattr('mmcv.ops.deform_conv2d', broken)
    with pytest.raises(AssertionError, match='not close'):
        probe.deform_conv(torch, 'cpu')


def test_the_probe_prints_each_step_and_stops_at_a_failed_import(monkeypatch, capsys):
    probe.main()
    imports = ['evit_mm', 'evit_mm.ops', 'mmcv.ops', 'mmdet', 'pkg_resources of setuptools<82']
    expected = [f'import {name}: ok' for name in imports]
    expected += [f'mmcv.{name} cpu: ok' for name in ('nms', 'roi_align', 'deform_conv2d')]
    assert [x for x in capsys.readouterr().out.splitlines() if 'cuda' not in x] == expected
    monkeypatch.setattr(probe, 'MODULES', ('evit_mm', 'evit_mm.nowhere', 'mmdet'))
    probe.main()
    first, second = capsys.readouterr().out.splitlines()
    assert first == 'import evit_mm: ok'
    assert second == (
        "import evit_mm.nowhere: ModuleNotFoundError: No module named 'evit_mm.nowhere'"
    )


def test_the_boxes_of_the_probe_overlap_and_have_no_equal_scores():
    boxes, scores = probe.made_boxes(torch)
    sizes = boxes[:, 2:] - boxes[:, :2]
    assert boxes.shape == (60, 4) and sizes.min() >= 5 and 30 < sizes.max() <= 35
    assert len(scores.unique()) == 60 and scores.min() >= 0 and scores.max() < 1
    for threshold, least in ((0.5, 10), (0.99, 60)):
        assert least <= len(nms(boxes, scores, threshold)) < (61 if least == 60 else 55)


def test_a_step_says_how_it_went_in_one_short_line(capsys):
    def broken():
        sys.stdout.write('a library talks')
        raise SystemExit('a\nlong ' + 500 * 'x')

    assert probe.step('good', lambda: sys.stdout.write('a library talks')) is True
    assert probe.step('bad', broken) is False
    assert capsys.readouterr().out.splitlines() == [
        'good: ok',
        f'bad: SystemExit: a long {381 * "x"}',
    ]


def test_pins_are_read_from_the_constraints():
    pins = stack.tested_versions()
    assert (pins['mmcv-lite'], pins['mmdet']) == ('2.1.0', '3.3.0')
    assert set(stack.PACKAGES) <= set(pins)
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
    ('versions', 'text', 'fix'),
    [
        ({'mmcv_lite': None}, 'mmcv-lite is not installed', 'pip install mmcv-lite==2.1.0'),
        ({'mmdet': '3.2.0'}, 'mmdet is 3.2.0', 'pip install mmdet==3.3.0'),
        ({'setuptools': '82.0.1'}, 'setuptools is 82.0.1', 'pip install setuptools==8'),
    ],
)
def test_versions_that_differ_are_named(monkeypatch, versions, text, fix):
    installed(monkeypatch, **versions)
    found = list(stack.check_versions())
    (finding,) = only(found, 'yellow')
    assert finding.text.startswith(f'{text} (pinned version: ')
    assert fix in finding.fix
    number = len(stack.PACKAGES)
    assert [f.text for f in only(found, 'green')] == [
        f'{number - 1} of {number} packages have the pinned version'
    ]


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


@pytest.mark.parametrize(
    ('package', 'other'),
    [
        ('opencv-python', 'opencv-python-headless'),
        ('opencv-python', 'opencv-contrib-python-headless'),
        ('mmcv-lite', 'mmcv'),
        ('mmcv-lite', 'onedl-mmcv'),
        ('mmengine', 'onedl-mmengine'),
        ('mmdet', 'onedl-mmdetection'),
        ('mmpretrain', 'onedl-mmpretrain'),
    ],
)
def test_a_distribution_of_the_same_module_counts_as_the_package(monkeypatch, package, other):
    installed(monkeypatch, **{package.replace('-', '_'): None, other.replace('-', '_'): '9.1+cpu'})
    assert stack.installed_version(package) == '9.1'
    (finding,) = only(stack.check_versions(), 'yellow')
    assert finding.text.startswith(f'{package} is 9.1 (pinned version: ')
    assert stack.installed_version('nothing') is None


def test_programs_see_this_package_first_and_may_not_hang(monkeypatch, tmp_path):
    monkeypatch.setenv('PYTHONPATH', '/one:/two')
    lines, status = stack.run_program(program(tmp_path, "print(os.environ['PYTHONPATH'])"))
    assert (lines, status) == ([os.pathsep.join((str(ROOT), '/one:/two'))], 0)
    monkeypatch.setattr(stack, 'PROGRAM_SECONDS', 0.2)
    file = program(tmp_path, 'import time; time.sleep(9)')
    (finding,) = guarded('environment', lambda: stack.check_environment(file))
    assert finding.level == 'red' and finding.text.startswith('TimeoutExpired: ')


@pytest.mark.parametrize(
    ('steps', 'has_gpu', 'levels'),
    [
        ('mmcv.nms cpu: ok', True, ['green', 'yellow']),
        ('mmcv.nms cpu: ok', False, ['green']),
        ('mmcv.nms cpu: ok\nmmcv.nms cuda: ok', True, ['green']),
        ('mmcv.nms cpu: ok\nmmcv.nms cuda: RuntimeError: a: b', True, ['red', 'green']),
        ('import mmcv.ops: ImportError', True, ['red']),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch, tmp_path, steps, has_gpu, levels):
    file = program(tmp_path, f'print({steps!r})')
    monkeypatch.setattr(stack.Path, 'exists', lambda path: has_gpu)
    found = list(stack.check_operators(file))
    assert [finding.level for finding in found] == levels
    for finding in found:
        assert bool(finding.fix) == (finding.level != 'green')
        if finding.level == 'red':
            assert finding.text == steps.splitlines()[-1]


def test_faults_of_the_environment_are_red(tmp_path):
    (finding,) = stack.check_environment()
    assert finding.level == 'green'
    file = program(tmp_path, "print('this is missing; pip install it'); sys.exit(1)")
    (finding,) = stack.check_environment(file)
    assert (finding.level, finding.text) == ('red', 'this is missing')
    assert finding.fix == 'pip install it'
    file = program(tmp_path, 'os.kill(os.getpid(), 11)')
    (finding,) = stack.check_environment(file)
    assert (
        finding.level == 'red'
        and 'Python crashed' in finding.text
        and '(exit status -11)' in finding.text
    )
    assert finding.fix == 'install into a new environment'


@pytest.mark.parametrize(
    ('code', 'outcome'),
    [
        (
            "raise ImportError('undefined symbol')",
            'ImportError: undefined symbol',
        ),
        ('os.kill(os.getpid(), 11)', 'Python crashed (exit status -11)'),
        ('os._exit(3)', 'Python crashed (exit status 3)'),
    ],
)
def test_the_step_that_fails_is_named(tmp_path, code, outcome):
    text = f"""
from evit_mm.doctor.probe import step
step('import mmcv', lambda: print('a library talks'))
def broken():
    {code}
step('mmcv.nms cpu', broken)
"""
    passed, failed = sorted(stack.check_operators(program(tmp_path, text)), key=lambda f: f.level)
    assert (passed.level, passed.text) == ('green', 'passed: import mmcv')
    assert (failed.level, failed.text) == ('red', f'mmcv.nms cpu: {outcome}')


# -- data and checkpoints ---------------------------------------------------------------------


def test_a_good_config_is_green(shapes, tmp_path):
    found = examine(tmp_path, shapes)
    topics = ['config', 'data', 'model', 'runs']
    assert [finding.topic for finding in only(found, 'green')] == topics and len(found) == 4
    assert [path.name for path in tmp_path.iterdir()] == ['tiny.py']  # nothing is written
    model = MODELS.build(Config.fromfile(tmp_path / 'tiny.py').model)
    millions = sum(math.prod(p.shape) for p in model.parameters()) / 1e6
    assert found[2].text == f'RetinaNet can be built: {millions:.2f} M parameters'
    assert found[0].text == f'{tmp_path / "tiny.py"} can be read'


def test_a_run_too_short_for_its_schedules_is_yellow(shapes, tmp_path):
    warm_up, decay = only(check_config(write_config(tmp_path, shapes), None, False), 'yellow')
    assert warm_up.text.startswith(f'{tmp_path / "tiny.py"}: param_scheduler.0 (LinearLR) has end ')
    assert warm_up.topic == 'runs' and warm_up.fix == 'set end to 8'
    assert 'T_max 12, but the run ends at epoch 2' in decay.text


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_the_data_of_every_split_are_checked(shapes, tmp_path, split):
    gone = f"{split}_dataloader = dict(loader, dataset=dict(data_root='gone'))"
    config = write_config(tmp_path, shapes, gone)
    found = only(check_config(config, None, False), 'red')
    assert {(f.topic, f.text.partition(':')[0]) for f in found} == {('data', split)}


def test_a_model_that_cannot_be_built_is_a_red_line(shapes, tmp_path):
    config = write_config(tmp_path, shapes, "model['neck']['out_chanels'] = 3")
    found = list(check_config(config, None, False))
    (finding,) = only(found, 'red')
    assert [f.topic for f in found] == ['config', 'data', 'model'] and finding is found[2]
    assert 'out_chanels' in finding.text and 'TypeError' not in finding.text


@pytest.mark.parametrize(
    ('extra', 'named'),
    [
        ("train_cfg['max_epoch'] = 3", 'train_cfg.max_epoch: '),
        ('optim_wrapper = dict(optimizer=dict(lrr=1))', 'optim_wrapper.optimizer.lrr: '),
        ("train_dataloader['batchsize'] = 3", 'train_dataloader.batchsize: '),
        ("val_evaluator = dict(_delete_=True, type='VOCMetric')", 'coco/bbox_mAP'),
    ],
)
def test_what_a_training_refuses_is_red(shapes, tmp_path, extra, named):
    found = list(check_config(write_config(tmp_path, shapes, extra), None, False))
    (finding,) = only(found, 'red')
    assert finding.topic == 'runs' and named in finding.text


def test_faults_and_notes_of_the_data(copy, tmp_path):
    edit(copy, lambda c: c['annotations'][0].update(bbox=[5, 5, 0, 9]), 'train')
    edit(copy, lambda c: c['annotations'][1].update(bbox=[80, 5, 40, 9]), 'train')
    found = examine(tmp_path, copy)
    assert not only(found, 'red')
    empty, beyond = only(found, 'yellow')
    assert 'skips 1 box with a side below one' in empty.text
    assert 'clips 1 box over the edge of the image' in beyond.text
    edit(copy, lambda c: c['annotations'][2].update(category_id=77), 'train')
    (fault,) = only(examine(tmp_path, copy), 'red')
    assert "is not in 'categories'" in fault.text and fault.fix == 'correct or remove it'


def test_all_images_are_decoded_when_asked(copy, tmp_path):
    images = sorted((copy / 'train').iterdir())
    images[1].write_bytes(b'no picture')  # not among those that a sample opens
    assert not only(examine(tmp_path, copy), 'red')
    (finding,) = only(examine(tmp_path, copy, all_images=True), 'red')
    assert '1 of 30 checked images in' in finding.text and images[1].name in finding.text


def test_a_config_that_is_not_there_is_one_red_line():
    found = list(guarded('config', lambda: check_config('nowhere.py', None, False)))
    assert [f.level for f in found] == ['red'] and 'nowhere.py' in found[0].text


def test_a_checkpoint_is_fitted(shapes, tmp_path):
    init_default_scope('mmdet')
    model = MODELS.build(Config.fromfile(write_config(tmp_path, shapes, '')).model)
    path = tmp_path / 'model.pth'
    torch.save({'state_dict': model.state_dict()}, path)
    found = examine(tmp_path, shapes, str(path))
    assert [(f.topic, f.level) for f in found[-2:]] == [('checkpoint', 'green'), ('runs', 'green')]
    state = {k: v for k, v in model.state_dict().items() if 'bbox_head' not in k}
    torch.save({'state_dict': state}, path)
    (finding,) = only(examine(tmp_path, shapes, str(path)), 'red')
    assert finding.topic == 'checkpoint' and 'missing: bbox_head' in finding.fix
    path.write_text('<html>not found</html>')
    (finding,) = only(examine(tmp_path, shapes, str(path)), 'red')
    assert str(path) in finding.text


# -- all of it --------------------------------------------------------------------------------


@pytest.fixture
def examined(monkeypatch, tmp_path):
    """Return a function that diagnoses with other programs for the environment and operators."""

    def diagnose(environment, operators, *args, **kwargs):
        for name, text in (('check_environment', environment), ('check_operators', operators)):
            folder = tmp_path / name
            folder.mkdir()
            check = partial(getattr(stack, name), program(folder, text))
            monkeypatch.setattr(doctor, name, check)
        return doctor.diagnose(*args, **kwargs)

    return diagnose


FINE = "print('mmcv.nms cuda: ok')"


def test_environment_and_operators_are_checked_first(examined):
    found = examined('', FINE)
    topics = [f.topic for f in found if f.level != 'yellow']
    assert topics == ['versions', 'environment', 'operators']


@pytest.mark.parametrize(
    ('environment', 'operators', 'checked'),
    [("print('bad')", FINE, ['environment']), ('', "print('mmcv: broken')", ['operators'])],
)
def test_a_broken_stack_is_all_that_is_said(examined, environment, operators, checked):
    """Of broken packages, neither the operators nor a config can be checked."""
    found = examined(environment, operators, 'nowhere.py')
    assert [f.topic for f in only(found, 'red')] == checked
    assert ('operators' in {f.topic for f in found}) == (checked == ['operators'])
    assert (found[-1].level, found[-1].topic) == ('yellow', 'config')
    assert found[-1].text.startswith('not checked') and 'fix the red findings' in found[-1].fix


@pytest.mark.parametrize('all_images', [None, False, True])
def test_config_checkpoint_and_images_are_checked(copy, examined, tmp_path, all_images):
    images = sorted((copy / 'train').iterdir())
    images[1].write_bytes(b'no picture')  # not among those that a sample opens
    options = {} if all_images is None else {'all_images': all_images}
    config = write_config(tmp_path, copy)
    found = examined('', FINE, config, str(tmp_path / 'absent.pth'), **options)
    red = only(found, 'red')
    assert [f.topic for f in red] == (['data'] if all_images else []) + ['checkpoint']
    assert 'absent.pth' in red[-1].text


# -- the report -------------------------------------------------------------------------------


def test_the_last_part_of_a_sentence_is_its_fix():
    assert from_sentence('red', 'x', 'a; b; do c') == Finding('red', 'x', 'a; b', 'do c')
    assert from_sentence('yellow', 'y', 'a;b') == Finding('yellow', 'y', 'a;b', '')
    with pytest.raises(AttributeError):
        from_sentence('red', 'x', 'a').level = 'green'


def test_whatever_a_check_raises_becomes_a_line(capsys):
    def check():
        yield Finding('green', 'x', 'before')
        sys.stdout.write('a library talks')
        raise RuntimeError('three\nlines [here]')

    found = list(guarded('x', check))
    assert [f.level for f in found] == ['green', 'red']
    assert found[1].text == 'RuntimeError: three lines [here]'
    assert not capsys.readouterr().out

    def unfit():
        raise DataError("'a.json' is empty; export it again")
        yield

    (finding,) = guarded('x', unfit)
    assert (finding.text, finding.fix) == ("'a.json' is empty", 'export it again')


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
    assert content['level'] in ('green', 'yellow') and len(content['findings']) >= 6
    assert run_tool('--unknown').returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize('missing', ['mmengine', 'torchvision', 'rich'])
def test_the_command_where_a_package_is_broken(tmp_path, missing):
    """A module of the same name that fails stands first in the path."""
    Path(tmp_path, f'{missing}.py').write_text("raise ImportError('broken build')")
    done = run_tool('configs/retinanet_evit_m4_shapes.py', PYTHONPATH=f'{tmp_path}:{ROOT}')
    assert 'Traceback' not in done.stdout + done.stderr
    assert done.returncode == 1
    text = ' '.join(done.stdout.split())
    assert 'broken build' in text and 'red ' in text
