"""What is evaluated as fused is the fused form of the weights that the plain form has."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from evit_mm.data import make_shapes
from evit_mm.deploy.export.evaluation import FuseHook, evaluate
from evit_mm.deploy.fusion import FusedWindowAttention
from evit_mm.errors import ConfigError
from evit_mm.runner.config import load_config
from tests.conftest import ROOT, TINY
from tests.trainings import save_weights, write_config


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A config of a detector and random weights for it."""
    folder = tmp_path_factory.mktemp('model')
    data = make_shapes(folder / 'set', 1, 2, size=(96, 80), quiet=True)
    config = write_config(folder, data)
    return config, save_weights(config, folder / 'random.pth')


def test_averaged_weights_are_fused_once_they_are_in_place(model, tmp_path):
    config, checkpoint = model
    content = torch.load(checkpoint, weights_only=True)
    # mmengine saves the averaged weights as the model's and keeps the others beside them
    others = {f'module.{name}': 0.5 * x for name, x in content['state_dict'].items()}
    content['ema_state_dict'] = {'steps': torch.tensor(1), **others}
    torch.save(content, tmp_path / 'averaged.pth')
    options = {'custom_hooks': [{'type': 'EMAHook'}]}
    scores = []
    for fuse in (False, True):
        out = tmp_path / f'{fuse}.json'
        arguments = dict(out=str(out), work_dir=str(tmp_path), device='cpu', cfg_options=options)
        evaluate(config, tmp_path / 'averaged.pth', fuse=fuse, **arguments)
        scores.append(sorted(entry['score'] for entry in json.loads(out.read_text())))
        logs = ''.join(log.read_text() for log in tmp_path.glob('*/*.log'))
        assert ('testing the fused model' in logs) == fuse
    assert len(scores[0]) == 200 and scores[0] == pytest.approx(scores[1], abs=1e-3)


@pytest.mark.parametrize('wrapped', [False, True])
@pytest.mark.parametrize('kind', ['detector', 'classifier'])
def test_detectors_and_classifiers_are_each_fused_in_their_way(model, kind, wrapped):
    from mmengine.registry import MODELS, init_default_scope

    if kind == 'detector':
        cfg = load_config(model[0])
    else:
        options = {'model.backbone.arch': {'_delete_': True, **TINY}, 'model.head.in_channels': 32}
        cfg = load_config(ROOT / 'configs' / 'evit_m0_imagenet.py', options)
    init_default_scope(cfg.default_scope)
    plain = MODELS.build(cfg.model)
    runner = SimpleNamespace(cfg=cfg, model=nn.DataParallel(plain) if wrapped else plain)
    FuseHook().before_test_epoch(runner)
    fused = runner.model.module if wrapped else runner.model
    assert (runner.model is fused) != wrapped and fused is not plain
    assert any(isinstance(m, FusedWindowAttention) for m in fused.modules())
    head = getattr(fused, 'bbox_head', None)
    assert ('predict_by_feat' in vars(head)) if kind == 'detector' else head is None


def test_an_exported_file_runs_in_one_process(model, tmp_path):
    with pytest.raises(ConfigError, match=r"--launcher pytorch .* exported file 'a\.onnx'"):
        evaluate(model[0], 'a.onnx', work_dir=str(tmp_path), launcher='pytorch')
    with pytest.raises(ValueError, match='RANK'):  # a checkpoint may run in several
        evaluate(*model, work_dir=str(tmp_path), launcher='pytorch')
