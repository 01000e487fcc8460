"""A child config of ``docs/your_detector.md``, trained by the tool that comes with mmdet."""

import os
import subprocess
import sys
from pathlib import Path

from mmengine.config import Config

from evit_mm.checkpoint import read_checkpoint
from tests.conftest import ROOT

PIPELINE = [
    {'type': 'LoadImageFromFile'},
    {'type': 'LoadAnnotations', 'with_bbox': True},
    {'type': 'Resize', 'scale': (256, 256), 'keep_ratio': True},
    {'type': 'Pad', 'size': (256, 256)},  # the necks of RTMDet and YOLOX want multiples of 32
    {'type': 'PackDetInputs'},
]


def train_with_mmdet(block, data, folder):
    """Train a block's model by its optimizer for two iterations on the built-in shapes.

    The data set, the length and the hooks are other ones; the weights must be there and finite.
    """
    import mmdet

    (folder / 'block.py').write_text(block)
    cfg = Config.fromfile(folder / 'block.py')
    cfg.train_dataloader = {
        'batch_size': 2,
        'num_workers': 0,
        'sampler': {'type': 'InfiniteSampler'},
        'dataset': {
            'type': 'CocoDataset',
            'data_root': str(data),
            'ann_file': 'annotations/instances_train.json',
            'data_prefix': {'img': 'train/'},
            'metainfo': {'classes': ('circle', 'square', 'triangle', 'star', 'cross')},
            'pipeline': PIPELINE,
        },
    }
    cfg.train_cfg = {'type': 'IterBasedTrainLoop', 'max_iters': 2}
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.custom_hooks, cfg.param_scheduler = [], []
    cfg.default_hooks.checkpoint = {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 2}
    cfg.dump(folder / 'mine.py')
    tool = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'train.py'
    done = subprocess.run(
        [sys.executable, str(tool), 'mine.py', '--work-dir', 'work'],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': ''},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    state = read_checkpoint(folder / 'work' / 'iter_2.pth')['state_dict']
    assert any(name.startswith('backbone.patch_embed.') for name in state)
    for name, tensor in state.items():
        assert tensor.isfinite().all(), name
