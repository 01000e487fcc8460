"""A tiny detector to train, and the tools started as processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from mmengine.registry import init_default_scope

from evit_mm.runner.config import load_config
from tests.conftest import ROOT, TINY, randomise

CONFIG = """
_base_ = {base!r}
custom_imports = dict(
    imports=['evit_mm', 'evit_mm.models.heads', 'evit_mm.evaluation.coco_metric', 'tests.recording']
)
model = dict(
    backbone=dict(_delete_=True, type='EfficientViT', arch={arch!r}),
    neck=dict(in_channels=[16, 24, 32], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1),
    test_cfg=dict(score_thr=0.0),  # hardly trained, it is sure of nothing
)
data = dict(data_root={data!r})
loader = dict(num_workers=0, persistent_workers=False, dataset=data)
train_dataloader = dict(batch_size=8, **loader)
val_dataloader = loader
test_dataloader = loader
val_evaluator = dict(ann_file={data!r} + '/annotations/instances_val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1))
"""


def write_config(folder: Path, data: Path, extra: str = '') -> str:
    """Write the config of a tiny RetinaNet on the built-in shapes: two epochs."""
    base = str(ROOT / 'configs' / 'retinanet_evit_m4_shapes.py')
    path = folder / 'tiny.py'
    path.write_text(CONFIG.format(base=base, arch=TINY, data=str(data)) + extra)
    return str(path)


def save_weights(config: str, path: Path) -> Path:
    """Save a checkpoint of a config's detector with random weights."""
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    cfg = load_config(config)
    detector = randomise(MODELS.build(cfg.model))
    meta = {'dataset_meta': dict(cfg.test_dataloader.dataset.metainfo)}
    torch.save({'state_dict': detector.state_dict(), 'meta': meta}, path)
    return path


def launch(script, args, processes):
    """Run ``tools/SCRIPT.py`` by itself, or its ``dist_`` form with several processes."""
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    env.update(PORT=str(29600 + os.getpid() % 300), PYTHON=sys.executable)
    args = [str(a) for a in args]
    if processes == 1:
        command = [sys.executable, f'tools/{script}.py', *args]
    else:
        cut = 1 if script == 'train' else 2
        command = [f'tools/dist_{script}.sh', *args[:cut], str(processes), *args[cut:]]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def succeeded(done):
    """Return what a process printed; fail with its last lines if it failed."""
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr
