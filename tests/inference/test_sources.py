"""Videos, cameras and where their pictures go."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from evit_mm.errors import DataError
from evit_mm.inference.sources import (
    Frame,
    Images,
    PictureFolder,
    Video,
    VideoFile,
    is_camera,
    open_source,
    open_target,
)
from tests.inference.test_run import FPS, noise, read_video, write_video


@pytest.fixture(scope='module')
def film(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp('film') / 'film.mp4', 5)


class Capture:
    """A capture whose header says what it is told; no such files and cameras can be had here."""

    def __init__(self, fps, count, milliseconds):
        self.says = {
            cv2.CAP_PROP_FPS: fps,
            cv2.CAP_PROP_FRAME_COUNT: count,
            cv2.CAP_PROP_POS_MSEC: milliseconds,
        }
        self.left = 3

    def isOpened(self):  # noqa: N802 - OpenCV's name
        return True

    def get(self, key):
        return self.says[key]

    def read(self):
        self.left -= 1
        return self.left >= 0, noise(0)


def test_a_video_says_its_rate_its_length_and_its_times(film):
    video = open_source(film, Path('out'))
    assert (video.fps, video.total, video.live, video.path) == (FPS, 5, False, film)
    frames = list(video)
    assert [frame.image_id for frame in frames] == [frame.time['frame'] for frame in frames]
    assert [frame.time['seconds'] for frame in frames] == [0, 0.125, 0.25, 0.375, 0.5]
    for frame, pixels in zip(frames, read_video(film)[0], strict=True):
        assert np.array_equal(frame.image, pixels) and frame.name == 'film.mp4'


@pytest.mark.parametrize(
    ('fps', 'count', 'expected'), [(-1, -9e18, (25, None)), (0, 0, (25, None)), (50, 7, (50, 7))]
)
def test_headers_that_say_nothing_give_25_frames_per_second(monkeypatch, fps, count, expected):
    monkeypatch.setattr(cv2, 'VideoCapture', lambda _: Capture(fps, count, 0.0))
    video = Video('a.mp4')
    assert (video.fps, video.total) == expected
    seconds = [frame.time['seconds'] for frame in video]
    assert seconds == [round(index / expected[0], 3) for index in range(3)]


def test_time_stamps_are_taken_where_there_are_some(monkeypatch):
    monkeypatch.setattr(cv2, 'VideoCapture', lambda _: Capture(50, 3, 1234.5678))
    assert [frame.time['seconds'] for frame in Video('a.mp4')] == [1.235] * 3


def test_the_name_decides_between_images_videos_and_cameras(film, tmp_path, monkeypatch):
    assert is_camera('0') and is_camera('/dev/null')  # a device, though none that films
    assert not is_camera('-1') and not is_camera(str(film))
    with pytest.raises(DataError, match='/dev/null.* cannot be opened'):
        open_source('/dev/null', tmp_path / 'out')
    suffixes = 'mp4 avi mkv mov webm m4v mpg mpeg wmv flv MP4'
    for suffix in suffixes.split():
        name = tmp_path / f'a.{suffix}'
        name.write_bytes(film.read_bytes())
        source = open_source(name, tmp_path / 'out')
        assert type(source) is Video
        target = open_target(source, tmp_path / 'out')
        assert type(target) is VideoFile and target.path == tmp_path / 'out' / 'a.mp4'
        assert (target.fps, target.live) == (FPS, False)
    folder = tmp_path / 'folder.mp4'
    folder.mkdir()
    for name in ('b.png', 'c.jpg'):
        cv2.imwrite(str(folder / name), noise(1))
    source = open_source(folder, folder / 'out')
    assert type(source) is Images and source.total == 2
    assert [frame.image_id for frame in source] == ['b.png', 'c.jpg']
    monkeypatch.chdir(tmp_path)
    folder.rename('2024')
    assert type(open_source('2024')) is Images
    target = open_target(source, tmp_path)
    assert type(target) is PictureFolder and target.folder == tmp_path


@pytest.mark.parametrize(
    ('live', 'times', 'written'),
    [
        (False, [0.0, 0.7, 5.0], [0, 1, 2]),
        # at 10 per second: the second comes too early, the third fills half a second
        (True, [0.0, 0.04, 0.5], [0, 1, 2, 2, 2, 2]),
        (True, [0.26], [0, 0, 0, 0]),
    ],
)
def test_a_cameras_pictures_are_repeated_to_keep_the_time(tmp_path, live, times, written):
    target = VideoFile(tmp_path / 'a.mp4', 10.0, live)
    for index, seconds in enumerate(times):
        frame = Frame(Path('a'), 'a', None, index, {'seconds': seconds})
        target.write(frame, np.full((48, 64, 3), 80 * index, np.uint8))
    target.close()
    frames, fps = read_video(tmp_path / 'a.mp4')
    assert fps == 10 and frames[0].shape == (48, 64, 3)
    assert [round(frame.mean() / 80) for frame in frames] == written
