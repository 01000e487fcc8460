"""What a training left in its work dir, read back."""

import hashlib
import json
import os

import pytest

from evit_mm.errors import CheckpointError, ConfigError, DataError
from evit_mm.runner.work_dir import (
    find_checkpoint,
    last_checkpoints,
    number_of,
    pointed_at,
    read_scalars,
)
from tests.runner.test_loop import run as run_layers


def test_steps_that_a_resumed_run_repeats_are_read_once(tmp_path):
    def step(number, loss):
        return {'iter': number, 'step': number, 'loss': loss}

    runs = {
        '20260101_000000': [step(1, 1.0), step(2, 2.0), {'step': 1, 'AP': 0.2}, step(3, 3.0)],
        '20260102_000000': [step(2, 7.0), step(3, 8.0)],
    }
    for name, entries in runs.items():
        (tmp_path / name / 'vis_data').mkdir(parents=True)
        text = '\n'.join(map(json.dumps, entries))
        (tmp_path / name / 'vis_data' / 'scalars.json').write_text(text)
    found, broken = read_scalars(tmp_path)
    assert [entry.get('loss') for entry in found] == [1.0, None, 7.0, 8.0] and broken == 0


def test_best_checkpoint_then_the_one_pointed_at_then_the_newest(tmp_path):
    assert find_checkpoint(tmp_path) is None
    (tmp_path / 'weights.pth').touch()  # of tools/compare.py
    assert find_checkpoint(tmp_path).name == 'weights.pth'
    (tmp_path / 'epoch_1.pth').touch()
    (tmp_path / 'epoch_2.pth').touch()
    (tmp_path / 'last_checkpoint').write_text('/gone/epoch_1.pth')
    assert find_checkpoint(tmp_path).name == 'epoch_1.pth'
    (tmp_path / 'last_checkpoint').write_text('/gone/epoch_9.pth')
    assert find_checkpoint(tmp_path).name == 'epoch_2.pth'
    (tmp_path / 'best_coco_bbox_mAP_epoch_1.pth').touch()
    assert find_checkpoint(tmp_path).name == 'best_coco_bbox_mAP_epoch_1.pth'


def test_checkpoints_are_ordered_by_time_and_then_by_number(tmp_path):
    def names():
        return [file.name for file in last_checkpoints(tmp_path)]

    times = {'epoch_2': 5, 'iter_9': 5, 'iter_10': 5, 'epoch_1': 7, 'best_a_epoch_3': 9}
    for name, time in times.items():
        (tmp_path / f'{name}.pth').touch()
        os.utime(tmp_path / f'{name}.pth', (time, time))
    ordered = ['epoch_1.pth', 'iter_10.pth', 'iter_9.pth', 'epoch_2.pth']
    assert names() == ordered and pointed_at(tmp_path) is None
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/iter_9.pth\n')
    assert pointed_at(tmp_path) == tmp_path / 'iter_9.pth'  # the folder was copied
    assert names() == ['iter_9.pth', 'epoch_1.pth', 'iter_10.pth', 'epoch_2.pth']
    for name in ('best_a_epoch_10', 'best_b'):
        (tmp_path / f'{name}.pth').touch()
    assert find_checkpoint(tmp_path).name == 'best_a_epoch_10.pth'
    assert [number_of(tmp_path / name) for name in ('best_b.pth', 'iter_0.pth')] == [-1, 0]


def test_torn_lines_and_logs_without_steps_are_counted_and_kept(tmp_path):
    logs = {'1': '{"iter": 1, "step": 1}\n\n{"step": 1, "AP"', '2': '{"step": 1, "AP": 0.5}\n{"st'}
    for name, text in logs.items():
        (tmp_path / name / 'vis_data').mkdir(parents=True)
        (tmp_path / name / 'vis_data' / 'scalars.json').write_text(text)
    assert read_scalars(tmp_path) == ([{'iter': 1, 'step': 1}, {'step': 1, 'AP': 0.5}], 2)


# --- what a training leaves alone

HOOKS = [{'type': 'SummaryHook'}, {'type': 'BestMetricHook'}]
SAVED = {'interval': 1, 'save_best': 'mean', 'rule': 'greater'}


def contents(folder):
    """Return all paths below a folder with the digests of the files."""
    return {
        str(path.relative_to(folder)): path.is_file() and hashlib.md5(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
    }


def finished(folder):
    """Train in a folder, and date the log back: runs of one second would share it."""
    run_layers(folder, checkpoint=SAVED, custom_hooks=HOOKS)
    (log,) = folder.glob('*/*.log')
    os.rename(log.parent, folder / '20200101_000000')


@pytest.mark.parametrize(
    ('options', 'error'),
    [
        ({'model': {'type': 'Layers', 'unknown': 1}}, ConfigError),
        ({'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.1, 'lrr': 1}}}, ConfigError),
        ({'train_cfg': {'max_epoch': 3}}, ConfigError),
        ({'train_cfg': {'max_epochs': 3}, 'broken': range(10)}, DataError),  # when it is read
        ({'load_from': 'absent.pth'}, CheckpointError),
        ({'resume': True, 'train_cfg': {'max_epoch': 3}}, ConfigError),
    ],
)
def test_a_refused_training_changes_nothing_in_its_work_dir(tmp_path, options, error):
    finished(tmp_path)
    before = contents(tmp_path)
    assert {'summary.json', 'epoch_2.pth', 'last_checkpoint'} <= set(before)
    options = {'experiment_name': f'{tmp_path} again', **options}
    with pytest.raises(error):
        run_layers(tmp_path, checkpoint=SAVED, custom_hooks=HOOKS, **options)
    assert contents(tmp_path) == before


def test_a_new_training_moves_the_files_of_an_earlier_one(tmp_path):
    finished(tmp_path)
    (tmp_path / 'notes.txt').write_text('mine')
    before = contents(tmp_path)
    again = {'experiment_name': f'{tmp_path} again', 'train_cfg': {'max_epochs': 1}}
    run_layers(tmp_path, checkpoint=SAVED, custom_hooks=HOOKS, **again)
    (moved,) = tmp_path.glob('before_*')
    names = ('epoch_1.pth', 'epoch_2.pth', 'summary.json', 'last_checkpoint')
    for name in names:
        assert hashlib.md5((moved / name).read_bytes()).hexdigest() == before[name]
    assert (moved / '20200101_000000').is_dir() and (tmp_path / 'notes.txt').exists()
    assert {path.name for path in tmp_path.glob('epoch_*')} == {'epoch_1.pth'}
    entries, _ = read_scalars(tmp_path)
    assert len([entry for entry in entries if 'mean' in entry]) == 1
    assert f"an earlier training are now in '{moved}'" in next(tmp_path.glob('*/*.log')).read_text()


def test_a_resumed_training_recovers_its_best_result_and_time_from_the_checkpoint(tmp_path):
    finished(tmp_path)
    first = json.loads((tmp_path / 'summary.json').read_text())
    (tmp_path / 'summary.json').unlink()
    options = {
        'resume': True,
        'experiment_name': f'{tmp_path} again',
        'train_cfg': {'max_epochs': 3},
    }
    run_layers(tmp_path, checkpoint={**SAVED, 'save_best': None}, custom_hooks=HOOKS[:1], **options)
    found = json.loads((tmp_path / 'summary.json').read_text())
    assert found['best'] == first['best'] and first['best']['value']
    assert found['seconds'] > 0.9 * first['seconds'] > 0
    assert not list(tmp_path.glob('before_*'))
