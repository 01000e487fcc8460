"""What a training left in its work dir, read back."""

import json
import os

from evit_mm.runner.work_dir import (
    find_checkpoint,
    last_checkpoints,
    number_of,
    pointed_at,
    read_scalars,
)


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
