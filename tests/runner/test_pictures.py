"""Pictures of an evaluation: where they are, what they show, and which colours they have."""

from types import SimpleNamespace

import cv2

import evit_mm.ops  # noqa: F401  # isort: skip
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData

from evit_mm.errors import ConfigError
from evit_mm.runner import pictures, tracking

CLASSES = tuple('abcdefg')
PALETTE = [(255, 0, 0), (0, 255, 0)]


@TRANSFORMS.register_module(force=True)
class LoadSixteenBits(BaseTransform):
    def transform(self, results):
        return {**results, 'img': cv2.imread(results['img_path'], cv2.IMREAD_UNCHANGED)}


class Visualizer(DetLocalVisualizer):
    """Remember what is given to the backends."""

    added: list = []  # noqa: RUF012

    def add_image(self, name, image, step=0):
        self.added.append((name, image, step))


def sample(path):
    boxes = torch.tensor([[20.0, 20, 60, 50]])
    found = InstanceData(
        bboxes=boxes, labels=torch.tensor([len(CLASSES) - 1]), scores=torch.ones(1)
    )
    truth = InstanceData(bboxes=boxes, labels=torch.tensor([0]))
    metainfo = {'img_path': str(path)}
    return DetDataSample(metainfo=metainfo, gt_instances=truth, pred_instances=found)


@pytest.fixture
def runner(tmp_path):
    dataset = SimpleNamespace(
        data_prefix={'img': str(tmp_path / 'images')}, pipeline=[LoadSixteenBits()]
    )
    for number in (1, 2):
        path = tmp_path / 'images' / f'cam{number}' / '0001.png'
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), np.full((70, 90, 3), 100 * 257 * number, np.uint16))
    visualizer = Visualizer()
    visualizer.added = []
    visualizer.dataset_meta = {'classes': CLASSES, 'palette': PALETTE}
    loader = SimpleNamespace(dataset=dataset)
    return SimpleNamespace(
        visualizer=visualizer, work_dir=str(tmp_path / 'work'), timestamp='now', iter=100, epoch=1,
        rank=0, val_dataloader=loader, test_dataloader=loader, cfg={},
    )  # fmt: skip


def samples(tmp_path):
    return [sample(tmp_path / 'images' / f'cam{number}' / '0001.png') for number in (1, 2)]


def test_images_of_the_same_name_have_a_picture_each(runner, tmp_path):
    hook = pictures.PictureHook(draw=True, test_out_dir=str(tmp_path / 'shown'))
    hook.before_run(runner)
    hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 0, None, samples(tmp_path))
    for number in (1, 2):
        both = cv2.imread(str(tmp_path / 'shown' / f'cam{number}' / '0001.png'))
        assert both.shape == (70, 180, 3)
        assert both[65, 85].tolist() == both[65, 175].tolist() == [100 * number] * 3  # of 16 bits
        blue, green, red = both[35, 20].astype(int)  # the truth has the first colour, red
        assert red > blue + 60 and red > green + 60
        assert np.ptp(both[35, 110].astype(int)) > 60  # the last class has a colour too
    assert runner.visualizer.dataset_meta['palette'][:2] == PALETTE


def test_a_relative_folder_is_in_the_work_dir_as_in_mmdet(runner, tmp_path):
    hook = pictures.PictureHook(draw=True, test_out_dir='shown')
    hook.before_run(runner)
    hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 0, None, samples(tmp_path)[:1])
    hook.after_test_iter(runner, 1, None, samples(tmp_path)[1:])
    for number in (1, 2):
        assert (tmp_path / 'work' / 'now' / 'shown' / f'cam{number}' / '0001.png').is_file()


def test_backends_get_some_pictures_of_a_training_and_all_of_a_test(runner, tmp_path):
    hook = pictures.PictureHook(draw=True, interval=25)
    hook.before_run(runner)
    hook.before_val_epoch(runner)
    for batch in range(51):
        hook.after_val_iter(runner, batch, None, samples(tmp_path))
    hook.after_test_iter(runner, 0, None, samples(tmp_path))
    found = [(name, step) for name, _, step in runner.visualizer.added]
    steps = [('val_img', 100), ('val_img', 125), ('val_img', 150)]
    assert found == [*steps, ('test_img', 1), ('test_img', 2)]


def test_nothing_is_drawn_or_read_unless_asked_for(runner, tmp_path):
    hook = pictures.PictureHook(test_out_dir=str(tmp_path / 'shown'))
    runner.val_dataloader.dataset = runner.test_dataloader.dataset = None
    for start in (hook.before_run, hook.before_val_epoch, hook.before_test_epoch):
        start(runner)
    hook.after_val_iter(runner, 0, None, samples(tmp_path))
    hook.after_test_iter(runner, 0, None, samples(tmp_path))
    assert not runner.visualizer.added and not (tmp_path / 'shown').exists()


def test_a_palette_of_something_else_ends_a_run_before_it_starts(runner):
    runner.visualizer.dataset_meta = {'classes': CLASSES, 'palette': [(1, 2)]}
    with pytest.raises(ConfigError, match=r'metainfo\.palette contains \(1, 2\); give a list'):
        pictures.PictureHook().before_run(runner)


def test_trackers_get_the_same_pictures_with_any_palette(runner, tmp_path, monkeypatch):
    """A config of mmdet does not name the hook that completes the palette."""
    shown = []
    backend = SimpleNamespace(add_image=lambda name, image, step: shown.append((name, image, step)))
    monkeypatch.setattr(runner.visualizer, 'get_backend', lambda _: backend, raising=False)
    hook = tracking.TrackingHook(['tensorboard'], {})
    hook.before_val_epoch(runner)
    hook.after_val_iter(runner, 0, None, samples(tmp_path))
    names = ['predictions/00_cam1/0001', 'predictions/01_cam2/0001']
    assert [(name, step) for name, _, step in shown] == [(name, 1) for name in names]
    for (_, image, _), value in zip(shown, (100, 200), strict=True):
        assert image.shape == (70, 180, 3) and image[65, 85].tolist() == [value] * 3
