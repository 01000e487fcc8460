"""Hook that saves pictures of the detections of an evaluation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..data.pictures import complete_palette, image_folder, picture_name, to_picture
from ..data.pipeline import dataset_reader


@HOOKS.register_module()
class PictureHook(Hook):
    """Draw ground truth (left) and detections (right), like mmdet's ``DetVisualizationHook``.

    There are three differences. The images are read with the loading steps of the pipeline, so
    16-bit images, images with an ignored EXIF rotation and images with any number of channels are
    drawn. The pictures keep the subfolders of the images, so images of the same name do not
    overwrite each other. A palette that is shorter than the classes is completed, for other users
    of the visualizer too.

    Args:
        draw: Whether to draw. Otherwise, only the palette is checked and completed.
        interval: In training, draw the first image of every ``interval``-th batch.
        score_thr: Lowest score of a drawn detection.
        show: Show the pictures in a window.
        wait_time: Seconds that a window stays open.
        test_out_dir: Folder for the pictures of a test. A relative path is relative to the folder
            of the run in the work dir. None gives the pictures to the visualizer's backends.

    Raises:
        ConfigError: ``metainfo.palette`` contains something else than colours.
    """

    def __init__(
        self,
        draw: bool = False,
        interval: int = 50,
        score_thr: float = 0.3,
        show: bool = False,
        wait_time: float = 0.0,
        test_out_dir: str | None = None,
    ) -> None:
        self.draw, self.interval, self.score_thr = draw, interval, score_thr
        self.show, self.wait_time, self.test_out_dir = show, wait_time, test_out_dir
        self.index = 0  # number of pictures so far
        self.read: Any = None
        self.folder = ''

    def before_run(self, runner: Any) -> None:
        """Complete the palette."""
        visualizer = runner.visualizer
        visualizer.dataset_meta = complete_palette(visualizer.dataset_meta or {})

    def before_val_epoch(self, runner: Any) -> None:
        """Find out how the images are read."""
        self._open(runner.val_dataloader.dataset)

    def before_test_epoch(self, runner: Any) -> None:
        """Find out how the images are read, and where the pictures go."""
        self._open(runner.test_dataloader.dataset)

    def _open(self, dataset: Any) -> None:
        if self.draw:
            self.read, self.folder = dataset_reader(dataset), image_folder(dataset)

    @master_only
    def after_val_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,  # noqa: ARG002
        outputs: Sequence[Any] = (),
    ) -> None:
        """Draw the first image of some batches."""
        step = runner.iter + batch_idx
        if self.draw and step % self.interval == 0:
            self._add(runner, outputs[0], 'val_img', step, None)

    def after_test_iter(
        self,
        runner: Any,
        batch_idx: int,  # noqa: ARG002
        data_batch: Any = None,  # noqa: ARG002
        outputs: Sequence[Any] = (),
    ) -> None:
        """Draw each image."""
        for sample in outputs if self.draw else ():
            self.index += 1
            file = None
            if self.test_out_dir is not None:
                name = picture_name(sample.img_path, self.folder)
                file = os.path.join(runner.work_dir, runner.timestamp, self.test_out_dir, name)
            self._add(runner, sample, 'test_img', self.index, file)

    def _add(self, runner: Any, sample: Any, name: str, step: int, file: str | None) -> None:
        runner.visualizer.add_datasample(
            picture_name(sample.img_path, self.folder) if self.show else name,
            to_picture(self.read(sample.img_path))[..., ::-1],
            data_sample=sample,
            show=self.show,
            wait_time=self.wait_time,
            pred_score_thr=self.score_thr,
            out_file=file,
            step=step,
        )
