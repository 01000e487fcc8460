"""Sources of images and targets for pictures: image files, videos, cameras."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import cv2
import mmcv
import numpy as np

from ..data.images import IMAGE_SUFFIXES, list_images
from ..data.pictures import picture_name
from ..errors import ConfigError, DataError

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mkv', '.mov', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv', '.flv')
DEFAULT_FPS = 25.0  # for cameras and files that report no frame rate


@dataclass
class Frame:
    """One image of a source.

    Attributes:
        path: File of the image or the video.
        name: File name relative to the source.
        image: Path of an image file, or pixels ``(H, W, 3)``, BGR, uint8, of a video.
        image_id: Name of the image, or index of the frame from 0.
        time: ``frame`` and ``seconds`` in the video or since the first frame of the camera; empty
            for an image.
    """

    path: Path
    name: str
    image: Path | np.ndarray
    image_id: int | str
    time: dict[str, Any]


class Images:
    """One image, or all images under a folder except those under ``but_not_in``."""

    def __init__(self, source: Path, but_not_in: Path | None, suffixes: Sequence[str]) -> None:
        self.root = source if source.is_dir() else source.parent
        self.paths = list_images(source, suffixes)
        if but_not_in is not None:
            left_out = but_not_in.resolve()
            self.paths = [path for path in self.paths if left_out not in path.resolve().parents]
        self.total = len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        for path in self.paths:
            name = str(path.relative_to(self.root))
            yield Frame(path, name, path, image_id=name, time={})


class Video:
    """A video file or a camera, read frame by frame.

    Attributes:
        live: Whether the source is a camera.
        path: Video file, or a name derived from the camera.
        fps: Frames per second.
        total: Number of frames in the header, or None if it has no number.
    """

    def __init__(self, source: str) -> None:
        number = source.isdecimal() and is_camera(source)
        self._capture = cv2.VideoCapture(int(source) if number else source)
        if not self._capture.isOpened():
            raise DataError(
                f"'{source}' cannot be opened: the video is damaged, or the camera is in use "
                'or not connected'
            )
        self.live = is_camera(source)
        self.path = Path(f'camera_{Path(source).name}' if self.live else source)
        self.fps = max(self._capture.get(cv2.CAP_PROP_FPS), 0) or DEFAULT_FPS
        self.total = max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0) or None

    def __iter__(self) -> Iterator[Frame]:
        there, pixels = self._capture.read()
        index, start = 0, monotonic()
        while there:
            if self.live:
                seconds = monotonic() - start
            else:  # some files have no time stamps
                seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 or index / self.fps
            time = {'frame': index, 'seconds': round(seconds, 3)}
            yield Frame(self.path, self.path.name, pixels, index, time)
            index += 1
            there, pixels = self._capture.read()


class PictureFolder:
    """A folder of pictures with the relative names of their images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, frame: Frame, pixels: np.ndarray) -> None:
        """Write a frame's picture, ``(H, W, 3)`` BGR."""
        mmcv.imwrite(pixels, str(self.folder / picture_name(frame.name, '')))

    def close(self) -> None:
        """Do nothing, because no file is open."""


class VideoFile:
    """An MPEG-4 video with the size of its first picture.

    With ``live``, a picture is repeated to fill the time since the previous one, which keeps the
    real duration.
    """

    def __init__(self, path: Path, fps: float, live: bool) -> None:
        self.path, self.fps, self.live = path, fps, live
        self._writer: Any = None
        self._written = 0

    def write(self, frame: Frame, pixels: np.ndarray) -> None:
        """Append a frame's picture, ``(H, W, 3)`` BGR."""
        if self._writer is None:
            codec = cv2.VideoWriter.fourcc(*'mp4v')
            self._writer = cv2.VideoWriter(str(self.path), codec, self.fps, pixels.shape[1::-1])
            if not self._writer.isOpened():
                raise ConfigError(f"video '{self.path}' cannot be written")
        copies = 1
        if self.live:
            copies = round(frame.time['seconds'] * self.fps) + 1 - self._written
        for _ in range(max(copies, 1)):
            self._writer.write(pixels)
            self._written += 1

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()


def is_camera(source: str) -> bool:
    """Return whether a source is a camera number or a camera device."""
    path = Path(source)
    return path.is_char_device() or (source.isdecimal() and not path.exists())


def open_source(
    source: str | Path, out_dir: Path | None = None, suffixes: Sequence[str] = IMAGE_SUFFIXES
) -> Images | Video:
    """Open a source of images; its name decides between images, a video and a camera.

    ``suffixes`` are those of the images in a folder. Images under ``out_dir`` are left out.

    Raises:
        EvitError: The source contains no image or cannot be opened, or ``out_dir`` is the folder
            of the images.
    """
    path = Path(source)
    if not str(source):  # as a path, it would mean the current folder
        raise DataError('the path of the image is empty')
    try:
        camera = is_camera(str(source))
    except OSError as error:  # the folder is another user's, or the text is no path
        raise DataError(f"'{str(source)[:100]}' cannot be opened: {error.strerror}") from None
    if camera:
        return Video(str(source))
    folder = path if path.is_dir() else path.parent
    if out_dir is not None and folder.resolve() == out_dir.resolve():
        raise ConfigError(f"--out '{out_dir}' is the folder of the images; choose another folder")
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return Video(str(source))
    return Images(path, out_dir, suffixes)


def open_target(source: Images | Video, out_dir: Path) -> PictureFolder | VideoFile:
    """Return the target for the pictures of a source."""
    if isinstance(source, Video):
        return VideoFile(out_dir / f'{source.path.stem}.mp4', source.fps, source.live)
    return PictureFolder(out_dir)
