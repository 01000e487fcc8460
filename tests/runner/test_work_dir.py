"""What a training left in its work dir, read back."""

import json

from evit_mm.runner.work_dir import find_checkpoint, read_scalars


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
