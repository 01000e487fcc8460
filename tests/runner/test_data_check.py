"""The hook checks the data sets of its splits, once."""

from types import SimpleNamespace

import pytest

from evit_mm.data import make_shapes
from evit_mm.errors import DataError
from evit_mm.runner import data_check
from evit_mm.runner.config import load_config
from tests.trainings import write_config


def test_each_split_is_checked_once_and_by_one_process(tmp_path, monkeypatch):
    data = make_shapes(tmp_path / 'set', 4, 4, size=(96, 80), quiet=True)
    runner = SimpleNamespace(cfg=load_config(write_config(tmp_path, data)))
    runner.cfg.test_dataloader.dataset.ann_file = 'annotations/instances_train.json'
    runner.cfg.test_evaluator.ann_file = str(data / 'annotations' / 'instances_train.json')
    hook, late = data_check.DataCheckHook(), data_check.DataCheckHook()
    hook.before_build(runner, ['train', 'val'])
    (data / 'annotations' / 'instances_val.json').unlink()
    hook.before_train(runner)  # done already
    late.before_test(runner)
    with pytest.raises(DataError, match='instances_val'):
        late.before_train(runner)
    (data / 'annotations' / 'instances_train.json').unlink()
    with pytest.raises(DataError, match='instances_train'):
        hook.before_test(runner)
    monkeypatch.setattr(data_check, 'is_main_process', lambda: False)
    data_check.DataCheckHook().before_test(runner)


def test_an_evaluation_stops_at_a_truncated_image(tmp_path):
    data = make_shapes(tmp_path / 'set', 1, 2, size=(96, 80), quiet=True)
    samples = [SimpleNamespace(img_path=str(path)) for path in sorted((data / 'val').iterdir())]
    hook, cut = data_check.DataCheckHook(), samples[1].img_path
    for batch in ({'data_samples': samples}, {'inputs': 1}, samples, None):
        hook.before_val_iter(None, 0, batch)
    with open(cut, 'rb+') as file:
        file.truncate(900)
    for check in (hook.before_val_iter, hook.before_test_iter):
        with pytest.raises(DataError, match=f"image '{cut}' is truncated; replace it or remove"):
            check(None, 0, {'data_samples': samples})
