"""From a source of images to pictures, or a video, and all detections as JSON."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import MofNCompleteColumn, Progress

from ..errors import ConfigError, DataError
from ..utils.files import write_atomically
from .coco import coco_ids, to_coco
from .detector import Detector, in_batches, load_detector_config
from .sources import Frame, Images, Video, open_source, open_target

PARTS = ('decode', 'detect', 'draw')


@dataclass
class Speed:
    """How long what took.

    Attributes:
        frames: Images that went through.
        wall: Seconds from the first to the last, all in all.
        seconds: Seconds of each of :data:`PARTS`; writing counts as drawing, resizing as detecting.
    """

    frames: int = 0
    wall: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add the time of a block to a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start

    def __str__(self) -> str:
        frames = max(self.frames, 1)
        each = ', '.join(f'{part} {1000 * s / frames:.1f} ms' for part, s in self.seconds.items())
        rate = self.frames / self.wall if self.wall else 0.0
        return f'{self.frames} images in {self.wall:.1f} s, {rate:.1f} per second ({each} each)'


class Prediction(NamedTuple):
    """What :func:`predict` found.

    Attributes:
        detections: Entries in COCO's result format.
        faults: One sentence per image that could not be used, or part that was not looked at.
        speed: What took how long.
    """

    detections: list[dict[str, Any]]
    faults: list[str]
    speed: Speed


def predict(
    config: str | Path,
    checkpoint: str | Path,
    source: str | Path,
    out_dir: str | Path,
    score_thr: float = 0.3,
    cfg_options: Mapping[str, Any] | None = None,
    device: str | None = None,
    batch_size: int = 1,
    half: bool = False,
    fuse: bool = False,
) -> Prediction:
    """Detect objects in an image, in all images under a folder, in a video or before a camera.

    Writes each picture with its detections to ``out_dir`` under its own relative name, or a
    video's as ``NAME.mp4``, and all detections to ``out_dir/results.json`` in COCO's result format,
    with ``file_name`` and ``category_name`` added, masks as RLE under ``segmentation``. Ids are
    those of the config's annotation file where it can be read and names this very image; otherwise
    ``image_id`` is the file's stem (a number if it is one; the relative name where stems repeat)
    and ``category_id`` counts from 1, or is COCO's own for its 80 classes. In a video ``image_id``
    is the frame's index, and ``seconds`` its time.

    An interrupt (Ctrl-C) ends it after the images that are under way, and keeps what was found; it
    is how a camera ends.

    Args:
        config: Config file.
        checkpoint: What :func:`evit_mm.runner.train.train` saved.
        source: Image, folder, video file, number of a camera, or its device.
        out_dir: Folder to write to.
        score_thr: Score from which a detection is drawn; the JSON has all.
        cfg_options: As in :func:`evit_mm.runner.train.train`.
        device: As in :func:`evit_mm.runner.train.train`.
        batch_size: Images that go through the network at once; only images that have one shape
            once they are resized do, so that each finds what it finds alone.
        half: As in :class:`Detector`.
        fuse: As in :class:`Detector`.

    Returns:
        The detections, what could not be used, and how long it took.

    Raises:
        EvitError: The config or the checkpoint cannot be used, no image can, or the results cannot
            be written; nothing of no use is left behind.
    """
    if batch_size < 1:
        raise ConfigError(f'--batch-size must be 1 or more, got {batch_size}')
    if not 0 <= score_thr <= 1:
        raise ConfigError(f'--score-thr must be from 0 to 1, got {score_thr}')
    cfg, out_dir = load_detector_config(config, cfg_options), Path(out_dir)
    with closing(open_source(source, out_dir)) as frames:
        _check_target(out_dir, frames)
        detector = Detector(cfg, checkpoint, device, half, fuse)
        return _predict(detector, frames, out_dir, score_thr, batch_size)


def _check_target(out_dir: Path, frames: Images | Video) -> None:
    if out_dir.resolve() == frames.root.resolve() and not frames.live:
        raise ConfigError(f"--out '{out_dir}' is where the images are; choose another folder")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out '{out_dir}' cannot be written: {error}") from None


def _predict(
    detector: Detector, frames: Images | Video, out_dir: Path, score_thr: float, batch_size: int
) -> Prediction:
    image_ids, category_ids = coco_ids(detector.cfg, detector.classes)
    stems = Counter(path.stem for path in frames.paths)
    found: dict[int, list[dict[str, Any]]] = {}
    faults: list[str] = []
    speed = Speed()
    target = open_target(frames, out_dir)
    start = time.perf_counter()
    try:
        columns = (*Progress.get_default_columns(), MofNCompleteColumn())
        with _stop_at_interrupt() as stopped, Progress(*columns) as progress:
            read = iter(progress.track(frames, frames.total, description='detecting'))
            usable = _prepare(read, stopped, detector, speed, faults)
            for batch in in_batches(usable, batch_size, lambda item: item[1]['inputs'].shape):
                with speed.of('detect'):
                    samples = detector.detect([prepared for _, prepared in batch])
                for (frame, _), sample in zip(batch, samples, strict=True):
                    with speed.of('draw'):
                        target.write(frame, detector.draw(frame.pixels, sample, score_thr))
                    found[frame.index] = to_coco(
                        sample.pred_instances,
                        _image_id(frame, image_ids, stems),
                        frame.name,
                        detector.classes,
                        category_ids,
                        frame.time,
                    )
            looked_at = len(found) + len(faults)
            faults += filter(None, [frames.missed(looked_at, stopped.is_set())])
    finally:
        # an error on the way loses nothing of what was found before
        faults += filter(None, [target.close()])
        detections = [entry for index in sorted(found) for entry in found[index]]
        if found:
            _write_results(out_dir / 'results.json', detections)
    if not found:
        raise DataError('no image could be used:\n  ' + '\n  '.join(faults))
    speed.frames, speed.wall = len(found), time.perf_counter() - start
    return Prediction(detections, faults, speed)


def _prepare(
    frames: Iterator[Frame],
    stopped: threading.Event,
    detector: Detector,
    speed: Speed,
    faults: list[str],
) -> Iterator[tuple[Frame, dict[str, Any]]]:
    """Yield each frame that can be used, with what the network takes of it; name the others."""
    while not stopped.is_set():
        with speed.of('decode'):
            frame = next(frames, None)
        if frame is None:
            return
        try:
            if frame.pixels is None:
                raise DataError('it cannot be decoded')
            with speed.of('detect'):
                prepared = detector.prepare(frame.pixels)
        except DataError as error:
            faults.append(f"'{frame.path}' was left out: {error}")
        else:
            yield frame, prepared


def _image_id(frame: Frame, known: Mapping[Path, int], stems: Mapping[str, int]) -> int | str:
    if frame.time:
        return frame.index
    stem = frame.path.stem if stems[frame.path.stem] == 1 else frame.name
    return known.get(frame.path.resolve(), int(stem) if stem.isdecimal() else stem)


@contextmanager
def _stop_at_interrupt() -> Iterator[threading.Event]:
    """Let the first Ctrl-C set an event, and a second one interrupt as ever."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped  # only the main thread gets signals
        return
    usual = signal.getsignal(signal.SIGINT)

    def stop(*_: Any) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, usual)


def _write_results(path: Path, detections: list[dict[str, Any]]) -> None:
    try:
        write_atomically(path, json.dumps(detections).encode())
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written: {error}") from None
