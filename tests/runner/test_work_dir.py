"""What a training left in its work dir, read back."""

import json

from evit_mm.runner.work_dir import read_scalars


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
