"""Detection on images, videos and cameras, with pictures and JSON as output."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log
from rich.progress import Progress

from ..data.dataset_configs import image_suffixes
from ..errors import ConfigError, DataError
from ..runner.build import make_folder
from ..utils.files import write_json
from ..utils.text import counted
from .coco import coco_ids, to_coco
from .detector import Detector, in_batches
from .sources import Frame, Images, Video, open_source, open_target
from .tiles import Tiles

PARTS = ('decode', 'detect', 'draw')


@dataclass
class Speed:
    """The time of each part of a prediction.

    Attributes:
        frames: Number of processed images.
        seconds: Seconds per entry of :data:`PARTS`. ``draw`` includes writing, and ``detect``
            includes resizing.
    """

    frames: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add the time of a ``with`` block to a part."""
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start

    def __str__(self) -> str:
        total = sum(self.seconds.values())
        rate = self.frames / total
        each = [f'{part} {1000 * s / self.frames:.1f} ms' for part, s in self.seconds.items()]
        parts = ', '.join(each)
        images = counted(self.frames, 'image')
        return f'{images} in {total:.1f} s, {rate:.1f} per second (per image: {parts})'


class Prediction(NamedTuple):
    """The result of :func:`predict`.

    Attributes:
        detections: Entries in COCO's result format.
        faults: One sentence per skipped image.
        speed: Time of each part.
    """

    detections: list[dict[str, Any]]
    faults: list[str]
    speed: Speed


def predict(
    model: str | Path,
    source: str | Path,
    out_dir: str | Path,
    config: str | Path | Config | None = None,
    score_thr: float = 0.3,
    cfg_options: Mapping[str, Any] | None = None,
    device: str | None = None,
    batch_size: int = 1,
    half: bool = False,
    fuse: bool = False,
    tile: int | None = None,
) -> Prediction:
    """Detect objects in an image, a folder of images, a video or a camera stream.

    The pictures with detections are written to ``out_dir`` under the relative names of the images,
    or as ``NAME.mp4`` for a video. All detections are written to ``out_dir/results.json`` in COCO's
    result format, with ``file_name`` and ``category_name`` added. Masks are stored as RLE in
    ``segmentation``.

    Images are read as the config's test pipeline reads them. See :mod:`evit_mm.data.pipeline`.

    Ids come from the config's annotation file. If it does not contain all images, ``image_id`` is
    the relative name of every image. If it cannot be read, ``category_id`` counts from 1, or is the
    COCO id for the 80 classes of COCO. In a video, ``image_id`` is the index of the frame, and
    ``seconds`` its time.

    An interrupt (Ctrl-C) ends the prediction and keeps the results. Use it to stop a camera.

    Args:
        model: Checkpoint or exported file, see :class:`Detector`.
        source: Image, folder, video file, camera number or camera device.
        out_dir: Folder to write to.
        config: See :class:`Detector`.
        score_thr: Lowest score of a drawn detection. The JSON file contains all detections.
        cfg_options: See :func:`evit_mm.runner.train.train`.
        device: See :func:`evit_mm.runner.train.train`.
        batch_size: Images per batch. A batch contains only consecutive images that have the same
            shape after resizing, so the results do not depend on the batch size.
        half: See :class:`Detector`.
        fuse: See :class:`Detector`.
        tile: Side in pixels of the tiles of larger images, or None; see :meth:`Detector.__call__`.

    Returns:
        The detections, the skipped images and the time of each part.

    Raises:
        EvitError: The config, the model or the source cannot be used.
        OSError: The results cannot be written.
    """
    if batch_size < 1:
        raise ConfigError(f'--batch-size must be at least 1, got {batch_size}')
    if not 0 <= score_thr <= 1:
        raise ConfigError(f'--score-thr must be between 0 and 1, got {score_thr}')
    tiles = None if tile is None else Tiles(tile, batch_size=batch_size)
    out_dir = Path(out_dir)
    detector = Detector(model, config, device, half, fuse, cfg_options)
    frames = open_source(source, out_dir, image_suffixes(detector.cfg))
    make_folder('--out', out_dir)
    if isinstance(frames, Video):
        detector.pipeline.check_memory()
    known_ids, category_ids = coco_ids(detector.cfg, detector.classes)
    image_ids = _of_all(frames, known_ids)
    detections: list[dict[str, Any]] = []
    faults: list[str] = []
    speed = Speed()
    target = open_target(frames, out_dir)
    try:
        with Progress() as progress:
            read = iter(progress.track(frames, frames.total, description='detecting'))
            prepared_frames = _prepare(read, detector, faults, speed)
            for batch in in_batches(prepared_frames, 1 if tiles else batch_size):
                with speed.of('detect'):
                    samples = detector.detect([prepared for _, prepared in batch], tiles)
                for (frame, prepared), sample in zip(batch, samples, strict=True):
                    with speed.of('draw'):
                        picture = detector.draw(prepared['picture'], sample, score_thr)
                        target.write(frame, picture)
                    speed.frames += 1
                    image_id = image_ids.get(frame.path.resolve(), frame.image_id)
                    detections += to_coco(
                        sample.pred_instances,
                        image_id,
                        frame.name,
                        detector.classes,
                        category_ids,
                        frame.time,
                    )
    except KeyboardInterrupt:
        if not speed.frames:
            raise
    finally:
        # keep the results that exist when an error occurs
        target.close()
        if speed.frames:
            write_json(out_dir / 'results.json', detections)
    if not speed.frames:
        raise DataError('\n  '.join([f"'{source}' has no usable image", *faults]))
    return Prediction(detections, faults, speed)


def _of_all(frames: Images | Video, image_ids: Mapping[Path, int]) -> Mapping[Path, int]:
    """Return the ids if every image has one, otherwise none: a file has ids or names, not both."""
    if isinstance(frames, Video):
        return {}
    missing = sum(path.resolve() not in image_ids for path in frames.paths)
    if 0 < missing < len(frames.paths):
        print_log(
            f'the annotation file of the config does not list {missing} of the '
            f'{len(frames.paths)} images, so image_id in results.json is the file name of every '
            'image',
            'current',
        )
    return {} if missing else image_ids


def _prepare(
    frames: Iterator[Frame], detector: Detector, faults: list[str], speed: Speed
) -> Iterator[tuple[Frame, dict[str, Any]]]:
    """Yield each usable frame with its prepared input, and add a fault for each other frame."""
    while True:
        with speed.of('decode'):
            frame = next(frames, None)
        if frame is None:
            return
        try:
            with speed.of('decode'):
                loaded = detector.pipeline.load(frame.image)
            with speed.of('detect'):
                prepared = detector.pipeline.pack(loaded)
        except DataError as error:
            if frame.time:  # all frames of a video have the same size
                raise DataError(f"'{frame.path}': {error}") from None
            faults.append(f"'{frame.path}' was skipped: {error}")
        else:
            yield frame, prepared
