"""The video file as camera, and the guard around OpenCV's capture."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from flawline_edge.cameras.video import GuardedCapture, VideoCamera
from flawline_inspect.errors import CameraError

pytestmark = pytest.mark.timeout(30)

_FPS = 12.5


@pytest.fixture
def pictures() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(20)]


@pytest.fixture
def video(tmp_path: Path, pictures: list[NDArray[np.uint8]]) -> Path:
    """20 frames, FFV1: lossless."""
    path = tmp_path / "parts.mkv"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), _FPS, (64, 48))
    assert writer.isOpened()
    for picture in pictures:
        writer.write(picture)
    writer.release()
    return path


def test_frames_are_bit_exact_and_complete(video: Path, pictures: list[NDArray[np.uint8]]) -> None:
    """Every frame of a lossless video comes as it was written, then the end."""
    with VideoCamera(video) as camera:
        for n, picture in enumerate(pictures):
            frame = camera.read()
            assert frame is not None
            assert frame.part == f"V{n:06d}"
            np.testing.assert_array_equal(frame.picture, picture)
        assert camera.read() is None
        assert camera.read() is None


def test_loop_starts_over_and_counts_on(video: Path, pictures: list[NDArray[np.uint8]]) -> None:
    """With loop the first frame follows the last, under the next number: two parts never share an id."""
    with VideoCamera(video, loop=True) as camera:
        frames = [camera.read() for _ in range(45)]
    for n, frame in enumerate(frames):
        assert frame is not None
        assert frame.part == f"V{n:06d}"
        np.testing.assert_array_equal(frame.picture, pictures[n % 20])


def test_the_pace_is_the_files_unless_configured(video: Path) -> None:
    """The file's rate sets the interval; a configured one wins."""
    with VideoCamera(video) as camera:
        assert camera.interval_s == pytest.approx(1 / _FPS)
    with VideoCamera(video, fps=4) as camera:
        assert camera.interval_s == pytest.approx(0.25)


@pytest.mark.parametrize("case", ["missing", "folder", "garbage", "empty"])
def test_no_video_is_the_users_mistake(tmp_path: Path, case: str) -> None:
    """A missing or undecodable file ends with exit code 2 and names the file."""
    path = tmp_path / "parts.mkv"
    if case == "folder":
        path.mkdir()
    elif case != "missing":
        path.write_bytes(b"not a video " * 100 if case == "garbage" else b"")
    with pytest.raises(CameraError, match=r"parts\.mkv") as caught, VideoCamera(path):
        pass
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("loop", [False, True])
def test_a_header_without_frames_does_not_pass_for_an_end(video: Path, loop: bool) -> None:
    """A file that opens but holds no frame is an error, also when looping, which would never end."""
    video.write_bytes(video.read_bytes()[:600])
    with VideoCamera(video, loop=loop) as camera, pytest.raises(CameraError, match="no frame") as caught:
        camera.read()
    assert caught.value.exit_code == 2


def test_a_cut_off_video_is_told(video: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that ends long before its own frame count gives what it has, and a warning."""
    data = video.read_bytes()
    video.write_bytes(data[: len(data) // 2])
    with VideoCamera(video) as camera, caplog.at_level(logging.WARNING):
        count = 0
        while camera.read() is not None:
            count += 1
    assert 0 < count < 20
    assert [record.args[1:] for record in caplog.records if isinstance(record.args, tuple)] == [(count, 20)]


def test_a_whole_video_gives_no_warning(video: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A complete file ends without a word."""
    with VideoCamera(video) as camera, caplog.at_level(logging.WARNING):
        while camera.read() is not None:
            pass
    assert caplog.records == []


def test_a_colon_in_the_name_is_no_protocol(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`part:1.mkv`, relative, is a file for us; FFmpeg alone would look for the protocol `part`."""
    video.rename(video.with_name("part:1.mkv"))
    monkeypatch.chdir(video.parent)
    with VideoCamera(Path("part:1.mkv")) as camera:
        assert camera.read() is not None


class _SlowCapture:
    """A capture whose read hangs until told, and that knows whether it was released under a running read."""

    def __init__(self) -> None:
        self.reading, self.go_on = threading.Event(), threading.Event()
        self.released = 0

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def get(self, propId: int, /) -> float:
        return 0.0

    def set(self, propId: int, value: float, /) -> bool:
        return True

    def read(self) -> tuple[bool, NDArray[np.uint8]]:
        self.reading.set()
        assert self.go_on.wait(10)
        assert self.released == 0, "released under a running read"
        return True, np.zeros((2, 2, 3), np.uint8)

    def release(self) -> None:
        self.released += 1


def test_a_capture_is_not_released_under_a_running_read() -> None:
    """Closing returns at once while another thread reads; the capture is released when that read is over."""
    slow = _SlowCapture()
    guarded = GuardedCapture(slow)
    read: list[object] = []
    reader = threading.Thread(target=lambda: read.append(guarded.read()), daemon=True)
    reader.start()
    assert slow.reading.wait(5)
    guarded.close()
    assert slow.released == 0
    slow.go_on.set()
    reader.join(5)
    assert slow.released == 1
    assert len(read) == 1
    assert guarded.read() is None
