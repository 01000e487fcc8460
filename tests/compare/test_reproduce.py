"""The reproduction on COCO: what it refuses, what it costs, and that kills change nothing.

The rehearsals train on a few images of COCO at 64 px. Their AP says nothing.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import evit_mm.ops  # noqa: F401  # isort: skip
import huggingface_hub
import numpy as np
import psutil
import pytest
import torch
from filelock import FileLock

from evit_mm.checkpoint import sources
from evit_mm.compare.reproduction import (
    Settings,
    coco2017,
    evaluate_released,
    released,
    reproduce,
    trainings,
    weights,
)
from evit_mm.compare.reproduction.children import run_child, training_command
from evit_mm.compare.reproduction.cost import Cost, duration
from evit_mm.errors import ConfigError, DataError
from evit_mm.runner.test import test as run_test
from evit_mm.utils.files import write_json
from tests.compare.test_runs import NAMES
from tests.conftest import ROOT
from tests.standins import detector_file

TINY = {
    'model.backbone.init_cfg': None,
    'model.neck.out_channels': 16,
    'model.bbox_head.in_channels': 16,
    'model.bbox_head.feat_channels': 16,
    'model.bbox_head.stacked_convs': 1,
    'model.test_cfg.score_thr': 0.0,  # hardly trained, it is sure of nothing
    'scale': (64, 64),
    'max_epochs': 2,
    'optim_wrapper.optimizer.lr': 0.001,
    'train_dataloader.batch_size': 4,
    'train_dataloader.dataset.indices': 16,
    'val_dataloader.dataset.indices': 8,
    'train_dataloader.num_workers': 0,
    'train_dataloader.persistent_workers': False,
    'val_dataloader.num_workers': 0,
    'val_dataloader.persistent_workers': False,
}
SMALL = {
    'scale': (96, 96),
    'test_dataloader.num_workers': 0,
    'test_dataloader.persistent_workers': False,
}
MODELS = ['retinanet_evit_m0_coco', 'retinanet_mobilenetv2_coco']


@pytest.fixture
def mini(real_data, tmp_path):
    """A copy of COCO's images for the test to break."""
    return shutil.copytree(
        real_data('coco_mini'), tmp_path / 'coco_mini', copy_function=shutil.copyfile
    )


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network and empty caches; returns the folder of torch hub's checkpoints."""

    def fail(*args, **kwargs):
        raise OSError('the network is unreachable')

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(sources, '_download', fail)
    monkeypatch.setattr(sources, 'RETRIES', 0)
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', fail)
    folder = tmp_path / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    return folder


def rehearsal(data, out, **changes):
    return Settings(
        str(data), out, **{'gpus': 0, 'cfg_options': TINY, 'rehearsal': True, **changes}
    )


def as_words(options):
    """Return overrides as words of the command line."""
    return [f'{key}={value}' for key, value in options.items()]


# --- what is refused, before anything is trained


def test_gpus_that_are_not_there_are_refused(tmp_path, monkeypatch):
    for present, gpus, match in (
        (0, None, 'no GPU found; add --gpus 0'),
        (0, 1, '--gpus 1: this machine has no GPU'),
        (2, 8, '--gpus 8: this machine has 2 GPUs; give a number from 0 .CPU. to 2'),
        (2, -1, '--gpus -1'),
    ):
        monkeypatch.setattr(torch.cuda, 'device_count', lambda present=present: present)
        with pytest.raises(ConfigError, match=match):
            Settings(out=tmp_path, gpus=gpus)
    assert Settings(out=tmp_path).num_gpus == 2
    assert Settings(out=tmp_path, gpus=0).num_gpus == 0


def test_overrides_that_other_options_set_are_refused(tmp_path):
    for key, match in (
        ('data_root', 'use --data'),
        ('work_dir', 'use --out'),
        ('resume', 'resumes'),
    ):
        with pytest.raises(ConfigError, match=f'--cfg-options {key}: .*{match}'):
            Settings(out=tmp_path, gpus=0, cfg_options={key: 'x'})


def test_configs_that_cannot_share_a_table_are_refused(mini, tmp_path):
    names = [*MODELS[:1], 'retinanet_lite_evit_m0_coco']
    with pytest.raises(DataError, match=r"lite_evit_m0_coco' differ in the test scale .* --out"):
        reproduce(Settings(str(mini), tmp_path / 'out', gpus=0), names)
    assert not (tmp_path / 'out').exists()


def test_configs_of_other_data_are_refused(tmp_path):
    settings = Settings(out=tmp_path, gpus=0)
    with pytest.raises(ConfigError, match="did you mean 'retinanet_evit_m4_coco'"):
        settings.configs(['retinanet_evit_m4_cocoo'])
    for name in ('retinanet_evit_m4_bccd', 'evit_m0_imagenet', 'retinanet_evit_m4_shapes'):
        with pytest.raises(ConfigError, match=f'{name}.*does not train a detector on COCO 2017'):
            settings.configs([name])
    with pytest.raises(ConfigError, match='no released|released no detector'):
        evaluate_released(settings, ['retinanet_mobilenetv2_coco'])
    assert not list(tmp_path.iterdir())


def test_all_that_is_missing_is_one_list(tmp_path, offline):
    names = ['retinanet_evit_m4_coco', 'retinanet_mobilenetv2_coco', 'retinanet_spos_coco']
    with pytest.raises(DataError) as error:
        reproduce(Settings(str(tmp_path / 'none'), tmp_path / 'out', 0), names)
    faults = str(error.value).splitlines()[1:]
    for fault, words in zip(
        faults,
        (
            ('instances_train2017.json', 'annotations_trainval2017.zip'),
            ('train2017', 'zips/train2017.zip'),
            ('instances_val2017.json', 'annotations_trainval2017.zip'),
            ('val2017', 'zips/val2017.zip'),
            ('efficientvit_m4.pth', str(offline), 'leave out retinanet_evit_m4_coco'),
            ('timm://mobilenetv2_100.ra_in1k', 'hf download timm/mobilenetv2_100.ra_in1k'),
            ('checkpoints/spos_megvii.pth.tar', 'does not exist', 'docs/reproduce.md'),
        ),
        strict=True,
    ):
        assert all(word in fault for word in words), fault
    with pytest.raises(DataError) as error:
        evaluate_released(Settings(str(tmp_path / 'none'), tmp_path / 'out', 0))
    faults = str(error.value).splitlines()[1:]
    assert len(faults) == 4 and 'train2017' not in ''.join(faults)
    assert 'mask_rcnn_efficientvit_m4_fpn_1x_coco.pth' in faults[3]


def test_other_data_than_coco_are_refused(mini, tmp_path, offline):
    with pytest.raises(DataError) as error:
        reproduce(Settings(str(mini), tmp_path / 'out', 0, TINY), MODELS)
    text = str(error.value)
    assert '71 instead of 118,287 images, 640 instead of 860,001 annotations' in text
    assert '70 instead of 5,000 images, 478 instead of 36,781 annotations' in text
    assert 'categories' not in text and text.count('--rehearsal') == 2
    file = mini / 'annotations' / 'instances_train2017.json'
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(DataError, match='is truncated or damaged .* of 469,785,474 bytes'):
        reproduce(Settings(str(mini), tmp_path / 'out', 0, TINY), MODELS)
    with pytest.raises(DataError, match='not valid JSON'):
        reproduce(rehearsal(mini, tmp_path / 'out'), MODELS)


def test_coco_is_known_by_its_hash_or_by_its_numbers(mini, tmp_path, monkeypatch):
    digests = {}
    for split in ('train', 'val'):
        file = mini / 'annotations' / f'instances_{split}2017.json'
        digests[split] = subprocess.check_output(['sha256sum', file], text=True).split()[0]
    known = {
        'train': coco2017.Split(71, 640, 0, digests['train']),
        'val': coco2017.Split(70, 478, 0, 'another'),
    }
    monkeypatch.setattr(coco2017, 'COCO2017', known)
    settings = Settings(str(mini), tmp_path, 0, TINY)
    configs = list(settings.configs(MODELS).values())

    def check(before=()):
        return coco2017.check_coco2017(configs, mini, ('train', 'val'), False, dict(before))

    faults, facts = check()
    assert faults == []
    assert facts == {f'sha256 of instances_{s}2017.json': d for s, d in digests.items()}
    (notice,) = coco2017.unlike_coco(facts, rehearsal=False)
    assert 'instances_val2017.json is not byte for byte the file of COCO' in notice
    assert not list(coco2017.unlike_coco(facts, rehearsal=True))
    image = min((mini / 'val2017').iterdir())
    image.unlink()
    (fault,) = check()[0]  # a thorough check names it
    assert image.name in fault
    (fault,) = check(facts)[0]  # later checks only count
    assert 'has 69 of 70 images' in fault and 'val2017.zip' in fault


def test_an_image_folder_that_is_missing_or_damaged_is_named(mini, tmp_path):
    for image in (mini / 'train2017').iterdir():
        image.write_bytes(image.read_bytes()[:500])
    with pytest.raises(DataError, match='1. train: .*cannot be decoded|truncated'):
        reproduce(rehearsal(mini, tmp_path / 'out'), MODELS)
    shutil.rmtree(mini / 'train2017')
    with pytest.raises(DataError, match='1. .*/train2017. does not exist; download'):
        reproduce(rehearsal(mini, tmp_path / 'out'), MODELS)
    assert [file.name for file in (tmp_path / 'out').iterdir()] == ['.lock']


def test_weights_are_checked_by_content(mini, tmp_path, offline):
    file = offline / 'retinanet_efficientvit_m4_fpn_1x_coco.pth'
    torch.save(detector_file('mask_rcnn'), file)
    settings = rehearsal(mini, tmp_path / 'out', cfg_options=SMALL)
    for match in ('does not fit RetinaNet', 'is truncated or not a checkpoint'):
        with pytest.raises(DataError, match=f'1. .*{match}'):
            evaluate_released(settings, ['retinanet_evit_m4_coco'])
        file.write_bytes(file.read_bytes()[:1_000_000])


def test_a_file_of_the_hub_has_the_hash_of_its_name(tmp_path, monkeypatch):
    blob = tmp_path / 'blobs' / ('0' * 64)
    blob.parent.mkdir()
    blob.write_bytes(b'weights')
    link = tmp_path / 'model.safetensors'
    link.symlink_to(blob)
    monkeypatch.setattr(weights, 'local_path', lambda source: link)
    with pytest.raises(weights.CheckpointError, match=f'is damaged: .{blob}. has SHA-256 '):
        weights.checked_digest('timm://tiny')
    digest = subprocess.check_output(['sha256sum', blob], text=True).split()[0]
    link.unlink()
    link.symlink_to(blob.rename(blob.with_name(digest)))
    assert weights.checked_digest('timm://tiny') == digest


def test_a_folder_in_use_or_with_other_settings_is_refused(mini, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    out.mkdir()
    with (
        FileLock(out / '.lock'),
        pytest.raises(ConfigError, match='another reproduction is running'),
    ):
        reproduce(rehearsal(mini, out), MODELS)
    facts = {'sha256 of a.json': '1'}
    file = out / 'reproduce.json'
    trainings.check_facts(file, rehearsal(mini, out), facts, True)
    found = trainings.check_facts(file, rehearsal(mini, out), {'sha256 of b.pth': '2'}, True)
    assert found == {**facts, 'sha256 of b.pth': '2'}  # another config is no change
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    for changes, now, match in (
        ({}, {'sha256 of a.json': '3'}, 'sha256 of a.json: 1 before, 3 now'),
        ({'gpus': 4}, facts, 'gpus: 0 before, 4 now'),
        ({'rehearsal': False}, facts, 'rehearsal: True before, False now'),
        ({'cfg_options': {**TINY, 'max_epochs': 3}}, facts, 'cfg_options: .*before'),
    ):
        with pytest.raises(ConfigError, match=match):
            trainings.check_facts(file, rehearsal(mini, out, **changes), now, True)
    (out / 'cost.json').touch()
    trainings.check_facts(file, rehearsal(mini, out), facts, False)
    assert (out / 'cost.json').exists()
    trainings.check_facts(file, rehearsal(mini, out, gpus=4), facts, False)  # nothing is trained
    assert json.loads(file.read_text())['gpus'] == 4 and not (out / 'cost.json').exists()


def test_a_config_that_has_changed_is_refused(mini, tmp_path):
    settings = rehearsal(mini, tmp_path)
    (cfg,) = settings.configs(MODELS[:1]).values()
    for _ in range(2):
        settings.write_config(MODELS[0], cfg)
    cfg.optim_wrapper.optimizer.lr = 1.0
    settings.write_config(MODELS[0], cfg)  # no training has begun
    settings.run(MODELS[0]).folder.mkdir(parents=True)
    cfg.optim_wrapper.optimizer.lr = 2.0
    with pytest.raises(ConfigError, match=f'config {MODELS[0]} differs from'):
        settings.write_config(MODELS[0], cfg)


# --- cost, commands and child processes


def test_cost_counts_steps_and_evaluations():
    (cfg,) = Settings('data', gpus=0).configs(['retinanet_evit_m4_coco']).values()
    cost = Cost(step=0.3, steps=7330, evaluation=312.5, device='a GPU')
    hours = 12 * (7330 + 312.5) * 0.3 / 3600
    assert cost.hours(cfg) == pytest.approx(hours)
    assert cost.hours(cfg, done=11) == pytest.approx(hours / 12)
    assert cost.hours(cfg, done=12) == 0
    assert [duration(hours) for hours in (0.5, 7.33)] == ['30 minutes', '7.3 hours']


def test_one_command_trains_on_any_number_of_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 8)
    file, options = tmp_path / 'config.py', ['--work-dir', str(tmp_path), '--seed', '0']
    for gpus, start, end in (
        (0, [], ['--auto-scale-lr', '--device', 'cpu']),
        (1, [], ['--auto-scale-lr', '--device', 'cuda']),
        (
            8,
            ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=8'],
            ['--launcher', 'pytorch'],
        ),
    ):
        settings = Settings('data', gpus=gpus)
        (cfg,) = settings.configs(['retinanet_evit_m4_coco']).values()
        command = training_command(settings, cfg, file, tmp_path)
        program = str(ROOT / 'tools' / 'train.py')
        assert command == [sys.executable, *start, program, str(file), *options, *end]


def test_the_learning_rate_follows_the_images_of_a_step(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 8)
    for gpus, images in ((8, 16), (4, 8), (0, 2)):
        settings = Settings('data', gpus=gpus)
        (cfg,) = settings.configs(['retinanet_evit_m4_coco']).values()
        assert settings.images_per_step(cfg) == images
        assert settings.scaling(cfg) == ([] if images == 16 else ['--auto-scale-lr'])


def test_a_child_that_fails_says_why(tmp_path):
    log, ticks = tmp_path / 'console.log', []
    for code, reason in (
        ('print("fine")', None),
        ('import sys; print("x"); sys.exit("error: the disk is full\\nmore")', 'the disk is full'),
        ('raise SystemExit(3)', f"the process exited with status 3; see '{log}'"),
        (
            'import os; os.kill(os.getpid(), 9)',
            'the process was killed by SIGKILL (out of memory?)',
        ),
    ):
        assert run_child([sys.executable, '-c', code], log, lambda: ticks.append(1)) == reason
    assert 'fine' in log.read_text() and ticks


def test_a_child_that_outlives_its_parent_is_waited_for(tmp_path):
    # as the processes of a torchrun that was killed: in sessions of their own
    log = tmp_path / 'console.log'
    orphan = 'import time; time.sleep(1); print("the orphan ends", flush=True)'
    starts = (
        'import subprocess, sys; '
        f'subprocess.Popen([sys.executable, "-c", {orphan!r}], start_new_session=True)'
    )
    assert run_child([sys.executable, '-c', starts], log, lambda: None) is None
    assert 'the orphan ends' in log.read_text()


def test_an_interrupt_ends_the_child(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    command = [sys.executable, '-c', 'import time; time.sleep(60)']
    with pytest.raises(KeyboardInterrupt):
        run_child(command, tmp_path / 'console.log', interrupt)
    assert not [child for child in psutil.Process().children() if child.cmdline() == command]


@pytest.mark.slow
def test_a_child_whose_command_was_killed_is_waited_for(tmp_path):
    log = tmp_path / 'console.log'
    orphan = 'import time; time.sleep(3); print("the orphan ends", flush=True)'
    code = (
        'import sys; from pathlib import Path; '
        'from evit_mm.compare.reproduction.children import run_child; '
        f'run_child([sys.executable, "-c", {orphan!r}], Path({str(log)!r}), lambda: None)'
    )
    parent = psutil.Popen([sys.executable, '-c', code], cwd=ROOT)
    while not parent.children():
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    command = [sys.executable, '-c', 'print("the next begins")']
    assert run_child(command, log, lambda: None) is None
    assert log.read_text().splitlines() == ['the orphan ends', 'the next begins']


# --- the table


def test_the_table_says_what_was_measured_and_what_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, 'count_detector', lambda *_: None)
    names = ['evit_m4', 'mobilenetv2', 'spnasnet', 'mask_rcnn_evit_m4']
    names = [name if 'mask' in name else f'retinanet_{name}' for name in names]
    names = [f'{name}_coco' for name in names]
    settings = Settings('coco', tmp_path / 'out', 0, {'max_epochs': 12})
    configs = settings.configs(names)
    for name, ap in zip(names, (33.0, 28.0, None, 32.0), strict=True):
        folder = settings.run(name).folder
        folder.mkdir(parents=True)
        if ap is None:
            write_json(folder / 'result.json', {'failure': 'the disk is full'})
            continue
        figures = {f'coco/bbox_{metric}': ap / 100 for metric in NAMES}
        if 'mask' in name:
            figures['coco/segm_mAP'] = 0.305
        (folder / '1' / 'vis_data').mkdir(parents=True)
        lines = [{'loss': 1.0, 'time': 0.5, 'iter': 200, 'step': 200}, {**figures, 'step': 12}]
        text = '\n'.join(map(json.dumps, lines))
        (folder / '1' / 'vis_data' / 'scalars.json').write_text(text)
        configs[name].dump(folder / f'{name}.py')
        write_json(folder / 'result.json', {'metrics': {}, 'seconds': 1})
    facts = {'sha256 of instances_val2017.json': 'another'}
    rows = trainings._write_table(settings, configs, facts)
    assert [len(row.metrics) for row in rows] == [1, 1, 1, 0]
    text = (tmp_path / 'out' / 'table.md').read_text()
    head, _, rest = text.partition('| backbone |')
    assert 'settings differ from the configs of the project: max_epochs=12.' in head
    assert 'instances_val2017.json is not byte for byte the file of COCO' in head
    assert 'Each step had 2 images instead of 16' in head and 'rehearsal' not in text
    lines = f'| backbone |{rest}'.splitlines()
    lines = [line.strip('| ').split(' | ') for line in lines if line[:2] == '| ']
    found = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines}
    published = {'EfficientViT-M4': '32.7', 'MobileNetV2': '28.3', 'Single-Path NAS': '30.7'}
    published['EfficientViT-M4 Mask R-CNN'] = '32.8'
    for label, ap in published.items():
        assert found[label]['AP (COCO, published)'] == ap
    assert found['EfficientViT-M4']['AP'] == '33.0 (1)'
    assert found['Single-Path NAS']['AP'] == 'failed'
    assert '- Single-Path NAS, the disk is full' in text
    masks = found['EfficientViT-M4 Mask R-CNN']
    assert (masks['mask AP'], masks['mask AP (COCO, published)']) == ('30.5', '31.0')
    assert found['MobileNetV2']['mask AP (COCO, published)'] == '-'


def test_a_rehearsal_is_called_one_before_any_figure(tmp_path):
    settings = Settings('data/cells', tmp_path, 0, rehearsal=True)
    assert settings.notices()[0].startswith('**This is a rehearsal on cells, not COCO 2017.**')
    assert Settings('data/coco', tmp_path, 0).notices() == []
    assert settings.data_name == 'rehearsal on cells'


def test_results_are_stored_to_the_last_bit():
    generator = np.random.default_rng(0)
    boxes = generator.standard_normal((3, 4)).astype(np.float32) * 1000
    result = {
        'img_id': 7,
        'bboxes': boxes,
        'scores': generator.random(3, dtype=np.float32),
        'labels': np.arange(3),
        'masks': [{'size': [4, 5], 'counts': b'04PO'}],
    }
    stored = json.loads(json.dumps(released._plain([({'width': 5}, result)])))
    ((image, found),) = released._restored(stored)
    assert image == {'width': 5} and found['masks'] == result['masks'] and found['img_id'] == 7
    for key in ('bboxes', 'scores', 'labels'):
        assert found[key].dtype == result[key].dtype and np.array_equal(found[key], result[key])
    empty = released._restored(json.loads(json.dumps(released._plain(boxes[:0]))))
    assert empty.shape == (0, 4) and empty.dtype == np.float32


# --- rehearsals with kills


def start(data, out, *options, **environment):
    """Start the command in a process group of its own."""
    command = [sys.executable, 'tools/reproduce.py', '--data', str(data), '--out', str(out)]
    return subprocess.Popen(
        [*command, '--gpus', '0', '--rehearsal', *options],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_when(process, reached, rng):
    """Kill the whole process group a random moment after a point has been reached."""
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 2))
    assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_killed_three_times_it_writes_the_same_table(real_data, tmp_path):
    data, out, rng = real_data('coco_mini'), tmp_path / 'out', random.Random(0)
    options = ['--configs', *MODELS, '--cfg-options', *as_words(TINY)]
    out.mkdir()
    known = {'step': 0.2, 'steps': 4, 'evaluation': 2.0, 'device': 'cpu'}
    write_json(out / 'cost.json', {MODELS[1]: known})  # measured before
    first, second = (out / 'runs' / name for name in MODELS)
    for reached in (
        (out / 'measuring' / 'console.log').exists,
        (first / 'last_checkpoint').exists,
        (first / 'result.json').exists,
    ):
        kill_when(start(data, out, *options), reached, rng)
    assert not (second / 'result.json').exists()
    assert not list(first.glob('before_*'))  # else it began again instead of resuming
    process = start(data, out, *options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert f'{MODELS[0]}: finished' in output and 'in total: 0 minutes on cpu' in output
    assert 'This is a rehearsal on coco_mini, not COCO 2017' in output

    undisturbed = tmp_path / 'undisturbed'
    undisturbed.mkdir()
    costs = json.loads((out / 'cost.json').read_text())
    cost = costs[MODELS[0]]  # 16 images, 4 a step; 8 to evaluate
    assert cost['steps'] == 4 and cost['evaluation'] == 2 and cost['step'] > 0
    assert costs[MODELS[1]] == known
    write_json(undisturbed / 'cost.json', costs)
    reproduce(rehearsal(data, undisturbed), MODELS)
    tables = [json.loads((folder / 'table.json').read_text()) for folder in (out, undisturbed)]
    for row in (row for table in tables for row in table['rows']):
        assert row.pop('minutes')[0] > 0
    assert tables[0] == tables[1]
    for name in MODELS:  # an AP of few images is rounded, weights are not
        states = [
            torch.load(folder / 'runs' / name / 'epoch_2.pth', weights_only=False)['state_dict']
            for folder in (out, undisturbed)
        ]
        assert all(torch.equal(states[0][key], value) for key, value in states[1].items())


@pytest.mark.slow
def test_the_released_detectors_are_evaluated_despite_a_kill(real_data, tmp_path):
    from mmdet.datasets import CocoDataset

    data, out = real_data('coco_mini'), tmp_path / 'out'
    file = tmp_path / 'hub' / 'checkpoints' / 'retinanet_efficientvit_m4_fpn_1x_coco.pth'
    file.parent.mkdir(parents=True)
    content = detector_file('retinanet')
    content['meta']['CLASSES'] = CocoDataset.METAINFO['classes']
    torch.save(content, file)
    name = 'retinanet_evit_m4_coco'
    options = ['--evaluate', '--configs', name, '--cfg-options', *as_words(SMALL)]
    place = {'TORCH_HOME': str(tmp_path)}
    kill_when(
        start(data, out, *options, **place),
        (out / 'released' / name / 'images_00000.json').exists,
        rng=SimpleNamespace(uniform=lambda *_: 0.0),
    )
    kept = (out / 'released' / name / 'images_00000.json').stat().st_mtime_ns
    assert not (out / 'released' / name / 'result.json').exists()
    process = start(data, out, *options, **place)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert 'seconds an image' in output and '| 32.7 |' in output and 'rehearsal' in output
    assert (out / 'released' / name / 'images_00000.json').stat().st_mtime_ns == kept

    # the same figures and detections as tools/test.py
    (cfg,) = rehearsal(data, out, cfg_options=SMALL).configs([name]).values()
    boxes = tmp_path / 'boxes.json'
    metrics = run_test(cfg, file, out=str(boxes), work_dir=str(tmp_path / 'work'), device='cpu')
    (row,) = json.loads((out / 'released' / 'table.json').read_text())['rows']
    assert row['runs'] == [{metric: metrics[f'coco/bbox_{metric}'] for metric in NAMES}]
    chunks = sorted((out / 'released' / name).glob('images_*.json'))
    results = [r for chunk in chunks for _, r in json.loads(chunk.read_text())['results']]
    assert len(chunks) == 2 and len(results) == 70
    expected = [(box['image_id'], box['score']) for box in json.loads(boxes.read_text())]
    found = [(r['img_id'], score) for r in results for score in r['scores']['values']]
    assert found == expected and len(found) > 70
