"""The loss of several processes is that of one with all their images."""

import evit_mm.ops  # noqa: F401  # isort: skip - before anything imports mmcv.ops

import torch
import torch.distributed as dist
import torch.multiprocessing
from mmdet.models.dense_heads import RetinaHead
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from evit_mm.models.heads import SyncedRetinaHead
from tests.conftest import randomise

SIZES = (16, 8, 4, 2, 1)
# one positive anchor is far from the number of the other image
BOXES = (
    [[10.0, 12, 42, 44]],
    [[5.0, 5, 40, 60], [64, 64, 128, 128], [70, 10, 120, 50], [3, 80, 60, 126]],
)


def make(kind):
    init_default_scope('mmdet')
    assigner = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0)
    sampler = dict(type='PseudoSampler')  # as in the configs
    train_cfg = ConfigDict(assigner=assigner, sampler=sampler, allowed_border=-1, pos_weight=-1)
    head = kind(3, 8, stacked_convs=1, feat_channels=8, train_cfg=train_cfg)
    return randomise(head)


def losses_of(head, images):
    """Return the sums of both losses on some of the images."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(len(BOXES), 8, s, s, generator=generator)[images] for s in SIZES]
    truth = [
        InstanceData(bboxes=HorizontalBoxes(BOXES[i]), labels=torch.arange(len(BOXES[i])) % 3)
        for i in images
    ]
    shapes = [dict(img_shape=(128, 128), pad_shape=(128, 128)) for _ in images]
    losses = head.loss_by_feat(*head(maps), truth, shapes)
    return torch.stack([sum(losses[name]) for name in ('loss_cls', 'loss_bbox')]).detach()


def test_one_process_has_the_loss_of_mmdet():
    images = list(range(len(BOXES)))
    expected = losses_of(make(RetinaHead), images)
    assert torch.equal(losses_of(make(SyncedRetinaHead), images), expected)
    assert (expected > 0).all()


def one_process(rank, folder):
    dist.init_process_group('gloo', f'file://{folder}/meet', rank=rank, world_size=len(BOXES))
    torch.save(losses_of(make(SyncedRetinaHead), [rank]), f'{folder}/{rank}.pth')
    dist.destroy_process_group()


def test_the_mean_loss_of_two_processes_is_that_of_one(tmp_path):
    torch.multiprocessing.spawn(one_process, (tmp_path,), nprocs=len(BOXES))
    parts = [torch.load(tmp_path / f'{rank}.pth') for rank in range(len(BOXES))]
    torch.testing.assert_close(sum(parts) / 2, losses_of(make(SyncedRetinaHead), [0, 1]))
    # mmdet's own head differs, as it divides by the anchors of each process
    alone = [losses_of(make(RetinaHead), [rank]) for rank in range(len(BOXES))]
    assert (sum(alone) / 2 / (sum(parts) / 2) - 1).abs().max() > 0.1
