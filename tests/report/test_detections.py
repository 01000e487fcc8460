"""The cached detections of a run, and those that a checkpoint really gives."""

import json

import pytest

from evit_mm.data import make_shapes
from evit_mm.errors import DataError
from evit_mm.report import detections, runs
from evit_mm.runner.config import load_config
from tests.evaluation.test_tide import FAR, A, B, a_case
from tests.report.test_runs import write_run
from tests.trainings import save_weights, write_config

CONFIG = """
model = dict(type='RetinaNet')
val_dataloader = dict(dataset=dict(
    type='CocoDataset', data_root={root!r}, ann_file='val.json', data_prefix=dict(img='pictures'),
    metainfo=dict(classes=('class 1', 'class 0'))))
val_evaluator = dict(type='CocoMetric')
test_dataloader = val_dataloader
note = 1
"""


def test_the_cache_is_used_until_what_decides_the_detections_changes(tmp_path, monkeypatch):
    truth, results = a_case([(0, A), (1, B)], [(0, A, 0.5), (1, FAR, 0.9)])
    ann_file = tmp_path / 'val.json'
    ann_file.write_text(json.dumps(truth))
    text = CONFIG.format(root=str(tmp_path))
    folder = write_run(tmp_path / 'run', text)
    calls = []

    def evaluate(cfg, checkpoint, device):
        calls.append((checkpoint.name, device, cfg.get('note')))
        return results

    monkeypatch.setattr(detections, '_evaluate', evaluate)

    def number_of_calls(**options):
        detections.detect(runs.read_runs([folder])[0], **options)
        return len(calls)

    with pytest.raises(DataError, match='no checkpoint yet'):
        number_of_calls()
    (folder / 'epoch_1.pth').write_bytes(b'one')
    for _ in range(2):  # evaluated, and read from the cache
        found = detections.detect(runs.read_runs([folder])[0], 'cuda:1', {'note': 2})
        assert found.checkpoint == 'epoch_1.pth' and calls == [('epoch_1.pth', 'cuda:1', 2)]
        assert found.truth.folder == tmp_path / 'pictures'
        assert found.truth.classes == ('class 1', 'class 0')
        assert found.found.score.tolist() == [0.9, 0.5] and found.found.label.tolist() == [0, 1]
    (folder / 'tiny.py').write_text(text + 'train_cfg = dict(max_epochs=9)\nnote = 5\n')
    assert number_of_calls(device='cpu') == 1
    options = {}
    for name in ('model', 'val_dataloader.dataset', 'val_evaluator'):
        before, options[f'{name}.note'] = len(calls), 1  # one change more than what is cached
        found = [number_of_calls(cfg_options=options) for _ in range(2)]
        assert found == [before + 1] * 2, name
    (folder / 'epoch_1.pth').write_bytes(b'two')
    assert number_of_calls() == number_of_calls() == 5
    ann_file.write_text(json.dumps({**truth, 'info': 'new'}))
    assert number_of_calls() == number_of_calls() == 6
    (folder / 'epoch_2.pth').write_bytes(b'three')
    assert number_of_calls() == number_of_calls() == 7 and calls[-1][0] == 'epoch_2.pth'
    ann_file.unlink()
    with pytest.raises(DataError, match=r"val\.json' does not exist"):
        number_of_calls()


def test_a_checkpoint_is_evaluated_on_the_validation_set_outside_its_work_dir(tmp_path):
    data = make_shapes(tmp_path / 'set', 1, 3, size=(96, 80), quiet=True)
    config = write_config(tmp_path, data)
    weights = save_weights(config, tmp_path / 'weights.pth')
    before = set(tmp_path.rglob('*'))
    cfg = load_config(config)
    cfg.merge_from_dict({'val_dataloader.dataset.indices': 2})
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    found = detections._evaluate(cfg, weights, 'cpu')
    truth = json.loads((data / 'annotations' / 'instances_val.json').read_text())
    images = [image['id'] for image in truth['images']]
    assert {d['image_id'] for d in found} == set(images[:2])
    assert sorted(found[0]) == ['bbox', 'category_id', 'image_id', 'score']
    assert set(tmp_path.rglob('*')) == before
    # so sure is it of nothing
    cfg.model.test_cfg.score_thr = 2.0
    assert detections._evaluate(cfg, weights, 'cpu') == []
