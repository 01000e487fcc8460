"""Where images come from: files, videos, cameras."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import cv2
import numpy as np

from ..data.images import list_images, read_image
from ..errors import ConfigError, DataError

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mkv', '.mov', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv', '.flv')
DEFAULT_FPS = 25.0  # of a camera or a file that does not say
MAX_FPS = 240.0  # more is a header's nonsense, which no writer takes

# libav talks to stderr on its own; one sentence of ours says it all
os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')


@dataclass
class Frame:
    """One image to look at.

    Attributes:
        index: Its place, from 0 on.
        name: Its file's name relative to the source.
        pixels: ``(H, W, 3)``, BGR, uint8; None where it cannot be decoded.
        path: Its file, or the video's.
        seconds: Time in the video, or since the camera's first frame.
    """

    index: int
    name: str
    pixels: Any
    path: Path
    seconds: float | None = None

    @property
    def time(self) -> dict[str, Any]:
        """``frame`` and ``seconds``; of an image nothing."""
        return (
            {} if self.seconds is None else {'frame': self.index, 'seconds': round(self.seconds, 3)}
        )


class Images:
    """An image, or all images under a folder.

    Args:
        source: The image or the folder.
        but_not_in: Folder that is left out.

    Attributes:
        root: The folder that names are relative to.
        paths: The images.
        total: How many there are.

    Raises:
        DataError: There is none.
    """

    live = False

    def __init__(self, source: str | Path, but_not_in: Path) -> None:
        self.root = Path(source) if Path(source).is_dir() else Path(source).parent
        left_out = but_not_in.resolve()
        self.paths = [p for p in list_images(source) if left_out not in p.resolve().parents]
        self.total = len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self.paths):
            yield Frame(index, str(path.relative_to(self.root)), read_image(path), path)

    def missed(self, read: int, interrupted: bool) -> str | None:
        """Say in a sentence what has not been read, if anything."""
        if not interrupted or read == self.total:
            return None
        return f'interrupted: {self.total - read} of {self.total} images were not looked at'

    def close(self) -> None:
        """Nothing is open."""


class Video:
    """A video file or a camera, read frame by frame.

    Args:
        source: File, device, or the number of a camera.

    Attributes:
        live: It is a camera.
        paths: Files of single images: it has none.
        path: The file; of a camera, a made-up name.
        fps: Frames per second, as it says itself.
        size: Width and height of a frame.
        total: Frames that the header announces; None of a camera, or where it does not say.

    Raises:
        ConfigError: There is no such camera.
        DataError: The file has no frame that can be decoded.
    """

    paths: tuple[Path, ...] = ()

    def __init__(self, source: str) -> None:
        number = int(source) if source.isdecimal() else None
        self.live = number is not None or Path(source).is_char_device()
        with _quiet():
            self._capture = cv2.VideoCapture(source if number is None else number)
            opened, self._first = self._capture.read()
        if not opened and self.live:
            raise ConfigError(
                f"camera '{source}' gives no picture; is it there, and used by no other program?"
            )
        if not opened:
            raise DataError(f"'{source}' has no frame that can be decoded; is it cut short?")
        self.path = Path(f'camera_{Path(source).name}' if self.live else source)
        self.root = self.path.parent
        self.size = self._first.shape[1::-1]
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps <= MAX_FPS else DEFAULT_FPS
        announced = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.total = announced if announced > 0 and not self.live else None

    def __iter__(self) -> Iterator[Frame]:
        pixels, index, start = self._first, 0, monotonic()
        while pixels is not None:
            if pixels.shape[1::-1] != self.size:  # a stream may change it on the way
                pixels = cv2.resize(pixels, self.size)
            seconds = monotonic() - start if self.live else self._position(index)
            yield Frame(index, self.path.name, pixels, self.path, seconds)
            _, pixels = self._capture.read()
            index += 1

    def _position(self, index: int) -> float:
        """Time of the frame that was just read: its stamp, or where there is none by counting."""
        stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        return stamp if stamp > 0 else index / self.fps

    def missed(self, read: int, interrupted: bool) -> str | None:
        """Say in a sentence what has not been read, if anything; a camera has no end."""
        if self.total is None or read >= self.total:
            return None
        if interrupted:
            return f"interrupted: '{self.path}' was looked at up to frame {read} of {self.total}"
        # where a format has no count, the announced one is only duration times rate
        if read < self.total - max(1, self.total // 50):
            return (
                f"'{self.path}' ends after {read} of the {self.total} frames that its header "
                'announces; it is cut short or damaged'
            )
        return None

    def close(self) -> None:
        """Let go of the camera or the file."""
        self._capture.release()


class VideoFile:
    """An MPEG-4 video that gets its name when it is whole.

    Args:
        path: File to write, ``.mp4``.
        fps: Frames per second.
        size: Width and height.
        live: Frames come at their own pace; each is repeated, or left out, so that the video
            keeps the time of its ``seconds``.

    Raises:
        ConfigError: It cannot be written.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int], live: bool = False) -> None:
        self.path, self.fps, self.live, self.written = path, fps, live, 0
        self._partial = path.with_name(f'{path.stem}.partial.mp4')
        with _quiet():
            codec = cv2.VideoWriter.fourcc(*'mp4v')
            self._writer = cv2.VideoWriter(str(self._partial), codec, fps, size)
        if path.is_dir() or not self._writer.isOpened():
            self._writer.release()
            self._partial.unlink(missing_ok=True)
            raise ConfigError(
                f"'{path}' cannot be written: is its folder writable, has the disk room?"
            )

    def write(self, frame: Frame, pixels: np.ndarray) -> None:
        """Append a frame's picture, ``(H, W, 3)`` BGR."""
        due = self.written + 1
        if self.live:
            due = max(1, round((frame.seconds or 0) * self.fps) + 1)
        while self.written < due:
            self._writer.write(pixels)
            self.written += 1

    def close(self) -> str | None:
        """Finish the file; return a sentence where not all that was written is there."""
        self._writer.release()
        with _quiet():
            capture = cv2.VideoCapture(str(self._partial))
            there = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
            capture.release()
        if there:
            os.replace(self._partial, self.path)
        else:
            self._partial.unlink(missing_ok=True)
        if there < self.written:
            return f"'{self.path}' holds {there} of {self.written} frames; is the disk full?"
        return None


class PictureFolder:
    """Pictures beside each other, each under its image's relative name.

    Args:
        folder: Where they go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, frame: Frame, pixels: np.ndarray) -> None:
        """Write a frame's picture, ``(H, W, 3)`` BGR.

        Raises:
            ConfigError: It cannot be written.
        """
        target = self.folder / frame.name
        if target.suffix.lower() not in ('.jpg', '.jpeg', '.png'):
            target = target.with_name(f'{target.name}.png')
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            written = cv2.imwrite(str(target), pixels)
        except (OSError, cv2.error):
            written = False
        if not written:
            raise ConfigError(
                f"'{target}' cannot be written: is its folder writable, has the disk room?"
            )

    def close(self) -> None:
        """Nothing is open."""


def open_source(source: str | Path, out_dir: Path) -> Images | Video:
    """Tell images, a video and a camera apart by name, and open it.

    Raises:
        EvitError: There is nothing to look at.
    """
    path = Path(source)
    camera = path.is_char_device() or (str(source).isdecimal() and not path.exists())
    if camera or (path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES):
        return Video(str(source))
    return Images(source, but_not_in=out_dir)


def open_target(source: Images | Video, out_dir: Path) -> PictureFolder | VideoFile:
    """Return what the pictures of a source go to."""
    if isinstance(source, Video):
        path = out_dir / f'{source.path.stem}.mp4'
        return VideoFile(path, source.fps, source.size, source.live)
    return PictureFolder(out_dir)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep OpenCV from telling in pages what one sentence says."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
